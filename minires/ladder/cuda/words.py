"""Instructions for rungs that are written in Python: inline PTX as functions."""

from typing import Any

from numba import types
from numba.cuda.extending import intrinsic

from minires.kernels.cuda import ptx
from minires.kernels.cuda.instructions import DP4A, MMA_U8S8
from minires.kernels.ir import F32, I8, Builder, Value

WORD, REAL, BYTE = types.int32, types.float32, types.uint8  # as Numba calls I32, F32, I8


@intrinsic
def dp4a(_: Any, total: Any, a: Any, b: Any) -> Any:
    """Multiply four u8 of a word by four s8 of another, and add the products to a sum."""

    def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        return DP4A.multiply(builder, *values)

    return WORD(WORD, WORD, WORD), codegen


@intrinsic
def mma(_: Any, sums: Any, a: Any, b: Any) -> Any:
    """Multiply a warp's fragments: 4 words and 2 a lane, added to 4 sums."""

    def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        counts = (4, 4, 2)
        parts = [
            [builder.extract_value(value, i) for i in range(count)]
            for value, count in zip(values, counts, strict=True)
        ]
        four = MMA_U8S8.multiply(builder, *parts)
        return context.make_tuple(builder, signature.return_type, four)

    of_four = types.UniTuple(WORD, 4)
    of_two = types.UniTuple(WORD, 2)
    return of_four(of_four, of_four, of_two), codegen


@intrinsic
def requantize(_: Any, total: Any, m: Any, zero_point: Any) -> Any:
    """Bring a sum, with its bias, to the output's scale and back into eight bits."""

    def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
        total, m, zero_point = values
        t = ptx.rounded(builder, "mul", builder.sitofp(total, F32), m)
        limits = ptx.limits(builder, zero_point)
        return builder.trunc(ptx.requantize(builder, t, *limits, zero_point), I8)

    return BYTE(WORD, REAL, WORD), codegen
