"""Who holds which byte, in NumPy: what the kernels of this folder rely on.

A warp's 32 lanes hold a matrix together. These functions say which row and which bytes of it are a
lane's, as "PTX ISA" draws them in the section on mma.m16n8k32 (and m16n8k16, m16n8k8: 32 bytes of K
each), and which the loops here make of that.
"""

from typing import NamedTuple

import numpy as np

from minires.layers import Array

LANES = np.arange(32)
SLAB = 32  # columns of a warp that are stored together


def a_places(word: int) -> tuple[Array, Array]:
    """Tell the row, and the first of 4 bytes along K, of each lane's word 0 to 3 of A (16 x 32)."""
    return LANES // 4 + 8 * (word % 2), 4 * (LANES % 4) + 16 * (word // 2)


def b_places(word: int) -> tuple[Array, Array]:
    """Tell the column, and the first of 4 bytes along K, of each lane's word 0 or 1 of B."""
    return LANES // 4, 4 * (LANES % 4) + 16 * word


def sum_places(number: int) -> tuple[Array, Array]:
    """Tell the row and the column of each lane's sum 0 to 3 (16 x 8)."""
    return LANES // 4 + 8 * (number // 2), 2 * (LANES % 4) + number % 2


class Piece(NamedTuple):
    """What one instruction takes of the fragments of a product of 16 x 32 bytes by 32 x 8."""

    sums: list[int]
    a: list[int]  # words
    b: list[int]


def pieces(rows: int, depth: int) -> list[Piece]:
    """Cut that product up for an instruction that takes so many rows, and bytes along K.

    A half of the rows, and a half of K, are words and sums of their own: so an instruction of half
    the size finds its fragments where the whole one's are.
    """
    return [
        Piece(
            [sum_ for sum_ in range(4) if rows == 16 or sum_ // 2 == half],
            [word for word in range(4) if (rows == 16 or word % 2 == half)
             and (depth == 32 or word // 2 == k)],
            [word for word in range(2) if depth == 32 or word == k],
        )
        for k in range(32 // depth)
        for half in range(16 // rows)
    ]  # fmt: skip


def swizzle_ref(row: Array, chunk: Array) -> Array:
    """Tell which 16 bytes of a row of 64 hold a chunk, so that 8 rows lie in different banks."""
    return chunk ^ (row // 2 % 4)


def column_order() -> Array:
    """Tell which column of a slab of 32 lies where, so that each lane gets 8 neighbours.

    A lane's sums are columns 2 * (lane % 4) and the next of each of four fragments, 8 apart. Here
    they stand for the columns 8 * (lane % 4) to 8 * (lane % 4) + 7.
    """
    place = np.arange(SLAB)
    fragment = place // 8
    lane = place % 8 // 2
    odd = place % 2
    return 8 * lane + 2 * fragment + odd
