"""The exact integer GEMM: every product, the block's edges, and sums that narrower types lose."""

import numpy as np
import pytest

from minires.reference import gemm_u8s8_ref
from tests.comparing import assert_same

EVERY_U8 = np.arange(256).astype(np.uint8)
EVERY_S8 = np.arange(-128, 128).astype(np.int8)


def test_every_product() -> None:
    expected = EVERY_U8.astype(np.int32)[:, np.newaxis] * EVERY_S8.astype(np.int32)
    assert_same(gemm_u8s8_ref(EVERY_U8[:, np.newaxis], EVERY_S8[np.newaxis]), expected)


@pytest.mark.parametrize("K", [1, 2, 511, 512, 513, 1023, 1024, 1025, 4608, 65_793])
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_largest_sums(K: int, weight: int) -> None:
    """K up to the last whose largest sum, 255 * 128 * K, is still below 2**31."""
    a, b = np.full((2, K), 255, np.uint8), np.full((K, 3), weight, np.int8)
    assert_same(gemm_u8s8_ref(a, b), np.full((2, 3), 255 * weight * K, np.int32))
    assert 255 * 128 * K < 2**31


@pytest.mark.parametrize("K", [511, 512, 513, 1024, 1025])
def test_the_last_bit_of_large_sums(K: int) -> None:
    """One product is odd, so that each sum needs its last bit; 2**24 is where float32 lacks it."""
    a, b = np.full((K, K), 255, np.uint8), np.full((K, 2), -128, np.int8)
    b[:, 1] = 127
    np.fill_diagonal(a, 254)
    b[K // 2] = -127, 126
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert (expected % 2 == 1).any()
    assert_same(gemm_u8s8_ref(a, b), expected.astype(np.int32))


def test_pairs_do_not_saturate_at_16_bits() -> None:
    """What vpmaddubsw makes of this is 32,767."""
    a, b = np.full((1, 2), 255, np.uint8), np.full((2, 1), 127, np.int8)
    assert gemm_u8s8_ref(a, b).item() == 64_770


def test_no_products_sum_to_zero() -> None:
    a, b = np.zeros((2, 0), np.uint8), np.zeros((0, 3), np.int8)
    assert_same(gemm_u8s8_ref(a, b), np.zeros((2, 3), np.int32))


def test_strides_do_not_matter() -> None:
    """Weights arrive transposed, as a view."""
    random = np.random.RandomState(0)
    a = random.randint(0, 256, (20, 1200)).astype(np.uint8)[::2, ::2]
    b = random.randint(-128, 128, (7, 600)).astype(np.int8).T
    expected = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
    assert_same(gemm_u8s8_ref(a, b), expected)
