"""Rung `ordered`: the same loops in another order, which adds to many sums side by side.

The innermost loop runs along a row of b and a row of c. Both are read from front to back, and no
sum waits for another. So LLVM makes vectors of this loop, also in float32.
"""

from collections.abc import Callable

import numpy as np

from minires.ladder.product import Product, compile_rung
from minires.layers import Array


def prepare(product: Product) -> Callable[[Array], Array]:
    """Turn the weights to (K, N), and compile the loops."""
    number = product.sums  # float32, or int32
    b = np.ascontiguousarray(product.weight.T)  # (K, N)

    def gemm(a: Array, b: Array, c: Array) -> None:
        M, K = a.shape
        N = b.shape[1]
        for m in range(M):
            for k in range(K):
                for n in range(N):
                    c[m, n] += number(a[m, k]) * number(b[k, n])

    compiled = compile_rung(product, gemm, product.matrices)

    def multiply(a: Array) -> Array:
        c = np.zeros((len(a), b.shape[1]), number)  # (M, N)
        compiled(a, b, c)
        return c

    return multiply
