"""The network on an NVIDIA GPU: the same plan, given the GPU's memory, and run as one CUDA graph.

A launch costs the host tens of microseconds, and a network has 56 of them. So they are recorded
once for a shape of input; from then on one call replays them all.
"""

import math
import os
import threading
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.cuda.core import config

from minires.errors import MiniresError
from minires.kernels.cuda import driver
from minires.kernels.cuda.fragments import column_order
from minires.kernels.cuda.gemm import (
    LARGE,
    NAMES,
    SHARED,
    SIGNATURE,
    SMALL,
    TALL,
    Arguments,
    Gemm,
    gemm_function,
)
from minires.kernels.cuda.instructions import SETS, Instruction
from minires.kernels.cuda.block import STEP, Tile
from minires.kernels.cuda.operators import FORMATS, THREADS, operators
from minires.kernels.pack import prepack
from minires.kernels.plan import LOGITS, Buffer, Division, Plan, Step, Tiling, lay_out
from minires.layers import Array, Int8Params, Layer, Record, Shape
from minires.reference import QParams, round_bf16_ref, round_tf32_ref

BATCH = 128  # images that go through together, at most
PLANS = 4  # shapes of input whose buffers are kept
KEPT = 2**33  # bytes of them that may stay after a run
SPARE = 256  # bytes behind a buffer that a step along K may read, and that count for nothing
SPLITS = 16  # blocks that may share K
ONE_AT_A_TIME = threading.Lock()  # buffers are shared
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # of few blocks: a single image has no more


class Packed(NamedTuple):
    """A layer's parameters in the GPU's memory, as the kernels read them."""

    w: Any  # (N, taps * run) in the order of `column_order`
    bias: Any  # (N,)
    m: Any  # (N,) float32


class Launch(NamedTuple):
    """A kernel with all that it needs."""

    kernel: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]


class Program:
    """A plan with the GPU's memory, a launch a step, and the graph of all of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.images: Any = None  # (batch, 3, h, w) float32
        self.pinned: Any = None  # the same in the host's memory, where the GPU can fetch it
        self.memory: list[Any] = []  # the plan's buffers, flat, with their padding and `SPARE`
        self.logits: Any = None  # (batch, N) float32
        self.kept: list[Any] = []  # offsets and workspaces: they live as long as the program
        self.launches: list[Launch] = []
        self.graph: Any = None
        self.timed: Any = None  # the same with events between the launches
        self.events: list[Any] = []
        self.nbytes = 0


class Engine:
    """A network prepacked for one precision, on the GPU that `numba.cuda` chooses.

    The layers are fused, in the order they run; `params` has their parameters by name. The
    precision is a key of `FORMATS`.
    """

    def __init__(self, layers: Sequence[Layer], params: Mapping[str, Any], precision: str) -> None:
        self.layers, self.params = layers, params
        self.gpu = driver.open_gpu()
        self.form = FORMATS[precision]
        self.instruction = choose_instruction(self.form.operands, self.gpu.capability)
        item = np.dtype(self.form.dtype).itemsize
        # 8 bytes a pixel, or 16 of float32, and an even number of them in a row: so each row of
        # the first layer's GEMM, 2 pixels further, begins at a multiple of 16 bytes.
        self.tiling = Tiling(
            item=item, group=4 // item, quantized=precision == "int8", rows=LARGE.rows,
            columns=TALL.columns, groups=STEP // 4, pixel=max(4, 8 // item), line=2,
        )  # fmt: skip
        with driver.errors("its weights"):
            self.stream = cuda.stream()
            self.operators = {
                name: cuda.jit(signature)(function)
                for name, (function, signature) in operators(self.form).items()
            }
            self.gemms: dict[Gemm, Any] = {}
            self.packed = {
                layer.name: self._pack(layer) for layer in layers if layer.op in ("conv", "linear")
            }
        self.programs: dict[Shape, Program] = {}

    def __call__(
        self, x: Array, record: Record | None = None, started: float | None = None
    ) -> Array:
        """Run the whole network on (N, 3, H, W) float32; return (N, num_classes) float32 logits.

        `record` and `started` are as for the CPU's engine.
        """
        began = started or perf_counter()
        self.gpu.check_process()
        logits = np.empty((len(x), self.layers[-1].out_c), np.float32)
        parts = max(1, -(-len(x) // BATCH))
        images = -(-len(x) // parts)
        calls: list[tuple[Any, ...]] = []
        with ONE_AT_A_TIME:
            for start in range(0, len(x), images):
                together = x[start : start + images]
                with driver.errors(f"{len(together)} images of {x.shape[2]} x {x.shape[3]}"):
                    program = self.program(together.shape)
                    program.pinned[...] = together
                    program.images.copy_to_device(program.pinned, stream=self.stream)
                    if record:
                        times = self._run_apart(program)
                        times[0][0] = began  # the image's way to here is the first step's
                        calls.append((self.layers, together.shape, len(calls), times))
                        began = perf_counter()
                    else:
                        self.replay(program)
                    whole = program.logits.copy_to_host(stream=self.stream)
                    self.stream.synchronize()
                logits[start : start + images] = whole[:, : logits.shape[1]]
        for call in calls:
            assert record
            record(*call)
        return logits

    def replay(self, program: Program) -> None:
        """Run all steps of a program on the images in its memory: one launch of its graph."""
        if program.graph is None:
            self._launch(program)  # once by hand: kernels are loaded at their first launch
            self.stream.synchronize()
            with driver.recording(self.stream) as graph:
                self._launch(program)
            program.graph = graph
        program.graph.launch(self.stream)

    def _launch(self, program: Program) -> None:
        for launch in program.launches:
            launch.kernel[launch.grid, launch.block, self.stream](*launch.arguments)

    def _run_apart(self, program: Program) -> Array:
        """Run with an event between the steps; tell when each began and ended.

        The events are part of a graph, too: between launches by hand the GPU would wait.
        """
        if program.timed is None:
            self.replay(program)  # so that all kernels are loaded
            self.stream.synchronize()
            program.events = [cuda.event() for _ in range(len(program.launches) + 1)]
            with driver.recording(self.stream) as program.timed:
                driver.record_event(program.events[0], self.stream)
                for launch, event in zip(program.launches, program.events[1:], strict=True):
                    launch.kernel[launch.grid, launch.block, self.stream](*launch.arguments)
                    driver.record_event(event, self.stream)
        self.stream.synchronize()
        called = perf_counter()
        program.timed.launch(self.stream)
        self.stream.synchronize()
        first = program.events[0]
        times = called + np.array([first.elapsed_time(event) / 1000 for event in program.events])
        return np.stack([times[:-1], times[1:]], axis=1)

    def run(self, shape: Shape, layer: Layer, *inputs: Array) -> Array:
        """Run one layer, as an operator of layers.py does, for a shape of the network's input.

        Activations are NHWC without padding, and float32 in place of 16 bits. The first layer
        reads NCHW.
        """
        at = self.layers.index(layer)
        self.gpu.check_process()
        with ONE_AT_A_TIME, driver.errors(f"{shape[0]} images of {shape[2]} x {shape[3]}"):
            program = self.program(shape)
            if layer.op == "input":
                program.images.copy_to_device(np.ascontiguousarray(inputs[0]))
            for name, value in zip(layer.inputs, inputs, strict=False):  # the image has no name
                self._put(program, name, value)
            launch = program.launches[at]
            launch.kernel[launch.grid, launch.block, self.stream](*launch.arguments)
            self.stream.synchronize()
            if layer.op == "linear":
                logits: Array = program.logits.copy_to_host()[:, : layer.out_c].copy()
                return logits
            number = program.plan.outputs[layer.name]
            buffer = program.plan.buffers[number]
            whole = program.memory[number].copy_to_host()[: math.prod(buffer.shape)]
            inside = buffer.inside(whole.reshape(buffer.shape))
            y = self._widen(inside[..., : layer.out_c])
            return y[:, 0, 0] if layer.op == "avgpool" else y

    def _put(self, program: Program, name: str, value: Array) -> None:
        """Write an activation into its buffer."""
        number = program.plan.outputs[name]
        buffer = program.plan.buffers[number]
        memory = program.memory[number].copy_to_host()
        whole = memory[: math.prod(buffer.shape)].reshape(buffer.shape)
        inside = buffer.inside(whole)[..., : value.shape[-1]]
        inside[...] = self._narrow(value).reshape(inside.shape).view(memory.dtype)
        program.memory[number].copy_to_device(memory)

    def _narrow(self, x: Array) -> Array:
        """Bring real numbers to the form in memory; eight bits and float32 are so already."""
        if self.form.out == "bf16":
            return (round_bf16_ref(np.asarray(x, np.float32)).view(np.int32) >> 16).astype(np.int16)
        if self.form.out == "tf32":
            return round_tf32_ref(x)
        return x.astype(self.form.dtype)

    def _widen(self, y: Array) -> Array:
        """Copy an activation back into the form that layers.py knows."""
        if self.form.out == "bf16":
            return (y.astype(np.int32) << 16).view(np.float32)
        if self.form.out == "f16":
            return np.ascontiguousarray(y).view(np.float16).astype(np.float32)
        return y.copy()

    def _pack(self, layer: Layer) -> Packed:
        """Lay a layer's weights out: a row a channel, its K in steps of 64 bytes."""
        p = self.params[layer.name]
        if self.form.operands == "u8s8":
            weight, bias, m = p.w_s8, p.bias_s32, p.x.scale * p.w_scale
            m = m / layer.qparams.scale if layer.qparams else m
        else:
            weight, bias = p.dequantize() if isinstance(p, Int8Params) else p
            m = bias
            weight = self._narrow(weight)
        reads = next(other for other in self.layers if other.name == layer.inputs[0])
        in_c = self.tiling.channels(reads)
        w = prepack(weight, layer.kernel, in_c, self.tiling.group, 1, self.tiling.groups)
        missing = -len(w) % LARGE.columns
        w = np.pad(w.reshape(len(w), -1), [(0, missing), (0, 0)])
        slabs = w.reshape(-1, len(column_order()), w.shape[1])[:, column_order()]
        vectors = [np.pad(values, (0, missing)) for values in (bias, m)]
        arrays = [slabs.reshape(w.shape), *vectors]
        return Packed(*(cuda.to_device(np.ascontiguousarray(array)) for array in arrays))

    def program(self, shape: Shape) -> Program:
        """Find the program for an NCHW shape of input, or make one."""
        if shape not in self.programs:
            held = sum(program.nbytes for program in self.programs.values())
            while self.programs and (len(self.programs) >= PLANS or held > KEPT):
                held -= self.programs.pop(next(iter(self.programs))).nbytes  # the oldest
            self.programs[shape] = self.allocate(shape)
        return self.programs[shape]

    def allocate(self, shape: Shape) -> Program:
        """Lay the network out for an NCHW shape of input, all images together."""
        return self._allocate(
            lay_out(self.layers, shape, self.tiling, Division(0, shape[0], shape[0]))
        )

    def _allocate(self, plan: Plan) -> Program:
        """Give a plan's buffers memory, and make a launch of each of its steps."""
        program = Program(plan)
        program.images = cuda.device_array(plan.shape, np.float32)
        program.pinned = cuda.pinned_array(plan.shape, np.float32)
        program.memory = [self._buffer(buffer) for buffer in plan.buffers]
        logits = plan.shape[0], self.tiling.channels(self.layers[-1])
        program.logits = cuda.device_array(logits, np.float32)
        program.launches = [self._describe(step, program) for step in plan.steps]
        arrays = [*program.memory, *program.kept, program.images, program.logits]
        program.nbytes = sum(array.nbytes for array in arrays)
        return program

    def _buffer(self, buffer: Buffer) -> Any:
        """Allocate a buffer, filled with the value of its padding."""
        stored = np.dtype(self.form.stored.name)
        size = math.prod(buffer.shape) + buffer.spare + SPARE
        memory = cuda.device_array((-(-size // 64) * 64,), stored)
        value = self.form.lowest if buffer.fill is None else buffer.fill
        blocks = -(-memory.size // THREADS)
        self.operators["fill"][blocks, THREADS, self.stream](memory, stored.type(value))
        return memory

    def _describe(self, step: Step, program: Program) -> Launch:
        """Make a step's launch."""
        layer = step.layer
        if step.gemm:
            return self._describe_gemm(step, program)
        y = program.memory[step.y.buffer]
        q = layer.qparams or QParams(np.float32(1), 0)
        if layer.op == "input":
            grid = (-(-step.out_w // THREADS), step.out_h, step.batch)
            arguments = program.images, y, self._strides(program, step.y), q.scale, q.zero_point
            return Launch(self.operators["input"], grid, (THREADS, 1, 1), arguments)
        assert step.x
        x = program.memory[step.x.buffer]
        if layer.op == "avgpool":
            shape = step.batch, step.in_h, step.in_w, step.channels
            p = self.params.get(layer.name) or QParams(np.float32(1), 0)
            m = np.float32(p.scale / (q.scale * np.float32(step.in_h * step.in_w)))
            zero_points = np.int32(p.zero_point), np.int32(q.zero_point)
            arguments = x, y, shape, self._strides(program, step.x), m, *zero_points
            grid = (-(-step.channels // THREADS), step.batch, 1)
            return Launch(self.operators["avgpool"], grid, (THREADS, 1, 1), arguments)
        assert (layer.kernel, layer.stride) == (3, 2)
        words = step.channels // self.tiling.group
        shape = step.batch, step.out_h, step.out_w, words
        strides = [self._strides(program, place, words=True) for place in (step.x, step.y)]
        arguments = x.view(np.int32), y.view(np.int32), shape, *strides
        across = min(words, 32)
        block = across, THREADS // across, 1
        grid = -(-words // across), -(-step.out_w // block[1]), step.batch * step.out_h
        return Launch(self.operators["maxpool"], grid, block, arguments)

    def _strides(self, program: Program, place: Any, words: bool = False) -> tuple[int, ...]:
        """Tell where the first pixel lies, and strides of images, rows and pixels, in values."""
        unit = 4 if words else self.tiling.item
        strides = program.plan.buffers[place.buffer].strides(self.tiling.item)
        return tuple(size // unit for size in (place.offset, *strides))

    def _describe_gemm(self, step: Step, program: Program) -> Launch:
        """Choose the tile of a convolution or of the classifier, and fill in its arguments."""
        layer, plan = step.layer, step.gemm
        assert plan and step.x
        last = step.y.buffer == LOGITS
        m_rows = step.batch * step.out_h * step.out_w
        packed = self.packed[layer.name]
        steps = plan.taps * plan.groups * 4 // STEP
        tile, splits = choose_tile(m_rows, step.channels, steps, self.gpu.processors)
        each = -(-steps // splits)
        y_offsets = plan.y_offsets.copy()
        y_offsets[m_rows:] = -1  # a block is larger than what is left for it
        grid = step.channels // tile.columns, -(-m_rows // tile.rows), -(-steps // each)
        kept = [cuda.to_device(plan.x_offsets), cuda.to_device(y_offsets)]
        if tile.splits:
            blocks = grid[0] * grid[1]
            kept.append(cuda.device_array((blocks * grid[2] * tile.rows * tile.columns,), np.int32))
            kept.append(cuda.to_device(np.zeros(blocks, np.uint32)))
        program.kept += kept
        values = dict.fromkeys(NAMES, 0) | dict(zip(
            ("x_offsets", "y_offsets", "workspace", "counters"), map(address, kept), strict=False
        ))  # fmt: skip
        values |= {
            "x": self._address(program, step.x), "y": self._address(program, step.y),
            "w": address(packed.w), "bias": address(packed.bias), "m": address(packed.m),
            "k_bytes": steps * STEP, "run": plan.groups * 4, "tap_stride": plan.tap_stride,
            "steps_each": each,
        }  # fmt: skip
        if step.residual:
            values["residual"] = self._address(program, step.residual)
        values |= self._scalars(layer)
        out = "logits" if last else self.form.out
        gemm = Gemm(self.instruction.name, tile, out, step.residual is not None)
        return Launch(self._kernel(gemm), grid, (tile.threads, 1, 1), Arguments(**values))

    def _scalars(self, layer: Layer) -> dict[str, Any]:
        """Tell an epilogue's numbers."""
        q, p = layer.qparams, self.params.get(layer.name)
        if not q:
            return {"low": 0.0 if layer.relu else -np.inf, "high": np.inf}
        scalars = {
            "low": -q.zero_point, "high": 255 - q.zero_point, "zero_point": q.zero_point
        }  # fmt: skip
        if isinstance(p, Int8Params) and p.residual:
            scalars["m_residual"] = np.float32(p.residual.scale / q.scale)
            scalars["residual_zero_point"] = p.residual.zero_point
        return scalars

    def _kernel(self, gemm: Gemm) -> Any:
        """Compile a kernel, once."""
        if gemm not in self.gemms:
            self.gemms[gemm] = cuda.jit(SIGNATURE)(gemm_function(gemm))
        return self.gemms[gemm]

    def _address(self, program: Program, place: Any) -> int:
        memory = program.logits if place.buffer == LOGITS else program.memory[place.buffer]
        return address(memory) + place.offset


def address(array: Any) -> int:
    """Tell where an array lies in the GPU's memory."""
    pointer: int = array.__cuda_array_interface__["data"][0]
    return pointer


def choose_instruction(operands: str, capability: tuple[int, int]) -> Instruction:
    """Choose how to multiply: with tensor cores, unless MINIRES_ISA names another set."""
    name = os.environ.get("MINIRES_ISA")
    name = name if name in SETS else next(iter(SETS))
    if operands not in SETS[name]:
        raise MiniresError(f"{name} cannot multiply {operands}; unset MINIRES_ISA")
    instruction = SETS[name][operands]
    if instruction.capability > capability:
        raise MiniresError(
            f"this GPU has compute capability {capability[0]}.{capability[1]}, and "
            f"{instruction.name} needs {instruction.capability[0]}.{instruction.capability[1]}"
        )
    return instruction


def choose_tile(m_rows: int, columns: int, steps: int, processors: int) -> tuple[Tile, int]:
    """Choose the largest tile of which there is one for each multiprocessor.

    Where even small tiles are too few, blocks share K: each at least 4 steps.
    """

    def count(tile: Tile) -> int:
        return -(-m_rows // tile.rows) * (columns // tile.columns)

    large = LARGE if columns % LARGE.columns == 0 else TALL
    if count(large) >= processors:
        return large, 1
    splits = max(1, min(SPLITS, 2 * processors // count(SMALL), steps // 4))
    return (SHARED, splits) if splits > 1 else (SMALL, 1)
