from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minires.reference import global_avgpool_ref, maxpool_ref
from tests import scipy_oracle
from tests.comparing import EPS, assert_close, assert_same
from tests.seeded_weights import uniform

sizes = st.integers(1, 12)


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
