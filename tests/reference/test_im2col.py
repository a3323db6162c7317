from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minires.reference import gemm_f32_ref, im2col_ref, output_size
from tests import scipy_oracle
from tests.comparing import assert_close, assert_same, gemm_bound
from tests.seeded_weights import uniform

sizes = st.integers(1, 12)
kernels = st.integers(1, 7)
strides = st.integers(1, 3)
paddings = st.integers(0, 3)
channels = st.integers(1, 5)


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
