"""Requantization without floats, as gemmlowp and TFLite do it, for chapter 7 to compare.

The multiplier m < 1 becomes a 32-bit fraction q31 / 2**31 in [1/2, 1) and a right shift:
m = q31 * 2**-31 * 2**-shift, equation 7.4 of the book. Jacob et al. (2017), section 2.2;
gemmlowp's doc/quantization.md.
It needs no floating-point unit, and rounds twice where minires's `requantize_ref` rounds a product,
a conversion and the result. The two differ by one step at most, in 2**-(shift + 1) of the sums for
a shift of 1 or more: 2.4% for multipliers spread evenly, in their logarithm, over 2**-20 to 1/2,
and then without a bias. A multiplier of just 1/2 or 1/4 makes many sums ties, which are rounded
up: by 1/4 and 1/8 of a step in the mean (tests/test_gemmlowp.py).
"""

import numpy as np
import numpy.typing as npt

INT32_MIN = -(2**31)
INT32_MAX = 2**31 - 1


def quantize_multiplier(m: float) -> tuple[int, int]:
    """Write a positive real multiplier as a Q31 fraction and a shift to the right.

    m is q31 * 2**(-31 - shift) within half a unit of q31, which is 2**30 to 2**31 - 1. Both are 0
    for an m that is too small to bring any accumulator to half a step. A negative shift means left.
    """
    fraction, exponent = np.frexp(m)  # m = fraction * 2**exponent, 1/2 <= fraction < 1
    q31 = round(float(fraction) * 2**31)
    if q31 == 2**31:  # the fraction rounded up to one
        q31 = 2**30
        exponent = exponent + 1
    if exponent < -31:
        return 0, 0
    return q31, -int(exponent)


def rounding_doubling_high_multiply(a: npt.NDArray[np.int32], b: int) -> npt.NDArray[np.int32]:
    """Take the high half of 2 * a * b, rounded to nearest, ties upwards; b is a Q31 fraction.

    -0.5 becomes 0, as in gemmlowp and in ARM's vqrdmulh; the shift that follows rounds it to -1.
    The one product that does not fit, that of the two smallest values, saturates.
    """
    product = a.astype(np.int64) * b
    # The quotient truncates towards zero; the nudge half a unit beforehand makes it round.
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    quotient = np.sign(nudged) * (np.abs(nudged) >> 31)
    high: npt.NDArray[np.int32] = np.minimum(quotient, INT32_MAX).astype(np.int32)
    return high


def rounding_divide_by_power_of_two(x: npt.NDArray[np.int32], shift: int) -> npt.NDArray[np.int32]:
    """Shift right by 0 to 31 bits, rounded to nearest, ties away from zero.

    (x + half) >> shift would round ties towards plus infinity, so that -1.5 became -1 instead
    of -2: a bias that a network's negative sums would collect.
    """
    mask = (1 << shift) - 1
    remainder = x & np.int32(mask)
    threshold = (mask >> 1) + (x < 0)
    rounded: npt.NDArray[np.int32] = (x >> shift) + (remainder > threshold)
    return rounded


def requantize_integer_ref(
    acc_s32: npt.NDArray[np.int32], q31: int, shift: int, y_zero_point: int
) -> npt.NDArray[np.uint8]:
    """Bring accumulators to the output's scale in integer arithmetic alone.

    The multiplier, q31 and shift, comes from `quantize_multiplier`; bias and the input's zero
    point are in the accumulators already.
    """
    left = np.int64(1) << max(-shift, 0)
    widened = np.clip(acc_s32.astype(np.int64) * left, INT32_MIN, INT32_MAX).astype(np.int32)
    scaled = rounding_doubling_high_multiply(widened, q31)
    y = rounding_divide_by_power_of_two(scaled, max(shift, 0)).astype(np.int64) + y_zero_point
    return np.clip(y, 0, 255).astype(np.uint8)
