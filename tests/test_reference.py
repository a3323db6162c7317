"""Every definition against SciPy, float64 or exact integers, in the order of reference.py."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special

from minires.reference import (
    batchnorm_ref,
    dequantize_ref,
    fake_quantize_ref,
    fold_batchnorm,
    gemm_f32_ref,
    gemm_u8s8_ref,
    global_avgpool_ref,
    im2col_ref,
    maxpool_ref,
    output_size,
    quantize_ref,
    relu_ref,
    requantize_ref,
    round_bf16_ref,
    softmax_ref,
)
from tests import scipy_oracle
from tests.comparing import EPS, Array, assert_close, assert_same, gemm_bound
from tests.int8_oracle import requantize_exact, round_half_even, to_float32
from tests.seeded_weights import uniform

sizes = st.integers(1, 12)
kernels = st.integers(1, 7)
strides = st.integers(1, 3)
paddings = st.integers(0, 3)
channels = st.integers(1, 5)
CHANNELS = 6  # of BatchNorm
VARIANCES = [0.0, 1e-30, 1e-5, 1.0, 1e6]
GAMMAS = [0.0, -1.5, 0.75, 1e-20]
EVERY_U8 = np.arange(256).astype(np.uint8)
EVERY_S8 = np.arange(-128, 128).astype(np.int8)
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
SCALES = [np.float32(s) for s in (2.0**-6, 0.0117, 1.0, 0.1, 3.7, 1e-30, 1e30)]
ZERO_POINTS = [0, 1, 3, 127, 128, 254, 255]
# Powers of two end in ties; the others lie anywhere, the last ones at the ends of what occurs.
MULTIPLIERS = [
    np.float32(m)
    for m in (0.5, 0.25, 2.0**-7, 1.0, 1 / 3, 0.0123, 0.00390625001, 0.7071, 0.999, 3e-6)
]


# im2col


def fits(in_h: int, in_w: int, k_h: int, k_w: int, padding: int) -> bool:
    return in_h + 2 * padding >= k_h and in_w + 2 * padding >= k_w


@given(sizes, kernels, strides, paddings)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_output_size_counts_the_places_where_a_kernel_fits(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    places = range(0, size + 2 * padding - kernel + 1, stride)
    assume(places)
    assert output_size(size, kernel, stride, padding) == len(places)


@given(st.integers(1, 3), sizes, sizes, channels, kernels, kernels, strides, paddings,
       st.sampled_from([np.float32, np.uint8, np.int8]))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=150)
def test_rows_are_the_patches_in_reading_order(
    batch: int, in_h: int, in_w: int, in_c: int, k_h: int, k_w: int, stride: int, padding: int,
    dtype: Any,
) -> None:  # fmt: skip
    assume(fits(in_h, in_w, k_h, k_w, padding))
    shape = (batch, in_h, in_w, in_c)
    x = uniform(-100, 100, shape, 0).astype(np.int8).astype(dtype)
    padded = scipy_oracle.pad(x, padding, 7)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k_h, k_w), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]  # (batch, out_h, out_w, in_c, k_h, k_w)
    expected = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, k_h * k_w * in_c)
    assert_same(im2col_ref(x, k_h, k_w, stride, padding, fill=7), expected)


@given(st.integers(1, 2), sizes, sizes, channels, channels, kernels, kernels, strides, paddings)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_convolution_is_scipys(
    batch: int, in_h: int, in_w: int, in_c: int, out_c: int, k_h: int, k_w: int, stride: int,
    padding: int,
) -> None:  # fmt: skip
    assume(fits(in_h, in_w, k_h, k_w, padding))
    x = uniform(-1, 1, (batch, in_h, in_w, in_c), 1)
    weight = uniform(-1, 1, (out_c, k_h, k_w, in_c), 2)
    y = gemm_f32_ref(im2col_ref(x, k_h, k_w, stride, padding), weight.reshape(out_c, -1).T)
    expected = scipy_oracle.convolve(x, weight, stride, padding)
    magnitude = scipy_oracle.convolve(np.abs(x), np.abs(weight), stride, padding)
    assert_close(y.reshape(expected.shape), expected, gemm_bound(k_h * k_w * in_c, magnitude))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1),
                                                           (3, 2, 1), (7, 2, 3)])  # fmt: skip
def test_the_network_s_own_kernels_on_odd_sizes(kernel: int, stride: int, padding: int) -> None:
    x = uniform(-1, 1, (2, 13, 9, 4), 3)
    weight = uniform(-1, 1, (3, kernel, kernel, 4), 4)
    y = gemm_f32_ref(im2col_ref(x, kernel, kernel, stride, padding), weight.reshape(3, -1).T)
    expected = scipy_oracle.convolve(x, weight, stride, padding)
    magnitude = scipy_oracle.convolve(np.abs(x), np.abs(weight), stride, padding)
    assert_close(y.reshape(expected.shape), expected, gemm_bound(kernel**2 * 4, magnitude))


# The matrix product in float32


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 600))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_f32_errs_by_no_more_than_the_sum_of_its_products_allows(M: int, N: int, K: int) -> None:
    a, b = uniform(-1, 1, (M, K), 0), uniform(-1, 1, (K, N), 1)
    exact, magnitude = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    assert_close(gemm_f32_ref(a, b), exact, gemm_bound(K, magnitude))


def test_no_warning_of_blas_is_believed() -> None:
    """An Apple M4's warns where nothing is wrong. Here pytest makes an error of any that comes."""
    y = gemm_f32_ref(np.array([[np.inf]], np.float32), np.zeros((1, 1), np.float32))
    assert np.isnan(y).all()


# BatchNorm by itself and folded, against float64, where its parameters are at their worst.
#
# The bounds count roundings. By itself it has seven: a sum and a square root under the division,
# the division, the difference, the product, the sum, and float32's own eps. Each errs by half an
# EPS at most, which makes 4 * EPS of the terms' magnitudes. Folded, it is a convolution whose
# weights and bias were rounded once.


def parameters(variance: float, gamma: float) -> tuple[Array, Array, Array, Array]:
    """Make gamma, beta, mean and var of which every second channel is ordinary."""
    gammas, variances = uniform(0.5, 1.5, (CHANNELS,), 1), uniform(0.5, 2, (CHANNELS,), 2)
    gammas[::2], variances[::2] = gamma, variance
    return gammas, uniform(-1, 1, (CHANNELS,), 3), uniform(-1, 1, (CHANNELS,), 4), variances


def in_float64(x: Array, gamma: Array, beta: Array, mean: Array, var: Array) -> tuple[Array, Array]:
    """Normalize, and add up the magnitudes of what is added: the formula of the paper."""
    factor = gamma / np.sqrt(var.astype(np.float64) + 1e-5)
    return (x - mean) * factor + beta, (np.abs(x) + np.abs(mean)) * np.abs(factor) + np.abs(beta)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_batchnorm_by_itself(variance: float, gamma: float) -> None:
    x = uniform(-3, 3, (2, 5, 3, CHANNELS), 0)
    bn = parameters(variance, gamma)
    expected, magnitude = in_float64(x.astype(np.float64), *bn)
    assert_close(batchnorm_ref(x, *bn), expected, 4 * EPS * magnitude)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_batchnorm_folded_into_weights(variance: float, gamma: float) -> None:
    weight = uniform(-1, 1, (CHANNELS, 3, 3, 2), 5)
    gammas, beta, mean, var = bn = parameters(variance, gamma)
    folded, bias = fold_batchnorm(weight, *bn)
    factor = gammas / np.sqrt(var.astype(np.float64) + 1e-5)
    expected = weight * factor[:, np.newaxis, np.newaxis, np.newaxis]
    tiny = np.finfo(np.float32).tiny  # below it, what a float32 keeps is not relative any more
    assert_close(folded, expected, EPS * np.abs(expected) + tiny)
    exact_bias = beta - mean * factor
    assert_close(bias, exact_bias, EPS * np.abs(exact_bias) + tiny)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_batchnorm_after_a_convolution(variance: float, gamma: float, kernel: int) -> None:
    in_c, padding = 8, kernel // 2
    K = kernel**2 * in_c
    x = uniform(-1, 1, (2, 7, 5, in_c), 6)
    weight = uniform(-1, 1, (CHANNELS, kernel, kernel, in_c), 7)
    bn = parameters(variance, gamma)
    sums = scipy_oracle.convolve(x, weight, 1, padding)
    expected, _ = in_float64(sums, *bn)
    _, magnitude = in_float64(scipy_oracle.convolve(np.abs(x), np.abs(weight), 1, padding), *bn)

    columns = im2col_ref(x, kernel, kernel, 1, padding)
    itself = batchnorm_ref(gemm_f32_ref(columns, weight.reshape(CHANNELS, K).T), *bn)
    assert_close(itself.reshape(expected.shape), expected, gemm_bound(K, magnitude))

    folded, bias = fold_batchnorm(weight, *bn)
    together = gemm_f32_ref(columns, folded.reshape(CHANNELS, K).T) + bias
    assert_close(together.reshape(expected.shape), expected, gemm_bound(K, magnitude))


def test_batchnorm_gives_a_dead_channel_its_beta() -> None:
    x = uniform(-3, 3, (1, 4, 4, CHANNELS), 8)
    bn = parameters(variance=0, gamma=0)
    beta = np.broadcast_to(bn[1][::2], (1, 4, 4, CHANNELS // 2))
    assert_close(batchnorm_ref(x, *bn)[..., ::2], beta, 0)


def test_folding_leaves_its_inputs_alone() -> None:
    weight, bn = uniform(-1, 1, (CHANNELS, 1, 1, 2), 9), parameters(1e6, -1.5)
    before = [array.copy() for array in (weight, *bn)]
    fold_batchnorm(weight, *bn)
    for array, copy in zip((weight, *bn), before, strict=True):
        assert_close(array, copy, 0)


# ReLU, pools and softmax


def test_relu_clips_below_zero() -> None:
    x = np.array([[-np.inf, -1e-45, -0.0], [0.0, 1e-45, np.inf]], np.float32)
    assert_same(relu_ref(x), np.array([[0, 0, 0], [0, 1e-45, np.inf]], np.float32))


def test_relu_keeps_nan_and_leaves_its_input_alone() -> None:
    x = np.array([np.nan, -1], np.float32)
    y = relu_ref(x)
    assert np.isnan(y[0])
    assert y[1] == 0
    assert x[1] == -1


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw a kernel, a stride and a padding of at most half the kernel."""
    kernel = draw(st.integers(1, 5))
    return kernel, draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))


@given(st.integers(1, 3), sizes, sizes, st.integers(1, 5), windows(),
       st.sampled_from([np.float32, np.uint8, np.int8]))  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=150)
def test_maxpool_is_scipys(
    batch: int, in_h: int, in_w: int, channels: int, window: tuple[int, int, int], dtype: Any
) -> None:
    kernel, stride, padding = window
    assume(min(in_h, in_w) + 2 * padding >= kernel)
    # All negative where the dtype can be, so that a padding of zero would win.
    x = (uniform(-100, -1, (batch, in_h, in_w, channels), 0)).astype(np.int8).astype(dtype)
    assert_same(
        maxpool_ref(x, kernel, stride, padding), scipy_oracle.maxpool(x, kernel, stride, padding)
    )


@pytest.mark.parametrize("in_h", [1, 2, 17, 112])
def test_the_network_s_own_maxpool(in_h: int) -> None:
    x = uniform(-1, 1, (2, in_h, 5, 3), 1)
    assert_same(maxpool_ref(x, 3, 2, 1), scipy_oracle.maxpool(x, 3, 2, 1))


def test_maxpool_keeps_nan() -> None:
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, 0, 0, 0] = np.nan
    y = maxpool_ref(x, 3, 2, 1)
    assert np.isnan(y[0, 0, 0, 0])
    assert np.count_nonzero(np.isnan(y)) == 1


@given(st.integers(1, 3), sizes, sizes, st.integers(1, 40))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_average_pool_is_the_mean_over_pixels(
    batch: int, in_h: int, in_w: int, channels: int
) -> None:
    x = uniform(-1, 3, (batch, in_h, in_w, channels), 2)
    exact = x.astype(np.float64)
    bound = in_h * in_w * EPS * np.abs(exact).mean(axis=(1, 2))
    assert_close(global_avgpool_ref(x), exact.mean(axis=(1, 2)), bound)


@pytest.mark.parametrize("shape", [(1,), (10,), (3, 1000), (2, 3, 5)])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1e4])
def test_softmax_is_scipys(shape: tuple[int, ...], spread: float) -> None:
    logits = uniform(-spread, spread, shape, 0)
    expected = special.softmax(logits.astype(np.float64), axis=-1)
    # The difference from the largest rounds once, and exp makes an absolute error a relative one;
    # the sum rounds once a class, exp and the quotient by a few units more.
    distance = logits.max(axis=-1, keepdims=True).astype(np.float64) - logits
    bound: Array = EPS * (distance + shape[-1] + 8) * expected + np.finfo(np.float32).tiny
    probabilities = softmax_ref(logits)
    assert_close(probabilities, expected, bound)
    assert_close(probabilities.sum(axis=-1), np.ones(shape[:-1]), shape[-1] * EPS)


def test_softmax_neither_overflows_nor_divides_zero_by_zero() -> None:
    logits = np.array([[1e38, -1e38, 1e38], [-1e38, -1e38, -1e38]], np.float32)
    expected = np.array([[1 / 2, 0, 1 / 2], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    assert_same(softmax_ref(logits), expected)


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


# The exact matrix product of u8 by s8: every product, the edges of its block, and large sums


def test_u8s8_multiplies_every_pair() -> None:
    expected = EVERY_U8.astype(np.int32)[:, np.newaxis] * EVERY_S8.astype(np.int32)
    assert_same(gemm_u8s8_ref(EVERY_U8[:, np.newaxis], EVERY_S8[np.newaxis]), expected)


@pytest.mark.parametrize("K", [1, 2, 511, 512, 513, 1023, 1024, 1025, 4608, 65_793])
@pytest.mark.parametrize("weight", [-128, 127])
def test_u8s8_holds_the_largest_sums_of_each_length(K: int, weight: int) -> None:
    """K up to the last whose largest sum, 255 * 128 * K, is still below 2**31."""
    a, b = np.full((2, K), 255, np.uint8), np.full((K, 3), weight, np.int8)
    assert_same(gemm_u8s8_ref(a, b), np.full((2, 3), 255 * weight * K, np.int32))
    assert 255 * 128 * K < 2**31


@pytest.mark.parametrize("K", [511, 512, 513, 1024, 1025])
def test_u8s8_keeps_the_last_bit_of_large_sums(K: int) -> None:
    """One product is odd, so that each sum needs its last bit; 2**24 is where float32 lacks it."""
    a, b = np.full((K, K), 255, np.uint8), np.full((K, 2), -128, np.int8)
    b[:, 1] = 127
    np.fill_diagonal(a, 254)
    b[K // 2] = -127, 126
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert (expected % 2 == 1).any()
    assert_same(gemm_u8s8_ref(a, b), expected.astype(np.int32))


def test_u8s8_does_not_saturate_pairs_at_16_bits() -> None:
    """What vpmaddubsw makes of this is 32,767."""
    a, b = np.full((1, 2), 255, np.uint8), np.full((2, 1), 127, np.int8)
    assert gemm_u8s8_ref(a, b).item() == 64_770


def test_u8s8_sums_no_products_to_zero() -> None:
    a, b = np.zeros((2, 0), np.uint8), np.zeros((0, 3), np.int8)
    assert_same(gemm_u8s8_ref(a, b), np.zeros((2, 3), np.int32))


def test_u8s8_takes_any_strides() -> None:
    """Weights arrive transposed, as a view."""
    random = np.random.RandomState(0)
    a = random.randint(0, 256, (20, 1200)).astype(np.uint8)[::2, ::2]
    b = random.randint(-128, 128, (7, 600)).astype(np.int8).T
    expected = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
    assert_same(gemm_u8s8_ref(a, b), expected)


@pytest.mark.parametrize("K", [1, 511, 512, 513, 1024, 1025, 4608])
def test_u8s8_is_exact_below_at_and_above_its_block(K: int) -> None:
    a = uniform(0, 256, (7, K), 2).astype(np.uint8)
    b = uniform(-128, 128, (K, 5), 3).astype(np.int8)
    exact = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
    assert_same(gemm_u8s8_ref(a, b), exact)


@pytest.mark.parametrize("K", [512, 513, 520, 1024, 4608])
@pytest.mark.parametrize("weights", [(-128, -126), (125, 127)])
def test_u8s8_is_exact_near_the_largest_sums(K: int, weights: tuple[int, int]) -> None:
    """Blocks of 520 would pass 2**24, where float32 drops the odd sums."""
    a = uniform(253, 256, (7, K), 4).astype(np.uint8)
    b = np.floor(uniform(weights[0], weights[1] + 1, (K, 5), 5)).astype(np.int8)
    exact = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
    assert_same(gemm_u8s8_ref(a, b), exact)


@pytest.mark.parametrize("weight", [-128, 127])
def test_u8s8_holds_the_largest_sums(weight: int) -> None:
    a, b = np.full((2, 4608), 255, np.uint8), np.full((4608, 3), weight, np.int8)
    assert_same(gemm_u8s8_ref(a, b), np.full((2, 3), 255 * weight * 4608, np.int32))


# Requantize, against exact integers; and first the oracle itself


def test_the_oracle_rounds_as_fractions_and_float32_do() -> None:
    random = np.random.RandomState(0)
    values = np.concatenate([np.arange(-40, 41), random.randint(-(2**40), 2**40, 300)])
    for shift in (0, 1, 2, 5, 17):
        expected = [round(Fraction(int(value), 2**shift)) for value in values]
        np.testing.assert_array_equal(round_half_even(values, shift), expected)
    large = np.concatenate([values, [2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**31 - 1, -(2**31)]])
    np.testing.assert_array_equal(to_float32(large), large.astype(np.float32).astype(np.int64))


@pytest.mark.parametrize("m", MULTIPLIERS)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_requantize_every_accumulator_of_a_range(m: np.float32, zero_point: int) -> None:
    acc = np.arange(-70_000, 70_001)
    expected = requantize_exact(acc, m, zero_point)
    assert_same(requantize_ref(acc.astype(np.int32), m, zero_point), expected)


@pytest.mark.parametrize("m", [np.float32(m) for m in (2.0**-23, 1.1e-7, 3e-7, 2.0**-30, 1e-9)])
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_requantize_accumulators_that_float32_rounds(m: np.float32, zero_point: int) -> None:
    """Beyond 2**24: around every tie of the result, and anywhere up to the ends of int32."""
    ties = np.rint((np.arange(-256, 256) + 0.5) / np.float64(m)).astype(np.int64)
    near = (ties[:, np.newaxis] + np.arange(-70, 71)).ravel()
    anywhere = np.random.RandomState(1).randint(INT32_MIN, INT32_MAX, 50_000)
    ends = np.array([INT32_MIN, INT32_MIN + 1, INT32_MAX - 1, INT32_MAX])
    acc = np.concatenate([near, anywhere, ends])
    acc = acc[(acc >= INT32_MIN) & (acc <= INT32_MAX)]
    expected = requantize_exact(acc, m, zero_point)
    assert_same(requantize_ref(acc.astype(np.int32), m, zero_point), expected)


def test_requantize_rounds_ties_to_the_even_step_on_both_sides() -> None:
    acc = np.array([-7, -5, -3, -1, 1, 3, 5, 7], np.int32)  # halves: -3.5 to 3.5
    steps = requantize_ref(acc, np.float32(0.5), 100).astype(int) - 100
    assert steps.tolist() == [-4, -2, -2, 0, 0, 2, 2, 4]


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_requantize_saturates_at_both_ends(zero_point: int) -> None:
    """The clip comes before the conversion: none of these fits in an int32 any more."""
    acc = np.array([INT32_MIN, INT32_MAX, -256, 255, 0], np.int32)
    y = requantize_ref(acc, np.float32(1000), zero_point)
    assert y.tolist() == [0, 255, 0, 255, zero_point]
    largest = np.array([-zero_point - 1, -zero_point, 255 - zero_point, 256 - zero_point], np.int32)
    assert requantize_ref(largest, np.float32(1), zero_point).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("m", [m for m in MULTIPLIERS if 0.001 < m < 0.9])
@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
def test_requantize_has_a_mean_error_near_zero(m: np.float32, zero_point: int) -> None:
    """Rounding halves up would shift the mean by 1/4 at m = 1/2, and by 1/8 at 1/4."""
    acc = np.arange(-70_000, 70_001)
    exact = acc * np.float64(m)
    acc, exact = (a[(exact > -zero_point) & (exact < 255 - zero_point)] for a in (acc, exact))
    error = requantize_ref(acc.astype(np.int32), m, zero_point).astype(int) - zero_point - exact
    assert len(error) > 200
    assert np.abs(error).max() <= 0.5 + 255 * 2.0**-23
    assert abs(error.mean()) <= 2 / len(error) + 1e-3


def test_requantize_gives_each_column_its_multiplier() -> None:
    acc = np.arange(-3000, 3000).reshape(-1, 3)  # (M, N)
    m = np.float32([0.5, 0.0123, 1 / 3])
    y = requantize_ref(acc.astype(np.int32), m, 77)
    assert_same(y, np.stack([requantize_exact(acc[:, n], m[n], 77) for n in range(3)], axis=1))


@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_requantize_adds_the_shortcut_before_its_one_rounding(zero_point: int) -> None:
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


# bfloat16: by the bits, against every neighbour there is


def test_bf16_keeps_every_bfloat16() -> None:
    bits = np.arange(2**16, dtype=np.uint32) << 16
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    assert_same(round_bf16_ref(x).view(np.uint32), x.view(np.uint32))  # -0.0 too


def test_bf16_chooses_the_nearest_and_of_two_the_even_one() -> None:
    """In exact fractions, at and around the middle between two neighbours."""
    halves = np.random.RandomState(0).randint(0x0080, 0x7F00, 300).astype(np.uint32)
    for tail in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (halves << 16 | tail).view(np.float32)
        for value, half, y in zip(x, halves, round_bf16_ref(x), strict=True):
            lower, upper = (np.array([half + i], np.uint32) << 16 for i in (0, 1))
            low, high = (Fraction(float(b.view(np.float32)[0])) for b in (lower, upper))
            below, above = Fraction(float(value)) - low, high - Fraction(float(value))
            nearest = low if below < above or (below == above and half % 2 == 0) else high
            assert Fraction(float(y)) == nearest


def test_bf16_errs_by_at_most_half_a_step() -> None:
    x = uniform(-10, 10, (10_000,), 0)
    assert np.all(np.abs(round_bf16_ref(x) - x.astype(np.float64)) <= 2.0**-8 * np.abs(x))


def test_bf16_rounds_to_infinity_beyond_the_largest() -> None:
    assert round_bf16_ref(np.array([3.4e38], np.float32))[0] == np.inf
