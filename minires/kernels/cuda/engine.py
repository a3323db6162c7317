"""The network on an NVIDIA GPU: the same plan, given the GPU's memory, and run as one CUDA graph.

A launch costs the host tens of microseconds, and a network has 57 of them. So they are recorded
once for a shape of input; from then on one call replays them all.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.core import config

from minires.backends import Ran, Record
from minires.errors import MiniresError
from minires.kernels.cuda import driver
from minires.kernels.cuda.block import STEP
from minires.kernels.cuda.fragments import column_order
from minires.kernels.cuda.gemm import LARGE, TALL
from minires.kernels.cuda.instructions import choose_instruction
from minires.kernels.cuda.launches import Launcher, Packed, Program
from minires.kernels.cuda.operators import FORMATS
from minires.kernels.pack import from_bf16, prepack, to_bf16
from minires.kernels.plan import Buffer, Division, Plan, Tiling, lay_out
from minires.layers import Array, Int8Params, Layer, Shape
from minires.reference import round_tf32_ref

BATCH = 128  # images that go through together, at most
PLANS = 4  # shapes of input whose buffers are kept
KEPT = 2**33  # bytes of buffers; beyond them the oldest go when a new shape comes
SPARE = 256  # values behind a buffer that a step along K may read, and that count for nothing
ONE_AT_A_TIME = threading.Lock()  # buffers are shared
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # of few blocks: a single image has no more


class Engine:
    """A network prepacked for one precision, on the GPU that `numba.cuda` chooses.

    The layers are fused, in the order they run; `params` has their parameters by name. The
    precision is a key of `FORMATS`.
    """

    def __init__(self, layers: Sequence[Layer], params: Mapping[str, Any], precision: str) -> None:
        self.layers, self.params = layers, params
        self.gpu = driver.open_gpu()
        self.form = FORMATS[precision]
        instruction = choose_instruction(self.form.operands, self.gpu.capability)
        item = np.dtype(self.form.dtype).itemsize
        # 8 bytes a pixel, or 16 of float32, and an even number of them in a row: so each row of
        # the first layer's GEMM, 2 pixels further, begins at a multiple of 16 bytes.
        self.tiling = Tiling(
            item=item, group=4 // item, quantized=precision == "int8", rows=LARGE.rows,
            columns=TALL.columns, groups=STEP // 4, pixel=max(4, 8 // item), line=2,
        )  # fmt: skip
        with ONE_AT_A_TIME, driver.errors("its weights"):
            self.stream = cuda.stream()
            packed = {
                layer.name: self._pack(layer) for layer in layers if layer.op in ("conv", "linear")
            }
            self.launcher = Launcher(self.form, self.tiling, instruction, self.gpu, params, packed)
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
        parts = max(1, -(-len(x) // most_images(*x.shape[2:])))
        images = -(-len(x) // parts)
        calls: list[Ran] = []
        with ONE_AT_A_TIME:
            for start in range(0, len(x), images):
                together = x[start : start + images]
                with driver.errors("a run"):
                    program = self.program(together.shape)
                    program.pinned[...] = together
                    program.images.copy_to_device(program.pinned, stream=self.stream)
                    if record:
                        times = self.run_apart(program)
                        times[0][0] = began  # the image's way to here is the first step's
                        calls.append(Ran(self.layers, together.shape, len(calls), times))
                        began = perf_counter()
                    else:
                        self.replay(program)
                    whole = program.logits.copy_to_host(stream=self.stream)
                    self.stream.synchronize()
                logits[start : start + images] = whole[:, : logits.shape[1]]
        for call in calls:
            assert record
            record(call)
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

    def run_apart(self, program: Program) -> Array:
        """Run with an event between the steps; tell when each began and ended.

        The events are part of a graph, too: between launches by hand the GPU would wait.
        """
        if program.timed is None:
            self.replay(program)  # so that all kernels are loaded
            self.stream.synchronize()
            program.events = [cuda.event() for _ in range(len(program.launches) + 1)]
            with driver.recording(self.stream) as timed:
                driver.record_event(program.events[0], self.stream)
                for launch, event in zip(program.launches, program.events[1:], strict=True):
                    launch.kernel[launch.grid, launch.block, self.stream](*launch.arguments)
                    driver.record_event(event, self.stream)
            program.timed = timed
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
        with ONE_AT_A_TIME, driver.errors("a layer"):
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
            return to_bf16(np.asarray(x, np.float32))
        if self.form.out == "tf32":
            return round_tf32_ref(x)
        return x.astype(self.form.dtype)

    def _widen(self, y: Array) -> Array:
        """Copy an activation back into the form that layers.py knows."""
        if self.form.out == "bf16":
            return from_bf16(y)
        if self.form.out == "f16":
            return np.ascontiguousarray(y).view(np.float16).astype(np.float32)
        return y.copy()

    def _pack(self, layer: Layer) -> Packed:
        """Lay a layer's weights out: a row a channel, its K in steps of 64 bytes."""
        p = self.params[layer.name]
        if self.form.operands == "u8s8":
            weight = p.w_s8
            bias = p.bias_s32
            m = p.x_qparams.scale * p.w_scale
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
            try:
                self.programs[shape] = self.allocate(shape)
            except MiniresError:
                if not self.programs:
                    raise
                self.programs.clear()  # other shapes may hold the memory that this one needs
                self.programs[shape] = self.allocate(shape)
        return self.programs[shape]

    def allocate(self, shape: Shape) -> Program:
        """Lay the network out for an NCHW shape of input, all images together."""
        plan = lay_out(self.layers, shape, self.tiling, Division(0, shape[0], shape[0]))
        values = sum(math.prod(buffer.shape) for buffer in plan.buffers)
        gigabytes = (values * self.tiling.item + 4 * math.prod(shape)) / 1e9
        images = f"{shape[0]} images of {shape[2]} x {shape[3]}"
        with driver.errors(f"{images}, which take {gigabytes:.1f} GB"):
            return self._allocate(plan)

    def _allocate(self, plan: Plan) -> Program:
        """Give a plan's buffers memory, and make a launch of each of its steps."""
        program = Program(plan)
        program.images = cuda.device_array(plan.shape, np.float32)
        program.pinned = cuda.pinned_array(plan.shape, np.float32)
        program.memory = [self._buffer(buffer) for buffer in plan.buffers]
        logits = plan.shape[0], self.tiling.channels(self.layers[-1])
        program.logits = cuda.device_array(logits, np.float32)
        program.launches = [self.launcher.launch(step, program) for step in plan.steps]
        arrays = [*program.memory, *program.kept, program.images, program.logits]
        program.nbytes = sum(array.nbytes for array in arrays)
        return program

    def _buffer(self, buffer: Buffer) -> Any:
        """Allocate a buffer, filled with the value of its padding."""
        stored = np.dtype(self.form.stored.name)
        size = math.prod(buffer.shape) + buffer.spare + SPARE
        memory = cuda.device_array((-(-size // 64) * 64,), stored)
        value = self.form.lowest if buffer.fill is None else buffer.fill
        self.launcher.fill(memory, value, self.stream)
        return memory


def most_images(height: int, width: int) -> int:
    """Tell how many images of a size may go together: a launch has at most 65,535 rows of blocks.

    The first convolution has a quarter of the image's pixels, 64 or more in a block, and the
    max-pool a row of blocks for each row of its output.
    """
    rows = 2**16 - 1
    return max(1, min(BATCH, rows * 64 * 4 // (height * width), rows * 4 // height))
