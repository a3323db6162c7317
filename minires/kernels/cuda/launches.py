"""A plan's steps as launches: which kernel, how many blocks, and where everything lies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from minires.errors import MiniresError
from minires.kernels.cuda.block import STEP, Tile
from minires.kernels.cuda.driver import AMPERE, Gpu
from minires.kernels.cuda.gemm import (
    LARGE,
    NAMES,
    SIGNATURE,
    SMALL,
    SPLIT,
    TALL,
    TINY,
    WIDE,
    Arguments,
    Gemm,
    gemm_function,
)
from minires.kernels.cuda.instructions import Instruction
from minires.kernels.cuda.operators import THREADS, Format, operators
from minires.kernels.plan import LOGITS, Place, Plan, Step, Tiling
from minires.layers import Int8Params, Layer
from minires.reference import QParams

SHORT = 4  # steps along K: a block with fewer mostly waits for its first copy and its stores
WORTH_SHARING = 32  # steps along K: with fewer, to add what each block has summed takes longer


class Packed(NamedTuple):
    """A layer's parameters in the GPU's memory, as the kernels read them."""

    w: Any  # (N, runs * run) in the order of `column_order`
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


class Launcher:
    """Makes the launches of a network in one precision; its kernels are compiled at first use."""

    def __init__(
        self, form: Format, tiling: Tiling, instruction: Instruction, gpu: Gpu,
        params: Mapping[str, Any], packed: Mapping[str, Packed],
    ) -> None:  # fmt: skip
        self.form = form
        self.tiling = tiling
        self.instruction = instruction
        self.gpu = gpu
        self.params = params
        self.packed = packed
        self.operators = {
            name: cuda.jit(signature)(function)
            for name, (function, signature) in operators(form).items()
        }
        self.gemms: dict[Gemm, Any] = {}

    def fill(self, memory: Any, value: Any, stream: Any) -> None:
        """Fill a buffer, padding and all."""
        blocks = -(-memory.size // THREADS)
        self.operators["fill"][blocks, THREADS, stream](memory, memory.dtype.type(value))

    def launch(self, step: Step, program: Program) -> Launch:
        """Make a step's launch."""
        makers = {"input": self._input, "maxpool": self._maxpool, "avgpool": self._avgpool}
        return makers.get(step.layer.op, self._gemm)(step, program)

    def _input(self, step: Step, program: Program) -> Launch:
        y = program.memory[step.y.buffer]
        q = step.layer.qparams or QParams(np.float32(1), 0)
        grid = -(-step.out_w // THREADS), step.out_h, step.batch
        arguments = program.images, y, self._strides(program, step.y), q.scale, q.zero_point
        return Launch(self.operators["input"], grid, (THREADS, 1, 1), arguments)

    def _maxpool(self, step: Step, program: Program) -> Launch:
        assert step.x
        assert (step.layer.kernel, step.layer.stride) == (3, 2)
        words = step.channels // self.tiling.group
        shape = step.batch, step.out_h, step.out_w, words
        x, y = (program.memory[place.buffer].view(np.int32) for place in (step.x, step.y))
        strides = [self._strides(program, place, words=True) for place in (step.x, step.y)]
        across = min(words, 32)
        block = across, THREADS // across, 1
        grid = -(-words // across), -(-step.out_w // block[1]), step.batch * step.out_h
        return Launch(self.operators["maxpool"], grid, block, (x, y, shape, *strides))

    def _avgpool(self, step: Step, program: Program) -> Launch:
        assert step.x
        x = program.memory[step.x.buffer]
        y = program.memory[step.y.buffer]
        q = step.layer.qparams or QParams(np.float32(1), 0)
        p = self.params.get(step.layer.name) or q
        m = np.float32(p.scale / (q.scale * np.float32(step.in_h * step.in_w)))
        shape = step.batch, step.in_h, step.in_w, step.channels
        zero_points = np.int32(p.zero_point), np.int32(q.zero_point)
        arguments = x, y, shape, self._strides(program, step.x), m, *zero_points
        grid = -(-step.channels // THREADS), step.batch, 1
        return Launch(self.operators["avgpool"], grid, (THREADS, 1, 1), arguments)

    def _strides(self, program: Program, place: Place, words: bool = False) -> tuple[int, ...]:
        """Tell where the first pixel lies, and strides of images, rows and pixels, in values."""
        unit = 4 if words else self.tiling.item
        strides = program.plan.buffers[place.buffer].strides(self.tiling.item)
        return tuple(size // unit for size in (place.offset, *strides))

    def _gemm(self, step: Step, program: Program) -> Launch:
        """Choose the tile of a convolution or of the classifier, and fill in its arguments."""
        layer = step.layer
        plan = step.gemm
        assert plan
        assert step.x
        last = step.y.buffer == LOGITS
        m_rows = step.batch * step.out_h * step.out_w
        packed = self.packed[layer.name]
        steps = plan.runs * plan.groups * 4 // STEP
        tile, splits = choose_tile(m_rows, step.channels, steps, self.gpu.processors)
        each = -(-steps // splits)
        y_offsets = plan.y_offsets.copy()
        y_offsets[m_rows:] = -1  # a block is larger than what is left for it
        grid = step.channels // tile.columns, -(-m_rows // tile.rows), -(-steps // each)
        if grid[1] >= 2**16:
            raise MiniresError(
                f"{step.batch} x {step.out_h} x {step.out_w} outputs are more blocks than a launch "
                "may have; take smaller images"
            )
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
            "k_bytes": steps * STEP, "run": plan.groups * 4, "run_stride": plan.run_stride,
            "steps_each": each,
        }  # fmt: skip
        if step.residual:
            values["residual"] = self._address(program, step.residual)
        values |= self._scalars(layer)
        out = "logits" if last else self.form.out
        turing = self.gpu.capability < AMPERE
        gemm = Gemm(self.instruction.name, tile, out, step.residual is not None, turing)
        return Launch(self._kernel(gemm), grid, (tile.threads, 1, 1), Arguments(**values))

    def _scalars(self, layer: Layer) -> dict[str, Any]:
        """Tell an epilogue's numbers."""
        q = layer.qparams
        p = self.params.get(layer.name)
        if not q:
            return {"low": 0.0 if layer.relu else -np.inf, "high": np.inf}
        scalars: dict[str, Any] = {"low": -q.zero_point, "high": 255 - q.zero_point}
        scalars["zero_point"] = q.zero_point
        if isinstance(p, Int8Params) and p.residual_qparams:
            scalars["m_residual"] = np.float32(p.residual_qparams.scale / q.scale)
            scalars["residual_zero_point"] = p.residual_qparams.zero_point
        return scalars

    def _kernel(self, gemm: Gemm) -> Any:
        """Compile a kernel, once."""
        if gemm not in self.gemms:
            self.gemms[gemm] = cuda.jit(SIGNATURE)(gemm_function(gemm))
        return self.gemms[gemm]

    def _address(self, program: Program, place: Place) -> int:
        memory = program.logits if place.buffer == LOGITS else program.memory[place.buffer]
        return address(memory) + place.offset


def address(array: Any) -> int:
    """Tell where an array lies in the GPU's memory."""
    pointer: int = array.__cuda_array_interface__["data"][0]
    return pointer


def choose_tile(m_rows: int, columns: int, steps: int, processors: int) -> tuple[Tile, int]:
    """Choose a layer's tile, and how many blocks share K; `steps` are those of 64 bytes along K.

    A large tile reads each operand less often. But it has to leave a block for each multiprocessor,
    and two where it can: while one copies or stores, the other multiplies. All limits here are
    what was fastest on an H100, layer by layer.
    """

    def count(tile: Tile) -> int:
        return -(-m_rows // tile.rows) * (columns // tile.columns)

    if columns % LARGE.columns == 0 and count(WIDE) >= processors:
        large = steps > SHORT and count(LARGE) >= 2 * processors
        return (LARGE if large else WIDE), 1
    for tile in (TALL, SMALL):
        if count(tile) >= processors:
            return tile, 1
    if steps < WORTH_SHARING or 4 * count(TINY) > processors:
        return TINY, 1
    return SPLIT, min(8, max(4, steps // 18))
