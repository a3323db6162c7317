import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.reference import gemm_f32_ref, gemm_u8s8_ref
from tests.comparing import assert_close, assert_same, gemm_bound
from tests.seeded_weights import uniform

sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(1, 600))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_f32_errs_by_no_more_than_the_sum_of_its_products_allows(M: int, N: int, K: int) -> None:
    a, b = uniform(-1, 1, (M, K), 0), uniform(-1, 1, (K, N), 1)
    exact, magnitude = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    assert_close(gemm_f32_ref(a, b), exact, gemm_bound(K, magnitude))


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
