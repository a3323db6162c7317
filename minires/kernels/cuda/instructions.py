"""Ways to multiply on an NVIDIA GPU, as values.

A GPU's cores multiply one word in each lane of a warp: `fma`, or `dp4a` with four bytes in a word.
Its tensor cores multiply whole matrices: a warp's 32 lanes hold 16 rows of activations and 8
columns of weights together, 32 bytes of K of each, and 4 of the 16 x 8 sums a lane. How many
products 32 bytes are is the only difference between the tensor cores' formats. Who holds which byte
is said by `fragments.py`, in NumPy. The tensor cores of a Turing card (compute capability 7.5) take
a half or a quarter at once, so two or four instructions stand in the place of one.
"""

import os
from dataclasses import dataclass
from typing import Any

from minires.errors import MiniresError
from minires.kernels.cuda.fragments import pieces
from minires.kernels.cuda.ptx import multiply_matrices
from minires.kernels.ir import F32, I32, Builder, Value, inline_asm
from minires.kernels.isa import ISAS


@dataclass(frozen=True)
class Instruction:
    """An instruction that multiplies and adds, in one lane or for a warp."""

    name: str
    operands: str  # what it multiplies: f32, tf32, f16, bf16 or u8s8 (activations u8, weights s8)
    item: int  # bytes of an operand
    mnemonic: str  # in PTX
    sums: Any  # the type of a sum
    capability: tuple[int, int]  # of the GPUs that have it, at least
    rows: int = 0  # of A, where a warp's lanes multiply together
    depth: int = 0  # bytes of K, likewise

    @property
    def warp(self) -> bool:
        """Whether a warp's lanes multiply together."""
        return self.rows > 0

    @property
    def products(self) -> int:
        """Count a lane's share of the products: those of a word, or a 32nd of a warp's."""
        return self.rows * 8 * (self.depth // self.item) // 32 if self.warp else 4 // self.item

    @property
    def times(self) -> int:
        """Count the instructions that `multiply` writes."""
        return len(pieces(self.rows, self.depth)) if self.warp else 1

    def multiply(self, builder: Builder, sums: Any, a: Any, b: Any) -> Any:
        """Write ``sums + a * b``: of one word each, or of fragments: 4 sums, 4 words and 2."""
        if not self.warp:
            return _multiply_words(builder, self, sums, a, b)
        sums = list(sums)
        for piece in pieces(self.rows, self.depth):
            fragments = (
                [of[i] for i in places] for of, places in zip((sums, a, b), piece, strict=True)
            )
            found = multiply_matrices(builder, self.mnemonic, *fragments)
            for i, value in zip(piece.sums, found, strict=True):
                sums[i] = value
        return sums


def _multiply_words(
    builder: Builder, instruction: Instruction, acc: Value, a: Value, b: Value
) -> Value:
    if instruction.sums == F32:
        a, b = (builder.bitcast(word, F32) for word in (a, b))
    letter = "f" if instruction.sums == F32 else "r"
    text = f"{instruction.mnemonic} $0, $1, $2, $3;"
    constraint = ",".join([f"={letter}"] + [letter] * 3)
    return inline_asm(builder, text, constraint, instruction.sums, a, b, acc)


def _mma(operands: str, item: int, sums: Any, types: str) -> Instruction:
    """Name an instruction for 16 rows and 32 bytes of K."""
    mnemonic = f"mma.sync.aligned.m16n8k{32 // item}.row.col.{types}"
    return Instruction(f"mma-{operands}", operands, item, mnemonic, sums, (8, 0), 16, 32)


def _small(operands: str, item: int, sums: Any, shape: str, rows: int) -> Instruction:
    """Name one that a Turing card has, for fewer rows or for 16 bytes of K."""
    mnemonic = f"mma.sync.aligned.{shape}"
    return Instruction(f"mma-small-{operands}", operands, item, mnemonic, sums, (7, 5), rows, 16)


FMA = Instruction("fma", "f32", 4, "fma.rn.f32", F32, (5, 0))
DP4A = Instruction("dp4a", "u8s8", 1, "dp4a.u32.s32", I32, (6, 1))
SMALL_F16 = _small("f16", 2, F32, "m16n8k8.row.col.f32.f16.f16.f32", rows=16)
SMALL_U8S8 = _small("u8s8", 1, I32, "m8n8k16.row.col.s32.u8.s8.s32", rows=8)
MMA_TF32 = _mma("tf32", 4, F32, "f32.tf32.tf32.f32")
MMA_F16 = _mma("f16", 2, F32, "f32.f16.f16.f32")
MMA_BF16 = _mma("bf16", 2, F32, "f32.bf16.bf16.f32")
MMA_U8S8 = _mma("u8s8", 1, I32, "s32.u8.s8.s32")
ALL = FMA, DP4A, SMALL_F16, SMALL_U8S8, MMA_TF32, MMA_F16, MMA_BF16, MMA_U8S8
INSTRUCTIONS = {i.name: i for i in ALL}

# Which of them multiply, by their operands: the first set that the GPU has, unless MINIRES_ISA
# names another.
SETS = {
    "tensor-cores": {i.operands: i for i in (FMA, MMA_TF32, MMA_F16, MMA_BF16, MMA_U8S8)},
    "turing": {i.operands: i for i in (FMA, SMALL_F16, SMALL_U8S8)},
    "cuda-cores": {i.operands: i for i in (FMA, DP4A)},
}


def choose_instruction(operands: str, capability: tuple[int, int]) -> Instruction:
    """Choose how to multiply: with tensor cores, unless MINIRES_ISA names another set."""
    name = os.environ.get("MINIRES_ISA")
    if name and name not in SETS and name not in ISAS:
        raise MiniresError(f"MINIRES_ISA is {name!r}; for a GPU it may be {', '.join(SETS)}")
    if name in SETS:
        found = [SETS[name][operands]] if operands in SETS[name] else []
        if not found:
            raise MiniresError(f"{name} cannot multiply {operands}; unset MINIRES_ISA")
    else:  # a CPU's set says nothing of the GPU
        found = [of_set[operands] for of_set in SETS.values() if operands in of_set]
    for instruction in found:
        if instruction.capability <= capability:
            return instruction
    raise MiniresError(
        f"this GPU has compute capability {capability[0]}.{capability[1]}, and "
        f"{found[-1].name} needs {found[-1].capability[0]}.{found[-1].capability[1]}"
    )
