"""Rung `loops`: the three loops of a matrix product as they are written down.

In float32 each addition to a sum waits for the one before, because floats must not be added in
another order. Integers may be, so in INT8 LLVM makes vectors of the innermost loop.
"""

from collections.abc import Callable

import numpy as np

from minires.ladder.product import Product, compile_rung
from minires.layers import Array


def prepare(product: Product) -> Callable[[Array], Array]:
    """Compile the loops into a function that multiplies a, (M, K)."""
    number = product.sums  # float32, or int32

    def gemm(a: Array, b: Array, c: Array) -> None:
        M, K = a.shape
        N = len(b)  # b is (N, K)
        for m in range(M):
            for n in range(N):
                for k in range(K):
                    c[m, n] += number(a[m, k]) * number(b[n, k])

    compiled = compile_rung(product, gemm, product.matrices)

    def multiply(a: Array) -> Array:
        c = np.zeros((len(a), len(product.weight)), number)  # (M, N)
        compiled(a, product.weight, c)
        return c

    return multiply
