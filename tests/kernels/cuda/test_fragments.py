"""The layouts of fragments give a plain product, and no two rows of eight share a bank."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels for a GPU need numba-cuda: pip install .[cuda]")

from minires.kernels.cuda.fragments import (
    SLAB,
    a_places,
    b_places,
    column_order,
    sum_places,
    swizzle_ref,
)
from minires.kernels.cuda.instructions import INSTRUCTIONS


def test_the_lanes_bytes_and_sums_make_a_product() -> None:
    """As one mma: each lane gives 16 bytes of A and 8 of B, and gets 4 sums."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (16, 32), np.uint8)
    b = rng.integers(-128, 128, (32, 8), np.int8)
    seen_a, seen_b = np.zeros(a.shape, int), np.zeros(b.shape, int)
    again_a, again_b = np.zeros_like(a), np.zeros_like(b)
    for word in range(4):
        rows, first = a_places(word)
        for byte in range(4):
            again_a[rows, first + byte] = a[rows, first + byte]
            np.add.at(seen_a, (rows, first + byte), 1)
    for word in range(2):
        columns, first = b_places(word)
        for byte in range(4):
            again_b[first + byte, columns] = b[first + byte, columns]
            np.add.at(seen_b, (first + byte, columns), 1)
    assert (seen_a == 1).all(), "each byte of A is one lane's"
    assert (seen_b == 1).all()
    product = again_a.astype(np.int32) @ again_b.astype(np.int32)
    sums = np.full((16, 8), -1)
    for number in range(4):
        rows, columns = sum_places(number)
        sums[rows, columns] = product[rows, columns]
    np.testing.assert_array_equal(sums, a.astype(np.int32) @ b.astype(np.int32))


def test_ldmatrix_brings_the_fragments_of_mma() -> None:
    """Through shared memory with its swizzle, by the addresses that block.py gives the lanes."""
    a = np.arange(16 * 64, dtype=np.uint16).reshape(16, 64).astype(np.uint8)
    shared = np.zeros((16, 4, 16), np.uint8)
    rows, chunks = np.indices((16, 4))
    shared[rows, swizzle_ref(rows, chunks)] = a.reshape(16, 4, 16)
    lanes = np.arange(32)
    for half in range(2):
        row, chunk = lanes % 16, lanes // 16 + 2 * half
        named = shared[row, swizzle_ref(row, chunk)]  # the row of a matrix that each lane names
        for word in range(4):
            matrix = named[8 * word : 8 * word + 8]  # 8 rows of 16 bytes
            got = matrix[lanes // 4].reshape(32, 4, 4)[lanes, lanes % 4]
            at_row, first = a_places(word)
            wanted = a[at_row[:, None], first[:, None] + 32 * half + np.arange(4)]
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("first", range(0, 128, 8))
@pytest.mark.parametrize("chunk", range(4))
def test_eight_rows_lie_in_different_banks(first: int, chunk: int) -> None:
    rows = np.arange(first, first + 8)
    starts = 64 * rows + 16 * swizzle_ref(rows, np.full(8, chunk))
    assert len({*(starts // 16 % 8)}) == 8, "32 banks of 4 bytes are 8 places of 16"


def test_a_lane_stores_eight_neighbours() -> None:
    order = column_order()
    assert sorted(order) == list(range(SLAB))
    for lane in range(4):
        places = [8 * fragment + 2 * lane + odd for fragment in range(4) for odd in range(2)]
        assert list(order[places]) == list(range(8 * lane, 8 * lane + 8))


def test_a_lanes_products() -> None:
    assert {name: i.products for name, i in INSTRUCTIONS.items()} == {
        "fma": 1, "dp4a": 4, "mma-tf32": 32, "mma-f16": 64, "mma-bf16": 64, "mma-u8s8": 128,
    }  # fmt: skip
