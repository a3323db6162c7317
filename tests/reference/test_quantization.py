"""Quantize, dequantize and requantize against exact integers, wherever possible exhaustively."""

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minires.reference import dequantize_ref, fake_quantize_ref, quantize_ref, requantize_ref
from tests.comparing import assert_same
from tests.int8_oracle import requantize_exact, round_half_even, to_float32
from tests.seeded_weights import uniform

Array = npt.NDArray[Any]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
SCALES = [np.float32(s) for s in (2.0**-6, 0.0117, 1.0, 0.1, 3.7, 1e-30, 1e30)]
ZERO_POINTS = [0, 1, 3, 127, 128, 254, 255]
EVERY_U8 = np.arange(256).astype(np.uint8)
# Powers of two end in ties; the others lie anywhere, the last ones at the ends of what occurs.
MULTIPLIERS = [
    np.float32(m)
    for m in (0.5, 0.25, 2.0**-7, 1.0, 1 / 3, 0.0123, 0.00390625001, 0.7071, 0.999, 3e-6)
]


# The oracle itself


def test_the_oracle_rounds_as_fractions_and_float32_do() -> None:
    random = np.random.RandomState(0)
    values = np.concatenate([np.arange(-40, 41), random.randint(-(2**40), 2**40, 300)])
    for shift in (0, 1, 2, 5, 17):
        expected = [round(Fraction(int(value), 2**shift)) for value in values]
        np.testing.assert_array_equal(round_half_even(values, shift), expected)
    large = np.concatenate([values, [2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**31 - 1, -(2**31)]])
    np.testing.assert_array_equal(to_float32(large), large.astype(np.float32).astype(np.int64))


# Requantize


@pytest.mark.parametrize("m", MULTIPLIERS)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_every_accumulator_of_a_range(m: np.float32, zero_point: int) -> None:
    acc = np.arange(-70_000, 70_001)
    expected = requantize_exact(acc, m, zero_point)
    assert_same(requantize_ref(acc.astype(np.int32), m, zero_point), expected)


@pytest.mark.parametrize("m", [np.float32(m) for m in (2.0**-23, 1.1e-7, 3e-7, 2.0**-30, 1e-9)])
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_accumulators_that_float32_rounds(m: np.float32, zero_point: int) -> None:
    """Beyond 2**24: around every tie of the result, and anywhere up to the ends of int32."""
    ties = np.rint((np.arange(-256, 256) + 0.5) / np.float64(m)).astype(np.int64)
    near = (ties[:, np.newaxis] + np.arange(-70, 71)).ravel()
    anywhere = np.random.RandomState(1).randint(INT32_MIN, INT32_MAX, 50_000)
    ends = np.array([INT32_MIN, INT32_MIN + 1, INT32_MAX - 1, INT32_MAX])
    acc = np.concatenate([near, anywhere, ends])
    acc = acc[(acc >= INT32_MIN) & (acc <= INT32_MAX)]
    expected = requantize_exact(acc, m, zero_point)
    assert_same(requantize_ref(acc.astype(np.int32), m, zero_point), expected)


def test_ties_go_to_the_even_step_on_both_sides() -> None:
    acc = np.array([-7, -5, -3, -1, 1, 3, 5, 7], np.int32)  # halves: -3.5 to 3.5
    steps = requantize_ref(acc, np.float32(0.5), 100).astype(int) - 100
    assert steps.tolist() == [-4, -2, -2, 0, 0, 2, 2, 4]


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_both_ends_saturate(zero_point: int) -> None:
    """The clip comes before the conversion: none of these fits in an int32 any more."""
    acc = np.array([INT32_MIN, INT32_MAX, -256, 255, 0], np.int32)
    y = requantize_ref(acc, np.float32(1000), zero_point)
    assert y.tolist() == [0, 255, 0, 255, zero_point]
    largest = np.array([-zero_point - 1, -zero_point, 255 - zero_point, 256 - zero_point], np.int32)
    assert requantize_ref(largest, np.float32(1), zero_point).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("m", [m for m in MULTIPLIERS if 0.001 < m < 0.9])
@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
def test_the_mean_signed_error_is_near_zero(m: np.float32, zero_point: int) -> None:
    """Rounding halves up would shift the mean by 1/4 at m = 1/2, and by 1/8 at 1/4."""
    acc = np.arange(-70_000, 70_001)
    exact = acc * np.float64(m)
    acc, exact = (a[(exact > -zero_point) & (exact < 255 - zero_point)] for a in (acc, exact))
    error = requantize_ref(acc.astype(np.int32), m, zero_point).astype(int) - zero_point - exact
    assert len(error) > 200
    assert np.abs(error).max() <= 0.5 + 255 * 2.0**-23
    assert abs(error.mean()) <= 2 / len(error) + 1e-3


def test_each_column_has_its_multiplier() -> None:
    acc = np.arange(-3000, 3000).reshape(-1, 3)  # (M, N)
    m = np.float32([0.5, 0.0123, 1 / 3])
    y = requantize_ref(acc.astype(np.int32), m, 77)
    assert_same(y, np.stack([requantize_exact(acc[:, n], m[n], 77) for n in range(3)], axis=1))


@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_the_shortcut_is_added_before_the_one_rounding(zero_point: int) -> None:
    """float64 adds two float32 values so closely that rounding it to float32 rounds once."""
    random = np.random.RandomState(2)
    acc = random.randint(-40_000, 40_000, (500, 40)).astype(np.int32)
    m = uniform(0, 0.01, (40,), 3)
    shortcut = uniform(-200, 200, acc.shape, 4)
    shortcut[::3] = np.rint(2 * shortcut[::3]) / 2
    acc[::3, ::2] = 0  # the shortcut alone, at ties
    product = (acc.astype(np.float64) * m).astype(np.float32)
    t = (product.astype(np.float64) + shortcut).astype(np.float32)
    expected = np.clip([[round(float(v)) for v in row] for row in t], -zero_point, 255 - zero_point)
    y = requantize_ref(acc, m, zero_point, shortcut)
    assert_same(y, (expected + zero_point).astype(np.uint8))
    twice = requantize_ref(acc, m, 128).astype(int) - 128 + np.rint(shortcut)
    assert (np.clip(twice, -zero_point, 255 - zero_point) + zero_point != y).any()


# Quantize and dequantize


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_every_step_survives_the_way_there_and_back(scale: np.float32, zero_point: int) -> None:
    real = dequantize_ref(EVERY_U8, scale, zero_point)
    assert real[zero_point] == 0
    assert_same(quantize_ref(real, scale, zero_point), EVERY_U8)
    assert_same(fake_quantize_ref(real, scale, zero_point), real)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_quantize_rounds_ties_to_even_and_saturates(zero_point: int) -> None:
    halves = np.arange(-1200, 1201)
    x = (halves / 2).astype(np.float32) * np.float32(0.125)
    steps = np.array([round(Fraction(int(h), 2)) for h in halves])
    expected = np.clip(steps + zero_point, 0, 255).astype(np.uint8)
    assert_same(quantize_ref(x, np.float32(0.125), zero_point), expected)
    far = np.array([-np.inf, -1e38, 1e38, np.inf], np.float32)
    assert quantize_ref(far, np.float32(1), zero_point).tolist() == [0, 0, 255, 255]


def test_quantize_divides() -> None:
    """x / scale is rounded once; a product with 1 / scale goes the other way at some ties."""
    scale = np.float32(0.3)
    x = (np.arange(1, 500) / 2).astype(np.float32) * scale
    ratios = (x.astype(np.float64) / np.float64(scale)).astype(np.float32)
    divided = np.clip([round(float(r)) for r in ratios], 0, 255).astype(np.uint8)
    multiplied = np.clip(np.rint(x * (1 / scale)), 0, 255).astype(np.uint8)
    assert (divided != multiplied).any()
    assert_same(quantize_ref(x, scale, 0), divided)


def test_the_error_of_eight_bits_is_half_a_step() -> None:
    x, scale, zero_point = uniform(-1, 2, (10_000,), 5), np.float32(3 / 255), 85
    error = np.abs(fake_quantize_ref(x, scale, zero_point) - x)
    assert error.max() <= scale / 2 * (1 + 1e-5)
    assert error.max() > 0.49 * scale


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32])
def test_dequantize_takes_any_integers(dtype: Any) -> None:
    q = np.array([0, 1, 7, 127], dtype)
    expected = np.float32([-50, -49, -43, 77]) * np.float32(0.3)
    assert_same(dequantize_ref(q, np.float32(0.3), 50), expected)
