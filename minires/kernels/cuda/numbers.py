"""Float32 to what a precision keeps, and back: for operators that are written in Python.

Numba's own division and rounding would do for most of it; written out, nothing can be fused, and
16-bit numbers need no type of their own: they are carried as their bits.
"""

from typing import Any

from numba import types
from numba.cuda.extending import intrinsic

from minires.kernels.cuda import ptx
from minires.kernels.cuda.epilogue import round_tf32
from minires.kernels.ir import F32, I8, I16, I32, Builder, Value, inline_asm, vector

# By what a convolution writes: the type of an activation.
STORED = {
    "f32": types.float32,
    "tf32": types.float32,
    "f16": types.int16,
    "bf16": types.int16,
    "u8": types.uint8,
}


def narrow(out: str) -> Any:
    """Make ``f(x, scale, zero_point)``: a float32, rounded to what is kept."""

    @intrinsic
    def narrow(_: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
            x, scale, zero_point = values
            if out == "f32":
                return x
            if out == "tf32":
                return round_tf32(builder, x)
            if out != "u8":
                return inline_asm(builder, f"cvt.rn.{out}.f32 $0, $1;", "=h,f", I16, x)
            steps = inline_asm(builder, "div.rn.f32 $0, $1, $2;", "=f,f,f", F32, x, scale)
            limits = ptx.limits(builder, zero_point)
            return builder.trunc(ptx.requantize(builder, steps, *limits, zero_point), I8)

        return STORED[out](types.float32, types.float32, types.int32), codegen

    return narrow


def widen(out: str) -> Any:
    """Make ``f(q)``: the float32 that is kept, or a u8 as int32."""

    @intrinsic
    def widen(_: Any, q: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
            (q,) = values
            if out == "u8":
                return builder.zext(q, I32)
            if out == "f16":
                return ptx.from_f16(builder, q)
            if out == "bf16":
                return builder.bitcast(builder.shl(builder.zext(q, I32), I32(16)), F32)
            return q

        return (types.int32 if out == "u8" else types.float32)(STORED[out]), codegen

    return widen


def average(out: str) -> Any:
    """Make ``f(total, pixels, m, x_zero_point, zero_point)``: the average pool's last step."""
    total_type = types.int32 if out == "u8" else types.float32

    @intrinsic
    def average(_: Any, total: Any, pixels: Any, m: Any, x_zero_point: Any, zero_point: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
            total, pixels, m, x_zero_point, zero_point = values
            if out != "u8":
                count = builder.sitofp(pixels, F32)
                return inline_asm(builder, "div.rn.f32 $0, $1, $2;", "=f,f,f", F32, total, count)
            acc = builder.sub(total, builder.mul(pixels, x_zero_point))
            t = ptx.rounded(builder, "mul", builder.sitofp(acc, F32), m)
            limits = ptx.limits(builder, zero_point)
            return builder.trunc(ptx.requantize(builder, t, *limits, zero_point), I8)

        returns = types.uint8 if out == "u8" else types.float32
        whole = types.int32
        return returns(total_type, whole, types.float32, whole, whole), codegen

    return average


def greatest(out: str) -> Any:
    """Make ``f(a, b)``: the greater values of two words, each for itself; NaN is passed over."""

    @intrinsic
    def greatest(_: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
            a, b = values
            if out in ("f32", "tf32"):
                real_a, real_b = (builder.bitcast(v, F32) for v in (a, b))
                return builder.select(builder.fcmp_ordered(">", real_b, real_a), b, a)
            parts = vector(I8, 4) if out == "u8" else vector(I16, 2)
            a, b = (builder.bitcast(v, parts) for v in (a, b))
            compare = builder.icmp_unsigned if out == "u8" else builder.icmp_signed
            return builder.bitcast(builder.select(compare(">", b, a), b, a), I32)

        return types.int32(types.int32, types.int32), codegen

    return greatest
