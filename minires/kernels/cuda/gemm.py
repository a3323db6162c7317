"""The kernel of convolutions and the classifier: a block's loop and an epilogue, made into one."""

import functools
from collections import namedtuple
from typing import Any, NamedTuple

from numba import types
from numba.cuda.extending import intrinsic

from minires.kernels.cuda.block import Block, Tile
from minires.kernels.cuda.epilogue import write_tile
from minires.kernels.cuda.instructions import INSTRUCTIONS

# A launch's arguments: addresses, counts of bytes and steps, then what the epilogue computes with.
ARGUMENTS = {
    types.int64: "x x_offsets w y y_offsets bias m residual workspace counters "
    "k_bytes run run_stride steps_each",
    types.float32: "m_residual low high",
    types.int32: "zero_point residual_zero_point",
}
NAMES = [name for names in ARGUMENTS.values() for name in names.split()]
TYPES = [kind for kind, names in ARGUMENTS.items() for _ in names.split()]
Arguments = namedtuple("Arguments", NAMES)  # type: ignore[misc]
SIGNATURE = types.void(*TYPES)

LARGE = Tile(2, 4, down=4, across=4, stages=3)  # 128 x 128
TALL = Tile(4, 2, down=2, across=4, stages=3)  # 128 x 64, for 64 channels
WIDE = Tile(1, 4, down=4, across=4, stages=3)  # 64 x 128, where K is short
SMALL = Tile(2, 2, down=2, across=4, stages=6)  # 64 x 64, for few pixels
TINY = Tile(2, 2, down=1, across=4, stages=6)  # 32 x 64, for fewer
SPLIT = TINY._replace(splits=True)  # the same, where several blocks share K
TILES = (LARGE, TALL, WIDE, SMALL, TINY, SPLIT)


class Gemm(NamedTuple):
    """What there is a kernel for each of."""

    instruction: str  # a key of `INSTRUCTIONS`
    tile: Tile
    out: str  # a key of `epilogue.ITEM`
    residual: bool
    turing: bool = False  # whether the GPU is older than Ampere, and has less to compute with

    @property
    def name(self) -> str:
        """Say what it is: gemm, the instruction, the tile, the output, and what else it does."""
        more = "_residual" * self.residual + "_splits" * self.tile.splits
        more += "_turing" * self.turing
        instruction = self.instruction.replace("-", "_")
        return f"gemm_{instruction}_{self.tile.rows}x{self.tile.columns}_{self.out}{more}"


@functools.cache
def gemm_function(gemm: Gemm) -> Any:
    """Write the Python function that `numba.cuda` compiles; it takes `ARGUMENTS`."""

    @intrinsic
    def gemm_block(_: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            fields = [builder.extract_value(values[0], i) for i in range(len(NAMES))]
            instruction = INSTRUCTIONS[gemm.instruction]
            block = Block(builder, instruction, gemm.tile, Arguments(*fields), gemm.turing)
            write_tile(block, block.sum_up(), gemm.out, gemm.residual)
            return context.get_dummy_value()

        return types.none(arguments), codegen

    source = f"def {gemm.name}({', '.join(NAMES)}):\n    gemm_block(({', '.join(NAMES)}))\n"
    scope: dict[str, Any] = {"gemm_block": gemm_block}
    exec(source, scope)  # Numba has no *arguments, and a profiler shows the function's name
    return scope[gemm.name]
