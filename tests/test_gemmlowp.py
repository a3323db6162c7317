"""The integer-only requantization against Python's integers, and against the one that ships."""

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from examples.gemmlowp import (
    quantize_multiplier,
    requantize_integer_ref,
    rounding_divide_by_power_of_two,
    rounding_doubling_high_multiply,
)
from minires.reference import requantize_ref
from tests.comparing import assert_same

Array = npt.NDArray[Any]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
EDGES = [INT32_MIN, INT32_MIN + 1, -(2**30) - 1, -(2**30), -(2**30) + 1, -3, -2, -1,
         0, 1, 2, 3, 2**30 - 1, 2**30, 2**30 + 1, INT32_MAX - 1, INT32_MAX]  # fmt: skip
FRACTIONS = [2**30, 2**30 + 1, 1_518_500_250, 2**31 - 2, 2**31 - 1]  # q31, the ends of its range
SHIFTS = range(32)
ZERO_POINTS = [0, 1, 128, 255]


def samples(*seed: int) -> Array:
    """Draw accumulators of every size, and the edges, int32."""
    random = np.random.RandomState(seed)
    sizes = 2.0 ** random.uniform(0, 31, 2000)
    drawn = random.uniform(-sizes, sizes).astype(np.int64).tolist()
    return np.array(EDGES + drawn, np.int32)


# The oracle: Python's integers have no width.


def high_multiply(a: int, b: int) -> int:
    """Divide 2ab by 2**32 as gemmlowp's C does: a nudge by half a unit, then truncation.

    For negative products the nudge is half a unit less one bit, so that a tie goes towards plus
    infinity, -0.5 to 0: what ARM's vqrdmulh does, which adds half and shifts.
    """
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    truncated = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    assert truncated == (product + 2**30) // 2**31
    return min(truncated, INT32_MAX)


def divide_half_away(x: int, shift: int) -> int:
    """Divide by 2**shift to the nearest integer, ties away from zero."""
    magnitude = (2 * abs(x) + 2**shift) // 2 ** (shift + 1)
    return magnitude if x >= 0 else -magnitude


def requantize_by_python(acc: int, q31: int, shift: int, zero_point: int) -> int:
    widened = min(max(acc * 2 ** max(-shift, 0), INT32_MIN), INT32_MAX)
    steps = divide_half_away(high_multiply(widened, q31), max(shift, 0))
    return min(max(steps + zero_point, 0), 255)


# The parts


@pytest.mark.parametrize("b", [*FRACTIONS, 1, -1, INT32_MIN])
def test_high_multiply(b: int) -> None:
    a = samples(0, abs(b) % 2**32)
    expected = np.array([high_multiply(v, b) for v in a.tolist()], np.int32)
    assert_same(rounding_doubling_high_multiply(a, b), expected)


def test_high_multiply_at_ties_of_both_signs() -> None:
    """By one half: the tie of a negative product goes up, as in gemmlowp and on ARM."""
    a = np.array([-5, -3, -1, 1, 3, 5], np.int32)
    assert rounding_doubling_high_multiply(a, 2**30).tolist() == [-2, -1, 0, 1, 2, 3]


def test_high_multiply_saturates_its_one_overflow() -> None:
    a = np.array([INT32_MIN], np.int32)
    assert rounding_doubling_high_multiply(a, INT32_MIN).tolist() == [INT32_MAX]


@pytest.mark.parametrize("shift", SHIFTS)
def test_divide(shift: int) -> None:
    half = 2 ** max(shift - 1, 0)
    near_ties = [n * half + d for n in (-5, -3, -1, 1, 3, 5) for d in (-1, 0, 1)]
    near_ties = [x for x in near_ties if INT32_MIN <= x <= INT32_MAX]
    x = np.concatenate([samples(1, shift), np.array(near_ties, np.int32)])
    expected = np.array([divide_half_away(v, shift) for v in x.tolist()], np.int32)
    assert_same(rounding_divide_by_power_of_two(x, shift), expected)


def test_divide_at_ties_of_both_signs() -> None:
    x = np.array([-5, -3, -1, 1, 3, 5], np.int32)
    assert rounding_divide_by_power_of_two(x, 1).tolist() == [-3, -2, -1, 1, 2, 3]
    assert ((x + 1) >> 1).tolist() == [-2, -1, 0, 1, 2, 3]  # what it is not


@pytest.mark.parametrize(
    "m", [1.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1, 0), 0.0123, 1 / 3, 2.0**-31, 1.5, 77.7]
)
def test_a_multiplier_is_written_to_half_a_unit(m: float) -> None:
    q31, shift = quantize_multiplier(m)
    assert 2**30 <= q31 < 2**31
    unit = Fraction(1, 2**31) * Fraction(2) ** -shift
    assert abs(q31 * unit - Fraction(m)) <= unit / 2


def test_multipliers_at_their_ends() -> None:
    assert quantize_multiplier(1.0) == (2**30, -1)
    assert quantize_multiplier(0.5) == (2**30, 0)
    assert quantize_multiplier(1 - 2.0**-31) == (2**31 - 1, 0)
    assert quantize_multiplier(1 - 2.0**-33) == (2**30, -1)  # rounds up to one
    assert quantize_multiplier(2.0**-32) == (2**30, 31)


# The whole


@pytest.mark.parametrize("q31", FRACTIONS)
@pytest.mark.parametrize("shift", [-12, -1, 0, 1, 7, 8, 15, 24, 30, 31])
def test_requantize_is_exact(q31: int, shift: int) -> None:
    """Accumulators that reach a few hundred steps, ties among them, and all sizes and edges."""
    reach = int(min(300 / (q31 * 2.0 ** (-31 - shift)), INT32_MAX))
    spread = np.random.RandomState(shift + 12).randint(-reach - 1, reach, 2000)
    half = 2 ** max(shift, 0)  # of a step, where q31 is 2**30
    ties = half * np.arange(-min(300, INT32_MAX // half), min(300, INT32_MAX // half) + 1)
    acc = np.concatenate([samples(2), spread, ties]).astype(np.int32)
    for zero_point in ZERO_POINTS:
        expected = [requantize_by_python(v, q31, shift, zero_point) for v in acc.tolist()]
        y = requantize_integer_ref(acc, q31, shift, zero_point)
        assert_same(y, np.array(expected, np.uint8))
        assert len(set(expected)) > 1


# Against the requantization that ships


def differences(m: np.float32, seed: int) -> Array:
    """Tell integer-only less shipped, in steps, for sums that do not saturate."""
    q31, shift = quantize_multiplier(float(m))
    reach = int(127 / m)
    acc = np.random.RandomState(seed).randint(-reach, reach + 1, 20_000).astype(np.int32)
    return requantize_integer_ref(acc, q31, shift, 128).astype(int) - requantize_ref(acc, m, 128)


@pytest.mark.parametrize("shift", range(9))
def test_how_often_the_two_differ(shift: int) -> None:
    """By one step at most, and in a share of 1 / 2**(shift + 1) of the sums; almost never at 0.

    The first rounding keeps `shift` bits of fraction. One of 2**shift fractions is a half, which
    the second rounding takes for a tie though it seldom was one: half of the time it goes the
    wrong way. Below that, 1e-4 leaves room for the few sums that float32 brings on to a tie.
    """
    random = np.random.RandomState(shift)
    multipliers = (2.0 ** -(shift + random.uniform(0, 1, 40))).astype(np.float32)
    steps = np.array([differences(m, seed) for seed, m in enumerate(multipliers)])
    share, expected = np.mean(steps != 0), 2.0 ** -(shift + 1) if shift else 0.0
    print(f"shift {shift}: {share:.3%} differ, by {steps.mean():+.5f} steps in the mean")
    assert np.abs(steps).max() <= 1
    assert abs(share - expected) <= 0.15 * expected + 1e-4
    assert abs(steps.mean()) <= 0.05 * expected + 1e-4  # away from zero: no bias


def test_how_often_the_two_differ_over_all_usual_multipliers() -> None:
    """2.5% for multipliers spread evenly, in their logarithm, between 2**-20 and 1/2."""
    multipliers = (2.0 ** np.random.RandomState(9).uniform(-20, -1, 200)).astype(np.float32)
    steps = np.array([differences(m, seed) for seed, m in enumerate(multipliers)])
    share = np.mean(steps != 0)
    print(f"{share:.3%} differ, by {steps.mean():+.5f} steps in the mean")
    assert np.abs(steps).max() <= 1
    assert 0.015 <= share <= 0.04
    assert abs(steps.mean()) <= 1e-3


@pytest.mark.parametrize(("power", "share", "mean"), [(1, 1 / 4, 1 / 4), (2, 1 / 4, 1 / 8)])
def test_true_ties_bias_the_integer_form(power: int, share: float, mean: float) -> None:
    """At a multiplier of 1/2 or 1/4 many sums are ties, which the high multiply rounds up."""
    steps = differences(np.float32(2.0**-power), 9)
    assert abs(np.mean(steps != 0) - share) <= 0.02
    assert abs(steps.mean() - mean) <= 0.02


@pytest.mark.parametrize("m", [2.0**-33, 2.0**-40, 1.2e-38 * 0.02])
def test_multipliers_too_small_for_a_shift_give_zero(m: float) -> None:
    """A dead channel's, whose scale is the smallest float: no accumulator reaches half a step."""
    q31, shift = quantize_multiplier(m)
    acc = np.array([INT32_MIN, -1, 0, 1, INT32_MAX], np.int32)
    assert_same(requantize_integer_ref(acc, q31, shift, 7), np.full(5, 7, np.uint8))
    assert_same(requantize_ref(acc, np.float32(m), 7), np.full(5, 7, np.uint8))
