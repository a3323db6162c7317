"""The network as a program: weights prepacked once, buffers laid out once for a shape of input.

Activations lie in NHWC buffers with the padding of their reader already around them. So a GEMM's
row is the address of an output pixel's first tap, the next row of the kernel is a fixed stride
away, and no im2col matrix is ever written: im2col is implicit in the addresses.
"""

import math
import mmap
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.kernels.caches import room_in
from minires.kernels.operators import FORMATS, OPS, STEP, compile_network
from minires.kernels.prepack import aligned, prepack
from minires.kernels.simd import HEIGHT, ISA, available_isas, choose_isa, groups_at_once
from minires.kernels.threads import get_num_threads
from minires.layers import Array, Int8Params, Layer, Record, Shape
from minires.reference import QParams, round_bf16_ref
from minires.summary import summarize

LAST_CACHE = 2**25  # bytes of activations in use: the last cache has some tens of megabytes
PLANS = 4  # shapes of input whose buffers are kept
ONE_AT_A_TIME = threading.Lock()  # buffers are shared, and each run takes all threads anyway


class Buffer(NamedTuple):
    """An activation in memory: (batch, h, w, channels), with padding around and behind it."""

    memory: Array
    pad: int  # pixels on each side
    channels: int  # those that count; a microkernel writes whole panels

    @property
    def inner(self) -> Array:
        """View it without padding."""
        end = -self.pad or None
        return self.memory[:, self.pad : end, self.pad : end, : self.channels]

    def address(self, padding: int = 0) -> int:
        """Tell where the first pixel lies, or the first one of `padding` around it."""
        _, row, pixel, _ = self.memory.strides
        return self.memory.ctypes.data + (self.pad - padding) * (row + pixel)


class Packed(NamedTuple):
    """A layer's parameters as a microkernel reads them; N is filled up to whole panels."""

    w: Array  # (panels, taps * groups, columns, group)
    bias: Array  # (N,)
    m: Array  # (N,) float32


class Call(NamedTuple):
    """Steps that run one after another, for some of the images."""

    steps: slice
    images: slice
    y: int  # where the last of the steps writes


class Plan(NamedTuple):
    """What runs for one shape of input."""

    program: Array  # of STEP
    calls: list[Call]
    buffers: dict[str, Buffer]  # by layer: two that are not alive together may share one
    logits: Array  # (batch, N) float32
    tables: list[Array]  # what the program has addresses of


class Division(NamedTuple):
    """How many images of a size go through the network at once: few, and from a step on more.

    In the first steps activations are large, and those of a few images fill a cache. In the last
    ones weights are, which each call reads anew.
    """

    late: int  # that step; 0 where there is none
    few: int
    more: int


class Engine:
    """A network prepacked for one precision, on this machine.

    Parameters
    ----------
    layers : list of Layer
        The fused network, in the order it runs.
    params : mapping
        Each layer's parameters, by its name, as the NumPy operators take them.
    precision : str
        A key of `FORMATS`.
    isa : ISA, optional
        One that this machine has; `choose_isa` chooses unless given.
    threads : int, optional
        `get_num_threads` tells unless given.
    """

    def __init__(self, layers: list[Layer], params: Mapping[str, Any], precision: str,
                 isa: ISA | None = None, threads: int | None = None) -> None:  # fmt: skip
        self.layers, self.params, self.threads = layers, params, threads
        self.isa, self.form = isa or choose_isa(), FORMATS[precision]
        if self.isa not in available_isas() or (threads is not None and threads < 1):
            raise MiniresError("an engine wants one of available_isas, and at least one thread")
        self.rows, vectors = self.isa.tiles[self.form.kind]
        self.columns = vectors * self.isa.lanes
        self.at_once = groups_at_once(self.isa.instructions[self.form.kind])
        # Bytes that one step leaves to the next, while activations are large: matrix instructions
        # outrun the last cache.
        matrix = self.at_once > 1
        self.room = room_in(2) * (threads or get_num_threads()) if matrix else LAST_CACHE
        self.execute = compile_network(precision, self.isa.name)
        self.channels = {layer.name: self._channels_of(layer) for layer in layers}
        self.packed = {
            layer.name: self._pack(layer) for layer in layers if layer.op in ("conv", "linear")
        }
        self.plans: dict[tuple[Shape, bool], Plan] = {}
        self.divisions: dict[Shape, Division] = {}
        self.ticks = np.zeros(len(layers) + 1, np.int64)  # between the steps, when they last ran

    def __call__(
        self, x: Array, record: Record | None = None, started: float | None = None
    ) -> Array:
        """Run the whole network.

        Parameters
        ----------
        x : ndarray
            (N, 3, H, W) float32.
        record : callable, optional
            Told of the steps of each call, when they have run.
        started : float, optional
            When the caller began with x, as time.perf_counter has it: what was done since then
            counts as the first step's.

        Returns
        -------
        ndarray
            Logits, (N, num_classes) float32.
        """
        began = started or perf_counter()
        x = np.ascontiguousarray(x)
        logits = np.empty((len(x), self.layers[-1].out_c), np.float32)
        parts = -(-len(x) // self._divide(x.shape).more)
        images = -(-len(x) // parts)  # alike: a last image by itself would take as long as alone
        calls, threads = 0, self.threads or get_num_threads()
        with ONE_AT_A_TIME:
            for start in range(0, len(x), images):
                together = x[start : start + images]
                plan = self.plan(together.shape)
                for steps, which, y in plan.calls:
                    part = together[which]
                    plan.program[0]["x"] = part.ctypes.data
                    plan.program[steps.stop - 1]["y"] = y
                    called = perf_counter()
                    self.execute(plan.program, self.ticks, steps.start, steps.stop, threads)
                    if record:
                        between = self.ticks[steps.start : steps.stop + 1]
                        times = _in_seconds(between, called, perf_counter())
                        times[0][0] = began  # the image's way to here is the first step's
                        record(self.layers[steps], part.shape, calls, times)
                    began, calls = perf_counter(), calls + 1
                logits[start : start + images] = plan.logits[:, : logits.shape[1]]
        return logits

    def _divide(self, shape: Shape) -> Division:
        """Count the images whose activations stay in a cache from one step to the next."""
        size = shape[1:]
        if size not in self.divisions:
            item = np.dtype(self.form.activation).itemsize
            y = [item * math.prod(row.output_shape) for row in summarize(self.layers, *size[1:])]
            w = [p.w.nbytes if (p := self.packed.get(layer.name)) else 0 for layer in self.layers]
            # Where a residual has been added, nothing else is left for later steps to read.
            ends = [i for i, layer in enumerate(self.layers[:-1]) if layer.inputs[1:]]
            late = next((i + 1 for i in ends if w[i + 1] > y[i] + y[i + 1]), 0)
            few = max(1, self.room // (2 * max(y)))  # one is read while another is written
            more = max(few, LAST_CACHE // (2 * max(y[late:]))) if late else few
            self.divisions[size] = Division(late, few, more)
        return self.divisions[size]

    def run(self, shape: Shape, layer: Layer, *inputs: Array) -> Array:
        """Run one layer, as an operator of layers.py does.

        Parameters
        ----------
        shape : tuple of int
            That of the network's input.
        layer : Layer
            One of the network's.
        *inputs : ndarray
            NHWC, without padding; for the first layer NCHW.

        Returns
        -------
        ndarray
            NHWC, without padding; float32 in place of bfloat16.
        """
        at = self.layers.index(layer)
        with ONE_AT_A_TIME:
            plan = self.plan(shape, whole=True)
            first = np.ascontiguousarray(inputs[0])
            if layer.op == "input":
                plan.program[at]["x"] = first.ctypes.data
            for name, value in zip(layer.inputs, inputs, strict=False):  # the image has no name
                inner = plan.buffers[name].inner
                inner[...] = self._narrow(value).reshape(inner.shape)
            self.execute(plan.program, self.ticks, at, at + 1, self.threads or get_num_threads())
            if layer.op == "linear":
                return plan.logits[:, : layer.out_c].copy()
            y = self._widen(plan.buffers[layer.name].inner)
            return y[:, 0, 0] if layer.op == "avgpool" else y

    def time_step(
        self, program: Array, at: int, execute: Callable[..., None] | None = None
    ) -> float:
        """Run one step on what lies in the buffers, and tell the seconds it took.

        Parameters
        ----------
        program : ndarray
            Of `STEP`: that of one of this engine's plans, or a changed copy of it.
        at : int
            Which step.
        execute : callable, optional
            What runs it, from `compile_network`, in place of the engine's own.
        """
        threads, execute = self.threads or get_num_threads(), execute or self.execute
        with ONE_AT_A_TIME:
            started = perf_counter()
            execute(program, self.ticks, at, at + 1, threads)
            return perf_counter() - started

    def _narrow(self, x: Array) -> Array:
        """Bring an activation, or a weight, from the form that layers.py knows to memory's."""
        return _bf16_bits(x) if self.form.kind == "bf16" else x

    def _widen(self, y: Array) -> Array:
        """Copy an activation back into the form that layers.py knows."""
        if self.form.kind == "bf16":
            return (y.astype(np.int32) << 16).view(np.float32)
        return y.copy()

    def _channels_of(self, layer: Layer) -> int:
        """Count the channels that a layer's output has in memory: whole panels, but for images."""
        panels = -(-layer.out_c // self.columns)
        return layer.out_c if layer.op == "input" else panels * self.columns

    def _pack(self, layer: Layer) -> Packed:
        p = self.params[layer.name]
        if self.form.kind == "u8s8":
            weight, bias, m = p.w_s8, p.bias_s32, p.x.scale * p.w_scale
            m = m / layer.qparams.scale if layer.qparams else m
        else:
            weight, bias = p.dequantize() if isinstance(p, Int8Params) else p
            weight, m = self._narrow(weight), bias
        w = prepack(
            weight, layer.kernel, self.channels[layer.inputs[0]], self.form.group, self.columns,
            self.at_once,
        )  # fmt: skip
        vectors = [aligned((len(w) * self.columns,), vector.dtype) for vector in (bias, m)]
        for vector, values in zip(vectors, (bias, m), strict=True):
            vector[: len(values)] = values
        if isinstance(weight.base, mmap.mmap):  # what was read of a file need not stay in memory
            weight.base.madvise(mmap.MADV_DONTNEED)
        return Packed(w, *vectors)

    def _block(self, rows: int, x: Array, w: Array) -> int:
        """Choose how many rows of tiles meet all panels before the next rows do.

        Weights that L2 has room for beside much else are read from there for each block, whose
        activations stay in L1, by the side of a panel that passes. Others come from afar: then a
        block's activations stay in L2; or there is one block, if reading all of them for each
        panel is less.
        """
        # Rows of a 3x3 share most of what they read; a 1x1 with a stride reads but a part.
        bytes_of_row = min(4 * w.shape[1] * self.rows, -(-x.nbytes // rows))
        near = w.nbytes <= room_in(2) // 4
        block = (room_in(1) // 3 if near else room_in(2) // 4) // bytes_of_row
        block = min(max(1, block), rows)
        fewer = w.nbytes * -(-rows // block) <= len(w) * rows * bytes_of_row
        return block if near or fewer else rows

    def plan(self, shape: Shape, whole: bool = False) -> Plan:
        """Find the plan for a shape of input, or lay one out.

        Parameters
        ----------
        shape : tuple of int
            NCHW.
        whole : bool
            Whether all images take each step together; else as `Division` has it.
        """
        if (shape, whole) not in self.plans:
            while len(self.plans) >= PLANS:
                del self.plans[next(iter(self.plans))]  # the oldest
            self.plans[shape, whole] = self._lay_out(shape, whole)
        return self.plans[shape, whole]

    def _lay_out(self, shape: Shape, whole: bool) -> Plan:
        batch, channels, height, width = shape
        late, few, _ = self._divide(shape)
        few = max(n for n in range(1, min(few, batch) + 1) if batch % n == 0)
        split = 0 if whole or few == batch else late
        readers = {layer.name: [r for r in self.layers if layer.name in r.inputs]
                   for layer in self.layers}  # fmt: skip
        program = np.zeros(len(self.layers), STEP)
        logits = aligned((batch + 1, self.channels[self.layers[-1].name]), np.float32)
        plan = Plan(program, [], {}, logits[:batch], [])
        free: defaultdict[Any, list[Buffer]] = defaultdict(list)  # by what they are like
        keys: dict[str, Any] = {}
        image: Shape = (height, width, channels)
        shapes: dict[str, Shape] = {}

        def let_go(reader: Layer, names: Sequence[str]) -> None:
            for name in names:
                if readers[name][-1] is reader:
                    free[keys[name]].append(plan.buffers[name])

        for at, (layer, step) in enumerate(zip(self.layers, program, strict=True)):
            x = shapes[layer.inputs[0]][1:] if layer.inputs else image
            y = layer.output_shape((few if at < split - 1 else batch, *x))  # all are collected
            shapes[layer.name] = y = (y[0], 1, 1, y[1]) if len(y) == 2 else y
            if layer.op != "linear":
                keys[layer.name] = key = self._buffer_key(layer, y, readers[layer.name])
                # An output may take its residual's place: a tile reads there, then it writes.
                let_go(layer, layer.inputs[1:])
                like = free[key]
                plan.buffers[layer.name] = like.pop() if like else self._allocate(layer, *key)
                let_go(layer, layer.inputs[:1])
            self._describe(layer, step, plan)
        stretches = [(slice(0, split), few), (slice(split, len(program)), batch)]
        for steps, images in stretches if split else stretches[1:]:
            address, stride = (int(program[steps.stop - 1][name]) for name in ("y", "y_image"))
            plan.calls.extend(
                Call(steps, slice(at, at + images), address + at * stride)
                for at in range(0, batch, images)
            )
        return plan

    def _buffer_key(self, layer: Layer, shape: Shape, readers: list[Layer]) -> Any:
        """Tell what a buffer has to be like: its shape, the padding, and what that holds."""
        multiplied = [r for r in readers if r.inputs[0] == layer.name]
        pad = max((r.padding for r in multiplied), default=0)
        if any(reader.op == "maxpool" for reader in readers):
            # Never wins. bfloat16 is compared by its bits, as integers: what a ReLU leaves has
            # their order, -0.0 is the least of them.
            fill = -np.inf if self.form.kind == "f32" else np.iinfo(self.form.activation).min
        else:
            fill = layer.qparams.zero_point if self.form.kind == "u8s8" and layer.qparams else 0
        return shape, pad, fill if pad else 0

    def _allocate(self, layer: Layer, shape: Shape, pad: int, fill: float) -> Buffer:
        batch, height, width, channels = shape
        padded = (batch, height + 2 * pad, width + 2 * pad, self.channels[layer.name])
        # Behind it, a row for what a tile has too many; or, since a matrix register is loaded
        # whole, up to 15 rows, and less than 64 bytes of K.
        stride = max(reader.stride for reader in self.layers)
        spare = (HEIGHT - 1) * stride * padded[-1] + 64 if self.at_once > 1 else padded[-1]
        memory = aligned((math.prod(padded) + spare,), self.form.activation, fill)
        return Buffer(memory[: math.prod(padded)].reshape(padded), pad, channels)

    def _describe(self, layer: Layer, step: Any, plan: Plan) -> None:
        """Fill in a step of the program."""
        step["op"], step["kernel"], step["stride"] = OPS[layer.op], layer.kernel, layer.stride
        y = None if layer.op == "linear" else plan.buffers[layer.name]
        if y is not None:
            step["y"] = y.address()
            step["batch"], step["out_h"], step["out_w"], step["channels"] = y.memory.shape
            step["out_h"], step["out_w"] = y.inner.shape[1:3]
            step["y_image"], step["y_row"] = y.memory.strides[:2]
        if layer.inputs:
            x = plan.buffers[layer.inputs[0]]
            step["x"] = x.address(layer.padding)
            step["batch"], step["in_h"], step["in_w"], _ = x.inner.shape
            step["x_image"], step["x_row"] = x.memory.strides[:2]
            if layer.op in ("conv", "linear"):
                self._describe_gemm(layer, step, x, y, plan)
        step["low"], step["high"] = 0.0 if layer.relu else -np.inf, np.inf
        if q := layer.qparams:
            step["low"], step["high"] = -q.zero_point, 255 - q.zero_point
            step["scale"], step["zero_point"] = q
            p = self.params.get(layer.name)
            if isinstance(p, Int8Params) and p.residual:
                step["m_residual"] = p.residual.scale / q.scale
                step["residual_zero_point"] = p.residual.zero_point
            if isinstance(p, QParams):  # the average pool
                pixels = np.float32(step["in_h"] * step["in_w"])
                step["average"] = p.scale / (q.scale * pixels)
                step["x_zero_point"] = p.zero_point

    def _describe_gemm(
        self, layer: Layer, step: Any, x: Buffer, y: Buffer | None, plan: Plan
    ) -> None:
        """Fill in what the tiles need: where each row of the GEMM is read and written."""
        batch = len(x.memory)
        if y is None:
            y_strides = [plan.logits.shape[1], 0, 0]
            step["y"], out_h, out_w = plan.logits.ctypes.data, 1, 1
            behind = plan.logits.size
        else:
            y_strides = [n // y.memory.itemsize for n in y.memory.strides[:3]]
            _, out_h, out_w, _ = y.inner.shape
            # Behind these images: there others begin, if they are yet to be computed.
            assert batch == len(y.memory) or y.pad == 0
            inside = y.address() - y.memory.ctypes.data
            behind = batch * y_strides[0] - inside // y.memory.itemsize
        image, row, pixel, _ = x.memory.strides
        x_strides = [image, row * layer.stride, pixel * layer.stride]
        pixels = np.indices((batch, out_h, out_w), np.int64).reshape(3, -1)
        x_rows, y_rows = (np.array(strides) @ pixels for strides in (x_strides, y_strides))
        if self.at_once > 1:
            line = out_w if layer.stride > 1 else len(x_rows)
            x_rows, y_rows = _in_runs(x_rows, y_rows, x_strides[2], line, self.rows // HEIGHT)
        # Rows that are missing in the last tile are the last row again, written behind the output.
        # So is what a tile after it would begin with.
        missing = -len(x_rows) % self.rows
        x_rows = np.pad(x_rows, (0, missing + 1), mode="edge")
        tables = [x_rows, np.pad(y_rows, (0, missing), constant_values=behind)]
        if max(offsets.max(initial=0) for offsets in tables) >= 2**31:
            raise MiniresError(f"a batch of {batch} is too large; classify fewer at once")
        tables = [offsets.astype(np.int32) for offsets in tables]
        plan.tables.extend(tables)
        step["x_offsets"], step["y_offsets"] = (table.ctypes.data for table in tables)
        w, bias, m = self.packed[layer.name]
        step["w"], step["bias"], step["m"] = w.ctypes.data, bias.ctypes.data, m.ctypes.data
        step["panels"], step["panel_bytes"] = len(w), w.strides[0]
        step["taps"], step["groups"] = layer.kernel, w.shape[1] // layer.kernel
        step["tap_stride"] = row
        step["rows"] = len(tables[1]) // self.rows
        step["block"] = self._block(int(step["rows"]), x.memory, w)
        if layer.inputs[1:]:
            residual = plan.buffers[layer.inputs[1]]
            assert y is not None
            assert (residual.pad, residual.memory.shape[1:]) == (y.pad, y.memory.shape[1:])
            step["residual"] = residual.address()


def _in_seconds(ticks: Array, started: float, ended: float) -> Array:
    """Tell when each step began and ended, of steps that took from start to end.

    Ticks are those of a clock of unknown rate: all of them took all of the time, and the call's
    own microseconds are shared out among them.
    """
    ticks = ticks - ticks[0]
    times = started + (ended - started) / max(1, int(ticks[-1])) * ticks
    return np.stack([times[:-1], times[1:]], axis=1)


def _in_runs(x: Array, y: Array, step: int, line: int, together: int) -> tuple[Array, Array]:
    """Arrange GEMM rows as matrix registers take them: 16 at a time, a fixed step apart in x.

    Places that lie between the last pixel of a line and the first of the next count as rows too,
    whose y is -1: they are multiplied, but not written.

    Parameters
    ----------
    x, y : ndarray
        Offsets of rows, in the order of pixels.
    step : int
        From one x to the next, in bytes.
    line : int
        After how many rows a run may not go on. With a stride of 2 half of all places would lie
        between two lines.
    together : int
        Runs in a tile.
    """
    lines = x.reshape(-1, line)
    place = (lines - lines[:, :1]) // step
    first = np.arange(len(lines))[:, None] * (place.max() // HEIGHT + 1)
    place, run = place.ravel(), (first + place // HEIGHT).ravel()
    used, run = np.unique(run, return_inverse=True)  # a run may hold nothing but padding
    shape = (-(-len(used) // together) * together, HEIGHT)
    in_x, in_y = np.zeros(shape, x.dtype), np.full(shape, -1, y.dtype)
    place %= HEIGHT
    in_x[run] = (x - place * step)[:, None] + np.arange(HEIGHT) * step
    in_x[len(used) :] = in_x[len(used) - 1]
    in_y[run, place] = y
    return in_x.ravel(), in_y.ravel()


def _bf16_bits(x: Array) -> Array:
    """Round float32 to bfloat16, as the int16 of its bits."""
    return (round_bf16_ref(x).view(np.int32) >> 16).astype(np.int16)
