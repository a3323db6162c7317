"""Loops that do nothing but multiply, in registers: what a peak is measured by."""

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

CLOCK = "clock"  # in place of an instruction: a chain of a known number of cycles
CHAIN = 16  # instructions of the clock, each of which waits for the one before and takes one cycle
SUMS = {"f32": F32, "bf16": F32, "u8s8": I32}  # the type of the sums, by the operands


def _chain(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Make a clock of dependent additions and exclusive ors, which nothing can shorten.

    They are scalar: in vectors some CPUs take two cycles for each.
    """
    for _ in range(CHAIN // 2):
        acc = builder.xor(builder.add(acc, a), b)
    return acc


@intrinsic(prefer_literal=True)
def spin(_: Any, spec: Any, operands: Any, count: Any) -> Any:
    """Multiply and add over and over: called from compiled code.

    `spec` is a literal: the instruction's name or `CLOCK`, a slash, and a vector's lanes.
    `operands` is the address of two vectors, which are loaded once, and of room for one more. Each
    sum is added to `count` times.
    """
    name, lanes = spec.literal_value.split("/")

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        if name == CLOCK:
            _spin(builder, _chain, I64, [I64(0)], "r", *arguments[1:])
        elif INSTRUCTIONS[name].rows > 1:
            amx.spin(builder, INSTRUCTIONS[name], *arguments[1:])
        else:
            instruction = INSTRUCTIONS[name]
            sums = vector(SUMS[instruction.operands], int(lanes))
            # Sums that begin alike would be one sum.
            starts = [constant(sums, i) for i in range(instruction.sums)]
            register = {"x86_64": "v" if int(lanes) == 16 else "x"}.get(FAMILY, "w")
            bits = vector(I32, int(lanes))
            _spin(builder, instruction.emit, bits, starts, register, *arguments[1:])
        return context.get_dummy_value()

    return types.none(spec, types.int64, types.int64), codegen


def _spin(
    builder: Builder, emit: Any, bits: Any, starts: list[Value], register: str, operands: Value,
    count: Value,
) -> None:  # fmt: skip
    """Add to each sum in turn; `bits` is the operands' type, `register` holds such."""
    size = 8 if bits == I64 else 4 * bits.count
    a, b = (load(builder, after(builder, operands, size * i), bits) for i in range(2))

    def body(x: Value, *acc: Value) -> list[Value]:
        following = []
        for total in acc:
            # Were it known that x stays the same, LLVM would make the products once, before the
            # loop.
            x = opaque(builder, x, register)
            following.append(emit(builder, total, x, b))
        return [x, *following]

    _, total, *others = loop(builder, count, [a, *starts], body)
    for other in others:  # so that none can be left out
        total = builder.xor(builder.bitcast(total, bits), builder.bitcast(other, bits))
    store(builder, total, after(builder, operands, 2 * size))
