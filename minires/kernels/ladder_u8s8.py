"""The ladder in u8 x s8, the rungs that Numba alone can climb; read it beside ladder_f32.py.

A rung multiplies a, (M, K), by b, as it wants the weights, and returns c, (M, N). All make the same
products; what changes is their order, and with it how often memory is touched. ladder.py compiles
them, has the rungs above these, which are the engine's, and times them all.
"""

import numpy as np

from minires.layers import Array

ROWS = STEPS = 4  # of the tile: rows of a, and steps along K


def loops(a: Array, b: Array) -> Array:
    """Compile the three loops as they are written down: row, column, product.

    Integers may be summed in any order, so LLVM makes vectors of this one; of floats it may not.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[0]  # b is (N, K)
    c = np.zeros((M, N), np.int32)
    for m in range(M):
        for n in range(N):
            for k in range(K):
                c[m, n] += np.int32(a[m, k]) * np.int32(b[n, k])
    return c


def ordered(a: Array, b: Array) -> Array:
    """Run along rows of b and c in the innermost loop: it reads on, and LLVM makes it vectors."""
    M, K, N = a.shape[0], a.shape[1], b.shape[1]  # b is (K, N) from here on
    c = np.zeros((M, N), np.int32)
    for m in range(M):
        for k in range(K):
            for n in range(N):
                c[m, n] += np.int32(a[m, k]) * np.int32(b[k, n])
    return c


def tiled(a: Array, b: Array) -> Array:
    """Keep a tile of a, 4 rows by 4 steps, in registers: b's loads serve 4 rows, c's 4 steps."""
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    c = np.zeros((M, N), np.int32)
    for m in range(0, M, ROWS):
        c0, c1, c2, c3 = c[m], c[m + 1], c[m + 2], c[m + 3]
        for k in range(0, K, STEPS):
            a00, a01, a02, a03 = a[m, k], a[m, k + 1], a[m, k + 2], a[m, k + 3]
            a10, a11, a12, a13 = a[m + 1, k], a[m + 1, k + 1], a[m + 1, k + 2], a[m + 1, k + 3]
            a20, a21, a22, a23 = a[m + 2, k], a[m + 2, k + 1], a[m + 2, k + 2], a[m + 2, k + 3]
            a30, a31, a32, a33 = a[m + 3, k], a[m + 3, k + 1], a[m + 3, k + 2], a[m + 3, k + 3]
            for n in range(N):
                b0, b1, b2, b3 = b[k, n], b[k + 1, n], b[k + 2, n], b[k + 3, n]
                c0[n] = c0[n] + a00 * b0 + a01 * b1 + a02 * b2 + a03 * b3
                c1[n] = c1[n] + a10 * b0 + a11 * b1 + a12 * b2 + a13 * b3
                c2[n] = c2[n] + a20 * b0 + a21 * b1 + a22 * b2 + a23 * b3
                c3[n] = c3[n] + a30 * b0 + a31 * b1 + a32 * b2 + a33 * b3
    return c
