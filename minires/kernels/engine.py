"""The network on this machine: weights packed once, buffers allocated once for a shape of input.

An engine gives a `Plan` its memory: it turns places into addresses, and the steps into a program
that compiled code runs from front to back.
"""

import math
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from minires.backends import Ran, Record
from minires.errors import MiniresError
from minires.kernels.cpu import get_num_threads, room_in
from minires.kernels.division import divide
from minires.kernels.isa import ISA, available_isas, choose_isa
from minires.kernels.operators import FORMATS, OPS, STEP, UNWATCHED, compile_network
from minires.kernels.pack import aligned, from_bf16, make_up, prepack, to_bf16
from minires.kernels.plan import LOGITS, Buffer, Division, Plan, Step, Tiling, lay_out
from minires.layers import Array, Int8Params, Layer, Shape
from minires.reference import QParams
from minires.summary import enough_memory

PLANS = 4  # how many shapes of input may have buffers at the same time
KEPT = 2**29  # bytes of buffers that may stay after a run
ONE_AT_A_TIME = threading.Lock()  # runs share the buffers, and each takes all threads anyway
# The numbers that a program copies from a plan: from a step, and from a step's GEMM.
SIZES = ["batch", "in_h", "in_w", "out_h", "out_w", "channels"]
STRIDES = ["x_image", "x_row", "y_image", "y_row"]
GEMM = ["rows", "block", "panels", "panel_bytes", "runs", "groups", "run_stride"]


def _renew_lock() -> None:
    """Begin anew in a forked child, where the thread that may hold the lock does not exist."""
    global ONE_AT_A_TIME
    ONE_AT_A_TIME = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


class Packed(NamedTuple):
    """A layer's parameters as a microkernel reads them, with N filled up to whole panels."""

    w: Array  # (panels, runs * groups, columns, group)
    bias: Array  # (N,)
    m: Array  # (N,) float32


class Program(NamedTuple):
    """A plan with memory: compiled code runs it for one shape of input."""

    plan: Plan
    steps: Array  # of STEP
    memory: list[Array]  # the plan's buffers: (batch, h, w, channels), with their padding
    logits: Array  # (batch, N) float32
    nbytes: int  # of `memory`, and of the offsets into it

    def output(self, layer: Layer) -> Array:
        """View a layer's output without its padding, and without channels that fill a panel up."""
        number = self.plan.outputs[layer.name]
        whole: Array = self.plan.buffers[number].inside(self.memory[number])
        return whole[..., : layer.out_c]


class Engine:
    """A network prepacked for one precision, on this machine.

    The layers are fused, and come in the order they run. `params` has their parameters by name, in
    the form that the operators of layers.py take. The precision is a key of `FORMATS`. The
    instruction set is `choose_isa()` unless you give another that this machine has. Each run asks
    `get_num_threads()` unless you say how many.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        params: Mapping[str, Any],
        precision: str,
        isa: ISA | None = None,
        threads: int | None = None,
    ) -> None:
        self.layers = layers
        self.params = params
        self.threads = threads
        self.isa = isa or choose_isa()
        self.precision = precision
        self.form = FORMATS[precision]
        if self.isa not in available_isas() or (threads is not None and threads < 1):
            raise MiniresError("an engine wants one of available_isas, and at least one thread")
        self.tiling = self._tiling()
        self.execute = compile_network(precision, self.isa.name)
        self.packed = {
            layer.name: self._pack(layer)
            for layer in layers
            if layer.op in ("conv", "linear") and not self._leaves(layer)
        }
        self.programs: dict[tuple[Shape, bool], Program] = {}
        self.divisions: dict[Shape, Division] = {}
        self.ticks = np.zeros(len(layers) + 1, np.int64)  # the clock between steps, of the last run

    def _tiling(self) -> Tiling:
        """Tell a plan what the microkernels need, and how large this CPU's caches are."""
        operands = self.form.operands
        instruction = self.isa.instructions[operands]
        rows, vectors = self.isa.tiles[operands]
        tiling = Tiling(
            item=np.dtype(self.form.activation).itemsize,
            group=self.form.group,
            quantized=operands == "u8s8",
            rows=rows,
            columns=vectors * self.isa.lanes,
            run=instruction.rows if instruction.own_registers else 1,
            groups=instruction.multiple,
            may_be_fewer=instruction.own_registers,
            pixel=instruction.pixel,
            near=room_in(1),
            far=room_in(2),
        )
        if instruction.own_registers:  # the last cache is too slow for matrix instructions
            room = room_in(2) * (self.threads or get_num_threads())
            tiling = replace(tiling, room=room)
        return tiling

    def __call__(
        self, x: Array, record: Record | None = None, started: float | None = None
    ) -> Array:
        """Run the whole network on (N, 3, H, W) float32; return (N, num_classes) float32 logits.

        `record` is told of the steps of each call, once all have run and other runs may begin.
        `started` is when the caller began with x, by time.perf_counter: the first step's time
        begins there.
        """
        began = started or perf_counter()
        x = np.ascontiguousarray(x)
        logits = np.empty((len(x), self.layers[-1].out_c), np.float32)
        parts = -(-len(x) // self._divide(x.shape).more)
        images = -(-len(x) // parts)  # equal parts: images are slower in a small last one
        threads = self.threads or get_num_threads()
        calls: list[Ran] = []
        with ONE_AT_A_TIME:
            for start in range(0, len(x), images):
                together = x[start : start + images]
                program = self.program(together.shape)
                for steps, which in program.plan.calls:
                    part = together[which]
                    self._point(program, steps, part, which.start)
                    worked = np.zeros((steps.stop, threads, 2), np.int64) if record else UNWATCHED
                    called = perf_counter()
                    self.execute(
                        program.steps, self.ticks, steps.start, steps.stop, threads, worked
                    )
                    if record:
                        between = self.ticks[steps.start : steps.stop + 1]
                        span = called, perf_counter()
                        times, worked = _in_seconds(between, worked[steps], *span)
                        times[0][0] = began  # the first step's time begins before the call
                        told = self.layers[steps], part.shape, len(calls), times
                        calls.append(Ran(*told, worked=worked))
                    began = perf_counter()
                logits[start : start + images] = program.logits[:, : logits.shape[1]]
            self._keep_within(KEPT)
        for call in calls:  # only now, without the lock: a record may run a network itself
            assert record
            record(call)
        return logits

    def _point(self, program: Program, steps: slice, images: Array, number: int) -> None:
        """Make a call's first step read these images, and its last write to their places."""
        program.steps[0]["x"] = images.ctypes.data
        last = program.plan.steps[steps.stop - 1]
        place = self._address(program, last.y.buffer) + last.y.offset
        program.steps[steps.stop - 1]["y"] = place + number * last.y_image

    def _divide(self, shape: Shape) -> Division:
        """Count the images whose activations stay in a cache between steps; once for each size."""
        size = shape[2:]
        if size not in self.divisions:
            self.divisions[size] = divide(self.layers, size, self.tiling)
        return self.divisions[size]

    def run(self, shape: Shape, layer: Layer, *inputs: Array) -> Array:
        """Run one layer as an operator of layers.py does, in a network whose input has this shape.

        Activations are NHWC without padding, and float32 in place of bfloat16. The first layer
        reads NCHW.
        """
        at = self.layers.index(layer)
        with ONE_AT_A_TIME:
            program = self.program(shape, whole=True)
            first = np.ascontiguousarray(inputs[0])
            if layer.op == "input":
                program.steps[at]["x"] = first.ctypes.data
            # The first layer has an input, the image, but no name for it.
            for name, value in zip(layer.inputs, inputs, strict=False):
                inner = program.output(next(other for other in self.layers if other.name == name))
                inner[...] = self._narrow(value).reshape(inner.shape)
            threads = self.threads or get_num_threads()
            self.execute(program.steps, self.ticks, at, at + 1, threads)
            if layer.op == "linear":
                return program.logits[:, : layer.out_c].copy()
            y = self._widen(program.output(layer))
            return y[:, 0, 0] if layer.op == "avgpool" else y

    def time_step(self, steps: Array, at: int, execute: Callable[..., None] | None = None) -> int:
        """Run one step on the data in the buffers, and return the ticks that it took.

        The step before it runs first, uncounted. It wakes the threads, which takes long where they
        are many. `steps` belong to one of this engine's programs, or are a changed copy. You may
        give another `execute`, from `compile_network`, in place of the engine's own.
        """
        threads = self.threads or get_num_threads()
        with ONE_AT_A_TIME:
            (execute or self.execute)(steps, self.ticks, at - 1, at + 1, threads)
            return int(self.ticks[at + 1] - self.ticks[at])

    def _narrow(self, x: Array) -> Array:
        """Convert an activation or a weight from the type in layers.py to the type in memory."""
        return to_bf16(x) if self.form.operands == "bf16" else x

    def _widen(self, y: Array) -> Array:
        """Copy an activation from memory, in the type that layers.py has."""
        return from_bf16(y) if self.form.operands == "bf16" else y.copy()

    def _leaves(self, layer: Layer) -> bool:
        """Tell whether the network runs a layer by itself, in float32 between eight bits."""
        return layer.kept and self.form.operands == "u8s8"

    def _pack(self, layer: Layer) -> Packed:
        p = self.params[layer.name]
        if self.form.operands == "u8s8":
            weight = p.w_s8
            bias = p.bias_s32
            m = p.x_qparams.scale * p.w_scale
            m = m / layer.qparams.scale if layer.qparams else m
            bias = make_up(self.isa.instructions["u8s8"], bias, weight)
        else:
            weight, bias = p.weight, p.bias
            weight = self._narrow(weight)
            m = bias
        reads = next(other for other in self.layers if other.name == layer.inputs[0])
        in_c = self.tiling.channels(reads)
        w = prepack(
            weight,
            kernel=layer.kernel,
            in_c=in_c,
            group=self.form.group,
            columns=self.tiling.columns,
            at_once=self.tiling.step(layer, in_c),
            side_by_side=self.isa.instructions[self.form.operands].side_by_side,
        )
        vectors = [aligned((len(w) * self.tiling.columns,), values.dtype) for values in (bias, m)]
        for vector, values in zip(vectors, (bias, m), strict=True):
            vector[: len(values)] = values
        if isinstance(weight.base, mmap.mmap):  # the packed copy is enough: free a file's pages
            weight.base.madvise(mmap.MADV_DONTNEED)
        return Packed(w, *vectors)

    def program(self, shape: Shape, whole: bool = False) -> Program:
        """Find the program for an NCHW shape of input, or make one.

        If `whole`, all images take each step together, else `_divide` tells how many do.
        """
        if (shape, whole) not in self.programs:
            while len(self.programs) >= PLANS:
                del self.programs[next(iter(self.programs))]  # the oldest
            self._keep_within(KEPT)
            batch = shape[0]
            division = Division(0, batch, batch) if whole else self._divide(shape)
            with enough_memory(self.layers, shape, self.precision):
                plan = lay_out(self.layers, shape, self.tiling, division)
                self.programs[shape, whole] = self._allocate(plan)
        return self.programs[shape, whole]

    def _keep_within(self, limit: int) -> None:
        """Delete the oldest programs, until the others take no more bytes than the limit."""
        while sum(program.nbytes for program in self.programs.values()) > limit:
            del self.programs[next(iter(self.programs))]

    def _allocate(self, plan: Plan) -> Program:
        """Give a plan's buffers memory, and describe its steps as compiled code reads them."""
        memory = [self._buffer(buffer) for buffer in plan.buffers]
        batch = plan.shape[0]
        logits = aligned((batch + 1, self.tiling.channels(self.layers[-1])), np.float32)
        steps = np.zeros(len(self.layers), STEP)
        gemms = [step.gemm for step in plan.steps if step.gemm]
        offsets = [array for gemm in gemms for array in (gemm.x_offsets, gemm.y_offsets)]
        nbytes = sum(array.nbytes for array in (*memory, *offsets))
        program = Program(plan, steps, memory, logits[:batch], nbytes)
        for planned, step in zip(plan.steps, steps, strict=True):
            self._describe(planned, step, program)
        return program

    def _buffer(self, buffer: Buffer) -> Array:
        """Allocate a buffer, filled with the value of its padding."""
        dtype = np.dtype(self.form.activation)
        fill = buffer.fill
        if fill is None:
            # The max-pool compares bfloat16 by its bits, as int16. This is right after a ReLU,
            # because no number is negative then but -0.0, whose bits are the least int16.
            fill = -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
        size = math.prod(buffer.shape)
        return aligned((size + buffer.spare,), dtype, fill)[:size].reshape(buffer.shape)

    def _address(self, program: Program, buffer: int) -> int:
        return (program.logits if buffer == LOGITS else program.memory[buffer]).ctypes.data

    def _describe(self, planned: Step, step: Any, program: Program) -> None:
        """Fill in a step of a program: the plan's numbers, addresses for places, and scalars."""
        layer = planned.layer
        step["op"] = OPS[layer.op]
        step["kernel"] = layer.kernel
        step["stride"] = layer.stride
        for name in (*SIZES, *STRIDES):
            step[name] = getattr(planned, name)
        for name in ("x", "y", "residual"):
            if place := getattr(planned, name):
                step[name] = self._address(program, place.buffer) + place.offset
        if (gemm := planned.gemm) and not self._leaves(layer):
            for name in GEMM:
                step[name] = getattr(gemm, name)
            step["x_offsets"] = gemm.x_offsets.ctypes.data
            step["y_offsets"] = gemm.y_offsets.ctypes.data
            packed = self.packed[layer.name]
            assert (len(packed.w), packed.w.strides[0]) == (gemm.panels, gemm.panel_bytes)
            for name in ("w", "bias", "m"):
                step[name] = getattr(packed, name).ctypes.data
        self._describe_scalars(layer, step)

    def _describe_scalars(self, layer: Layer, step: Any) -> None:
        """Fill in the numbers for an epilogue, a quantization or the average pool."""
        step["low"] = 0.0 if layer.relu else -np.inf
        step["high"] = np.inf
        if q := layer.qparams:
            step["low"], step["high"] = -q.zero_point, 255 - q.zero_point
            step["scale"], step["zero_point"] = q
            p = self.params.get(layer.name)
            if isinstance(p, Int8Params) and p.residual_qparams:
                step["m_residual"] = p.residual_qparams.scale / q.scale
                step["residual_zero_point"] = p.residual_qparams.zero_point
            if isinstance(p, QParams):  # the average pool
                pixels = np.float32(step["in_h"] * step["in_w"])
                step["average"] = p.scale / (q.scale * pixels)
                step["x_zero_point"] = p.zero_point


def _in_seconds(ticks: Array, worked: Array, started: float, ended: float) -> tuple[Array, Array]:
    """Return when each step began and ended, and each thread in it, between a call's start and end.

    The ticks come from a clock of unknown rate. All of them together took all of the call's time,
    so the microseconds of the call itself are shared out among the steps. Since cores may read the
    clock a few ticks apart, ticks that go backwards are evened out, and a thread stays within its
    step. The times are in seconds; a thread that had no piece of a step has NaN there.
    """
    ticks = np.maximum.accumulate(ticks)
    tick = (ended - started) / max(1, int(ticks[-1] - ticks[0]))
    within = np.clip(worked, ticks[:-1, None, None], ticks[1:, None, None]) - ticks[0]
    threads = np.where(worked, started + tick * within, np.nan)
    times = started + tick * (ticks - ticks[0])
    return np.stack([times[:-1], times[1:]], axis=1), threads
