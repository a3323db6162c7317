"""What a multiplying instruction and an instruction set are, as values.

All instructions share one shape. A group of 32 bits holds one float32, two bfloat16 or four u8,
neighbours along K. A vector instruction takes a group of one row, in all lanes, and a vector of
weights that has a group for each column; to each lane's sum it adds all products of that lane. A
matrix instruction takes several rows, and several groups of each, at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Emit = Callable[..., Any]
# How many of an instruction a CPU may do in a cycle: by the number and the width of its units.
UNITS = (1 / 2, 1, 2)


@dataclass(frozen=True)
class Instruction:
    """An instruction that multiplies and adds; or a few of them that do so together.

    To add one, write its `emit` and name it in an `ISA`: nothing else needs to know.
    """

    name: str
    operands: str  # what it multiplies: f32, bf16 or u8s8 (activations u8, weights s8)
    per_group: int  # products in 32 bits
    emit: Emit  # ``acc + a * b`` in LLVM IR: (builder, acc, a, b) -> acc
    mnemonics: tuple[str, ...]  # what an assembler calls it, as regular expressions: each occurs
    idea: str  # a line for the table of `minires ladder`
    rows: int = 1  # M: of the tile, that it takes at once
    groups: int = 1  # K: of 32 bits, that it takes at once
    narrow: Emit | None = None  # to bfloat16, where it comes with an instruction for that
    sums: int = 12  # how many a peak keeps: enough to hide its latency, few enough for registers
    rates: tuple[float, ...] = UNITS  # how many a cycle CPUs do of `emit`; empty if nobody can say
    composed: bool = False  # of another instruction, whose peak says all there is to say

    @property
    def products(self) -> int:
        """Count the products of a lane, or of a column of a matrix register."""
        return self.per_group * self.rows * self.groups


@dataclass(frozen=True, eq=False)
class ISA:
    """An instruction set, as far as the kernels use it."""

    name: str
    features: frozenset[str]  # what LLVM calls the extensions that it takes
    lanes: int  # of 32 bits, in a vector
    instructions: Mapping[str, Instruction]  # by their operands
    tiles: Mapping[str, tuple[int, int]]  # MR, and NR in vectors: the register tile
    others: tuple[Instruction, ...] = ()  # slower ways that `minires peak` times beside these
    allowed: Callable[[], bool] = lambda: True  # whether the system lets this process use it
