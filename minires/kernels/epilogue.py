"""Epilogues: the last operations on a vector of sums before it is stored.

Each computes a definition of reference.py, in the same order, for a vector of columns of one row.
Every multiplication and addition rounds by itself, so all instruction sets give the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from minires.kernels.ir import (
    F32,
    I8,
    I16,
    I32,
    LLVM_22,
    Builder,
    Value,
    call,
    constant,
    vector,
)
from minires.kernels.isa import Instruction

SCALARS = {  # the numbers that an epilogue needs, in the order that a microkernel takes them
    "m_residual": F32,
    "residual_zero_point": I32,
    "low": F32,
    "high": F32,
    "zero_point": I32,
    "scale": F32,
}


class Columns(NamedTuple):
    """An epilogue's operands for one vector of columns."""

    bias: Value
    m: Value
    scalars: dict[str, Value]  # those of `SCALARS`, each copied to all lanes
    instruction: Instruction  # the one that made the sums


def _clip(builder: Builder, t: Value, low: Value, high: Value) -> Value:
    t = builder.select(builder.fcmp_ordered(">", t, low), t, low)
    return builder.select(builder.fcmp_ordered("<", t, high), t, high)


def _rint(builder: Builder, t: Value) -> Value:
    """Round to whole numbers, half to even."""
    return call(builder, f"llvm.rint.v{t.type.count}f32", t.type, t)


def _to_int(builder: Builder, t: Value, p: Columns, whole: Any) -> Value:
    """Round to integers, half to even: by one instruction if this LLVM can ask for it."""
    if p.instruction.to_int:
        return p.instruction.to_int(builder, t, whole)
    if not LLVM_22:
        return builder.fptosi(_rint(builder, t), whole)
    return call(builder, f"llvm.lrint.v{t.type.count}i32.v{t.type.count}f32", whole, t)


def _widen_bf16(builder: Builder, x: Value) -> Value:
    wide = builder.zext(x, vector(I32, x.type.count))
    shifted = builder.shl(wide, constant(wide.type, 16))
    return builder.bitcast(shifted, vector(F32, x.type.count))


def _activate(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Add bias and residual, and clip at `low`: 0 makes it a ReLU, and -infinity clips nothing."""
    t = builder.fadd(acc, p.bias)
    if residual is not None:
        t = builder.fadd(t, residual)
    return builder.select(builder.fcmp_ordered("<", t, p.scalars["low"]), p.scalars["low"], t)


def _activate_bf16(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Do as `_activate`, and keep the upper half of the float32, rounded to nearest even."""
    wide = None if residual is None else _widen_bf16(builder, residual)
    t = _activate(builder, acc, p, wide)
    if p.instruction.narrow:
        return p.instruction.narrow(builder, t)
    # Add almost half of a step, and one more if the last bit to keep is odd, so that a tie rounds
    # to even. Then cut the lower half off.
    bits = builder.bitcast(t, vector(I32, t.type.count))
    sixteen, one = constant(bits.type, 16), constant(bits.type, 1)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(builder.add(bits, constant(bits.type, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, sixteen), vector(I16, t.type.count))


def _fake_quantize(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Round to the values that eight bits can hold, for simulated INT8. The clip is the ReLU."""
    t = builder.fadd(acc, p.bias)
    if residual is not None:
        t = builder.fadd(t, residual)
    t = _rint(builder, builder.fdiv(t, p.scalars["scale"]))
    return builder.fmul(_clip(builder, t, p.scalars["low"], p.scalars["high"]), p.scalars["scale"])


def _requantize(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Do the same as `requantize_ref`, in its order, each operation rounded by itself."""
    t = builder.fmul(builder.sitofp(acc, p.m.type), p.m)
    if residual is not None:
        steps = builder.sub(builder.zext(residual, acc.type), p.scalars["residual_zero_point"])
        t = builder.fadd(t, builder.fmul(builder.sitofp(steps, t.type), p.scalars["m_residual"]))
    clipped = _clip(builder, t, p.scalars["low"], p.scalars["high"])
    whole = _to_int(builder, clipped, p, acc.type)
    y = builder.add(whole, p.scalars["zero_point"])
    return builder.trunc(y, vector(I8, acc.type.count))


def _dequantize(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Turn sums into float32: the logits of the INT8 network."""
    return builder.fmul(builder.sitofp(acc, p.m.type), p.m)


def _store_as_is(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Store as many bytes as an activation has, but compute nothing: to time an epilogue."""
    return builder.trunc(acc, vector(I8, acc.type.count)) if acc.type.element == I32 else acc


def _store_sums(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Leave the sums as they are: the matrix product alone."""
    return acc


class Epilogue(NamedTuple):
    """The last operation on the sums, and its operands' types in memory."""

    run: Callable[..., Value]
    bias: Any  # the type of its values
    residual: Any  # the type of its values
    bias_first: bool = False  # whether sums begin with the bias: integers add in any order


EPILOGUES = {
    "activate": Epilogue(_activate, F32, F32),
    "activate, bf16": Epilogue(_activate_bf16, F32, I16),
    "fake quantize": Epilogue(_fake_quantize, F32, F32),
    "requantize": Epilogue(_requantize, I32, I8, bias_first=True),
    "dequantize": Epilogue(_dequantize, I32, I8, bias_first=True),
    "store": Epilogue(_store_sums, I32, I8),
    "plain store of u8": Epilogue(_store_as_is, I32, I8),
    "plain store of float32": Epilogue(_store_as_is, F32, F32),
}
