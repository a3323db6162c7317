"""Ways to multiply on an NVIDIA GPU, as values.

A GPU's cores multiply one word in each lane of a warp: `fma`, or `dp4a` with four bytes in a word.
Its tensor cores multiply whole matrices: a warp's 32 lanes hold 16 rows of activations and 8
columns of weights together, 32 bytes of K of each, and 4 of the 16 x 8 sums a lane. How many
products 32 bytes are is the only difference between the tensor cores' formats. Who holds which byte
is said by `fragments.py`, in NumPy.
"""

import os
from dataclasses import dataclass
from typing import Any

from minires.errors import MiniresError
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
    warp: bool  # whether a warp's lanes multiply together

    @property
    def products(self) -> int:
        """Count a lane's share of the products: those of a word, or a 32nd of 16 x 8 x 32 bytes."""
        return 16 * 8 * (32 // self.item) // 32 if self.warp else 4 // self.item

    def multiply(self, builder: Builder, sums: Any, a: Any, b: Any) -> Any:
        """Write ``sums + a * b``: of one word each, or of fragments: 4 sums, 4 words and 2."""
        if self.warp:
            return multiply_matrices(builder, self.mnemonic, sums, a, b)
        return _multiply_words(builder, self, sums, a, b)


def _multiply_words(
    builder: Builder, instruction: Instruction, acc: Value, a: Value, b: Value
) -> Value:
    if instruction.sums == F32:
        a, b = (builder.bitcast(word, F32) for word in (a, b))
    letter = "f" if instruction.sums == F32 else "r"
    text = f"{instruction.mnemonic} $0, $1, $2, $3;"
    constraint = ",".join([f"={letter}"] + [letter] * 3)
    return inline_asm(builder, text, constraint, instruction.sums, a, b, acc)


def _mma(
    operands: str, item: int, sums: Any, types: str, capability: tuple[int, int]
) -> Instruction:
    return Instruction(
        name=f"mma-{operands}",
        operands=operands,
        item=item,
        mnemonic=f"mma.sync.aligned.m16n8k{32 // item}.row.col.{types}",
        sums=sums,
        capability=capability,
        warp=True,
    )


FMA = Instruction("fma", "f32", 4, "fma.rn.f32", F32, (5, 0), warp=False)
DP4A = Instruction("dp4a", "u8s8", 1, "dp4a.u32.s32", I32, (6, 1), warp=False)
MMA_TF32 = _mma("tf32", 4, F32, "f32.tf32.tf32.f32", (8, 0))
MMA_F16 = _mma("f16", 2, F32, "f32.f16.f16.f32", (8, 0))
MMA_BF16 = _mma("bf16", 2, F32, "f32.bf16.bf16.f32", (8, 0))
MMA_U8S8 = _mma("u8s8", 1, I32, "s32.u8.s8.s32", (8, 0))
INSTRUCTIONS = {i.name: i for i in (FMA, DP4A, MMA_TF32, MMA_F16, MMA_BF16, MMA_U8S8)}

# Which of them multiply, by their operands: the first set unless MINIRES_ISA names another.
SETS = {
    "tensor-cores": {i.operands: i for i in (FMA, MMA_TF32, MMA_F16, MMA_BF16, MMA_U8S8)},
    "cuda-cores": {i.operands: i for i in (FMA, DP4A)},
}


def choose_instruction(operands: str, capability: tuple[int, int]) -> Instruction:
    """Choose how to multiply: with tensor cores, unless MINIRES_ISA names another set."""
    name = os.environ.get("MINIRES_ISA")
    if name and name not in SETS and name not in ISAS:
        raise MiniresError(f"MINIRES_ISA is {name!r}; for a GPU it may be {', '.join(SETS)}")
    name = name if name in SETS else next(iter(SETS))  # a CPU's set says nothing of the GPU
    if operands not in SETS[name]:
        raise MiniresError(f"{name} cannot multiply {operands}; unset MINIRES_ISA")
    instruction = SETS[name][operands]
    if instruction.capability > capability:
        raise MiniresError(
            f"this GPU has compute capability {capability[0]}.{capability[1]}, and "
            f"{instruction.name} needs {instruction.capability[0]}.{instruction.capability[1]}"
        )
    return instruction
