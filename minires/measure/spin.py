"""Loops that do nothing but multiply in registers, to measure a peak."""

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from minires.kernels.ir import (
    F32,
    FAMILY,
    I32,
    I64,
    Builder,
    Value,
    after,
    constant,
    load,
    loop,
    opaque,
    store,
    vector,
)
from minires.kernels.isa import INSTRUCTIONS, amx

CLOCK = "clock"  # stands for an instruction's name: a chain that takes a known number of cycles
CHAIN = 16  # instructions in the clock's loop; each waits for the one before, and takes one cycle
SUMS = {"f32": F32, "bf16": F32, "u8s8": I32}  # the type of the sums, by the operands


def _chain(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add and xor in turn, each on the last result, so that nothing can shorten the chain.

    The instructions are scalar, because some CPUs take two cycles for one on vectors.
    """
    for _ in range(CHAIN // 2):
        acc = builder.xor(builder.add(acc, a), b)
    return acc


@intrinsic(prefer_literal=True)
def spin(_: Any, spec: Any, operands: Any, count: Any) -> Any:
    """Multiply and add `count` times to each sum: called from compiled code.

    `spec` is a literal: the instruction's name or `CLOCK`, a slash, and a vector's lanes. At the
    address `operands` lie two vectors, which are loaded once, and room for one more.
    """
    name, lanes = spec.literal_value.split("/")

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        if name == CLOCK:
            _spin(builder, _chain, I64, [I64(0)], "r", *arguments[1:])
        elif INSTRUCTIONS[name].own_registers:
            amx.spin(builder, INSTRUCTIONS[name], *arguments[1:])
        else:
            instruction = INSTRUCTIONS[name]
            sums = vector(SUMS[instruction.operands], int(lanes))
            # LLVM would keep sums that begin alike as one.
            starts = [constant(sums, i) for i in range(instruction.sums)]
            register = {"x86_64": "v" if int(lanes) == 16 else "x"}.get(FAMILY, "w")
            bits = vector(I32, int(lanes))
            _spin(builder, instruction.emit, bits, starts, register, *arguments[1:])
        return context.get_dummy_value()

    return types.none(spec, types.int64, types.int64), codegen


def _spin(
    builder: Builder,
    emit: Any,
    bits: Any,  # the operands' type
    starts: list[Value],
    register: str,  # the kind of register that holds operands, for inline asm
    operands: Value,
    count: Value,
) -> None:
    """Add to each sum in turn."""
    size = 8 if bits == I64 else 4 * bits.count
    a, b = (load(builder, after(builder, operands, size * i), bits) for i in range(2))

    def body(x: Value, *acc: Value) -> list[Value]:
        following = []
        for total in acc:
            # If LLVM knew that x stays the same, it would multiply once, before the loop.
            x = opaque(builder, x, register)
            following.append(emit(builder, total, x, b))
        return [x, *following]

    _, total, *others = loop(builder, count, [a, *starts], body)
    for other in others:  # all sums are used, so that LLVM cannot leave one out
        total = builder.xor(builder.bitcast(total, bits), builder.bitcast(other, bits))
    store(builder, total, after(builder, operands, 2 * size))
