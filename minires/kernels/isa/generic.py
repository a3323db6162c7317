"""Multiplying on any CPU: multiplications and additions, for which LLVM finds instructions."""

from collections.abc import Callable

from minires.kernels.ir import FAMILY, Builder, Value, call, constant
from minires.kernels.isa.instruction import ISA, Instruction


def mul_add(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add one product, which is rounded before it is added, because not every CPU has an FMA."""
    a, b = (builder.bitcast(v, acc.type) for v in (a, b))
    return builder.fadd(acc, builder.fmul(a, b))


def fma(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add one product, rounded once; only for sets that have an instruction for it."""
    a, b = (builder.bitcast(v, acc.type) for v in (a, b))
    return call(builder, f"llvm.fma.v{acc.type.count}f32", acc.type, a, b, acc)


def of_halves(multiply_add: Callable[..., Value]) -> Callable[..., Value]:
    """Multiply bfloat16 as float32: a bfloat16 is a float32's upper half, so a group has two."""

    def emit(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
        shift = constant(a.type, 16)
        mask = constant(a.type, -(2**16))
        acc = multiply_add(builder, acc, builder.shl(a, shift), builder.shl(b, shift))
        return multiply_add(builder, acc, builder.and_(a, mask), builder.and_(b, mask))

    return emit


def mul_add_of_bytes(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products byte by byte, in integers of 32 bits."""
    for byte in range(4):
        # A byte that is shifted to the top and back down fills its lane: u8 with zeros, s8 with its
        # sign.
        to_top = constant(a.type, 24 - 8 * byte)
        down = constant(a.type, 24)
        x = builder.lshr(builder.shl(a, to_top), down)
        w = builder.ashr(builder.shl(b, to_top), down)
        acc = builder.add(acc, builder.mul(x, w))
    return acc


# What LLVM makes of them, on x86 and on ARM.
MULTIPLIED = ("mulps|fmul", "addps|fadd")
MUL_ADD = Instruction("mul, add", "f32", mul_add, MULTIPLIED, sums=8)
MUL_ADD_OF_HALVES = Instruction(
    "mul, add of halves", "bf16", of_halves(mul_add), MULTIPLIED, composed=True
)
MUL_ADD_OF_BYTES = Instruction(
    "mul, add of bytes", "u8s8", mul_add_of_bytes, ("pm|mul|mla",), sums=4, rates=()
)

GENERIC = ISA(
    "generic",
    frozenset(),
    lanes=4,
    instructions={"f32": MUL_ADD, "bf16": MUL_ADD_OF_HALVES, "u8s8": MUL_ADD_OF_BYTES},
    tiles={"f32": (4, 2), "bf16": (4, 2), "u8s8": (4, 2)},
    family=FAMILY,
)
