"""The layouts of fragments give a plain product, and no two rows of eight share a bank."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels for a GPU need numba-cuda: pip install .[cuda]")

from minires.kernels.cuda.fragments import (
    SLAB,
    a_places,
    b_places,
    column_order,
    pieces,
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


def small_product(rows: int, a_words: list[Any], b_words: list[Any]) -> list[Any]:
    """Multiply as a Turing card does, m8n8k16 or m16n8k8, from each lane's words of 4 bytes.

    "PTX ISA" draws these by themselves: a lane has the row lane / 4, and the row 8 further in a
    second word; of K it has the 4 bytes from 4 * (lane % 4) on. B has one word of each lane, and
    the sums are of the columns 2 * (lane % 4) and the next.
    """
    lane = np.arange(32)
    a, b = np.zeros((rows, 16), np.int32), np.zeros((16, 8), np.int32)
    for byte in range(4):
        for number, word in enumerate(a_words):
            a[lane // 4 + 8 * number, 4 * (lane % 4) + byte] = word[:, byte]
        b[4 * (lane % 4) + byte, lane // 4] = b_words[0][:, byte]
    product = a @ b
    columns = 2 * (lane % 4)
    return [
        product[lane // 4 + 8 * number, columns + odd]
        for number in range(rows // 8) for odd in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [8, 16])
def test_small_products_make_a_whole_one_from_the_same_fragments(rows: int) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (16, 32), np.uint8)
    b = rng.integers(-128, 128, (32, 8), np.int8)
    four = np.arange(4)
    a_words = [a[row[:, None], first[:, None] + four] for row, first in map(a_places, range(4))]
    b_words = [b[first[:, None] + four, column[:, None]]
               for column, first in map(b_places, range(2))]  # fmt: skip
    sums = np.zeros((4, 32), np.int32)
    cut = pieces(rows, 16)
    assert len(cut) == 32 // rows
    for piece in cut:
        assert (len(piece.sums), len(piece.a), len(piece.b)) == (rows // 4, rows // 8, 1)
        sums[piece.sums] += small_product(
            rows, [a_words[i] for i in piece.a], [b_words[i] for i in piece.b]
        )
    wanted = a.astype(np.int32) @ b.astype(np.int32)
    for number in range(4):
        np.testing.assert_array_equal(sums[number], wanted[sum_places(number)])


def test_a_whole_product_is_one_piece() -> None:
    assert pieces(16, 32) == [([0, 1, 2, 3], [0, 1, 2, 3], [0, 1])]


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
        "mma-small-f16": 32, "mma-small-u8s8": 32,
    }  # fmt: skip
    assert [i.times for i in INSTRUCTIONS.values() if i.times > 1] == [2, 4]
