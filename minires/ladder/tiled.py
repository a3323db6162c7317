"""Rung `tiled`: a tile of a, 4 rows by 4 steps along K, stays in registers.

A value of b that is loaded once serves 4 rows, and a sum that is loaded once takes 4 products.
Before, each product cost two loads and a store.
"""

from collections.abc import Callable

import numpy as np

from minires.ladder.product import Product, compile_rung, fill_up
from minires.layers import Array

ROWS = STEPS = 4  # of the tile


def prepare(product: Product) -> Callable[[Array], Array]:
    """Turn the weights to (K, N), and compile the loops."""
    b = np.ascontiguousarray(fill_up(product.weight, 1, STEPS).T)  # (K, N)

    def gemm(a: Array, b: Array, c: Array) -> None:
        M, K = a.shape
        N = b.shape[1]
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

    compiled = compile_rung(product, gemm, product.matrices)

    def multiply(a: Array) -> Array:
        M = len(a)
        a = fill_up(a, ROWS, STEPS)
        c = np.zeros((len(a), b.shape[1]), product.sums)
        compiled(a, b, c)
        return c[:M]  # (M, N)

    return multiply
