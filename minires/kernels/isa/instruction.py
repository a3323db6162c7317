"""Multiplying instructions, instruction sets, and the operands of a tile, as values.

All instructions share one shape. A group of 32 bits holds one float32, two bfloat16 or four u8,
neighbours along K. A vector instruction takes one row's group, copied to all lanes, and a vector of
weights with one group for each column. To each lane's sum it adds all products of that lane. A
matrix instruction takes several rows, and several groups of each, at once: in registers of its own
(AMX), or in vectors, whose lanes are then rows by columns (`minires.kernels.isa.pairs`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from minires.kernels.ir import X86

Emit = Callable[..., Any]
PER_GROUP = {"f32": 1, "bf16": 2, "u8s8": 4}  # products that a group holds, by the operands
# How many of an instruction a CPU may do in a cycle: by the number and the width of its units.
UNITS = (1 / 2, 1, 2)


@dataclass(frozen=True)
class Instruction:
    """An instruction that multiplies and adds, or a few instructions that do so together.

    To add one, write its `emit` and name it in an `ISA`: nothing else needs to know.
    """

    name: str
    operands: str  # f32, bf16 or u8s8 (activations u8, weights s8)
    emit: Emit  # writes ``acc + a * b`` in LLVM IR: (builder, acc, a, b) -> acc
    mnemonics: tuple[str, ...]  # regular expressions that must all occur in the assembly
    explained: str = ""  # its idea, if the name alone does not tell it
    rows: int = 1  # M: how many rows of a tile it multiplies at once
    groups: int = 1  # K: how many groups of each row it multiplies at once
    own_registers: bool = False  # whether it has registers beside the vectors
    # Groups of a row that a vector is loaded with, where one lane of it can be an operand: each is
    # multiplied in turn, and none is copied to all lanes.
    lanes_loaded: int = 1
    before: Emit | None = None  # applied to activations when they are loaded: (builder, a) -> a
    less: int = 0  # what that takes from each of them; the bias has to make up for it
    narrow: Emit | None = None  # rounds float32 to bfloat16, if the set has an instruction for it
    to_int: Emit | None = None  # rounds float32 to integers, where LLVM does so lane by lane
    sums: int = 12  # how many `minires peak` adds to in turn: they hide its latency, and all fit
    rates: tuple[float, ...] = UNITS  # how many a cycle CPUs can do; empty if nobody can say
    composed: bool = False  # made of another instruction, so its own peak would tell nothing new

    @property
    def products(self) -> int:
        """Count the products for one lane, or for one column of a register of its own."""
        rows = self.rows if self.own_registers else 1
        return PER_GROUP[self.operands] * rows * self.groups

    @property
    def side_by_side(self) -> int:
        """Count the groups of a column of weights that lie together in memory."""
        return 1 if self.own_registers else self.groups

    @property
    def multiple(self) -> int:
        """Count the groups of a step along K: each run of K is filled up to a multiple of it."""
        return self.groups * self.lanes_loaded

    @property
    def pixel(self) -> int:
        """Count the values that a pixel of the image is filled up to a multiple of.

        A step along K may go on behind a run, where its weights are zero. But 0 times infinity is
        NaN. So pixels of floats are filled up until a step ends where a run does. For registers of
        their own whole groups are enough: there a step is as short as the run.
        """
        whole = 1 if self.own_registers else self.multiple
        return PER_GROUP[self.operands] * whole if self.operands != "u8s8" else 1

    def prepare(self, builder: Any, a: Any) -> Any:
        """Bring activations that were loaded into the form that it multiplies."""
        return self.before(builder, a) if self.before else a

    @property
    def idea(self) -> str:
        """Say in a line for the table of `minires ladder` how it multiplies."""
        kind = "matrix" if self.rows > 1 else "vector"
        return self.explained or f"the {kind} instruction {self.name}"


@dataclass(frozen=True, eq=False)
class ISA:
    """An instruction set, as far as the kernels use it."""

    name: str
    features: frozenset[str]  # the CPU features that it needs, by LLVM's names
    lanes: int  # of 32 bits, in a vector
    instructions: Mapping[str, Instruction]  # by their operands
    tiles: Mapping[str, tuple[int, int]]  # the register tile: MR rows, and NR in vectors
    others: tuple[Instruction, ...] = ()  # slower ways that `minires peak` times beside these
    allowed: Callable[[], bool] = lambda: True  # whether the system lets this process use it
    family: str = X86  # of the CPUs that it belongs to


class Tile(NamedTuple):
    """The operands of one tile, in the order that a microkernel takes them.

    They are LLVM values: addresses and counts in int64, or in int32 for WebAssembly, and last a
    tuple of scalars.
    """

    x: Any  # the activations
    # MR + 1 int32: how many bytes behind x each row's first tap lies. The last one belongs to the
    # next tile's first row, which is fetched meanwhile. For a matrix instruction each 16 rows lie a
    # fixed stride apart, the same for all.
    x_offsets: Any
    w: Any  # the panel of weights: for each group along K, 32 bits for each of NR columns
    # K is `runs` runs, which begin `run_stride` bytes apart; a run is `groups` times 32 bits. A row
    # of a convolution's kernel is one run, because its columns are neighbours in NHWC. The groups
    # are a multiple of the instruction's; or fewer, if it has registers of its own.
    runs: Any
    groups: Any
    run_stride: Any
    # Weights that will be read later. With each group along K one cache line of them is fetched
    # into the second cache, then `later` moves on by `later_step` bytes. Matrix instructions are
    # too fast for that, and fetch none.
    later: Any
    later_step: Any
    bias: Any  # NR values, one for each column
    m: Any  # the same
    residual: Any  # a tensor laid out as y, or 0 for none
    y: Any  # the output
    # MR int32: how many elements behind y each row's first column goes. A matrix instruction skips
    # a row whose offset is below 0.
    y_offsets: Any
    scalars: Any  # those of `minires.kernels.epilogue.SCALARS`
