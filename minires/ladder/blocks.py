"""Rung `blocks`: rows of the im2col matrix come in blocks that stay in the cache.

Before, each panel of weights met all rows. These are megabytes, so they came from far away again
for each panel. Now a block of rows meets all panels before the next block does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from minires.kernels.cpu import room_in
from minires.kernels.microkernel import Microkernel, microkernel
from minires.kernels.pack import aligned
from minires.ladder.product import Product, compile_rung, fill_up
from minires.layers import Array


def prepare(product: Product) -> Callable[[Array], Array]:
    """Pack the weights, choose a block, and compile loops around the microkernel."""
    kernel = Microkernel.of(product.isa, product.form.operands, product.form.epilogue)
    name = kernel.name
    rows = kernel.rows
    columns = kernel.columns
    words = fill_up(product.weight, columns, product.step).view(np.uint32)  # (N, groups)
    panels = len(words) // columns
    groups = words.shape[1]
    w = aligned((panels, groups, columns), np.uint32)
    w[...] = words.reshape(panels, columns, groups).transpose(0, 2, 1)
    # Half of the second cache: panels pass through the other half, and so does the output.
    block = max(1, room_in(2) // 2 // (4 * groups * rows)) * rows
    epilogue = product.epilogue(columns)

    def gemm(a: Array, offsets: Array, w: Array, epilogue: Any, y: Array, block: int) -> None:
        bias, m, scalars = epilogue
        M = offsets.shape[1] - 1  # a multiple of rows
        for top in range(0, M, block):
            for panel in range(len(w)):
                column = panel * columns
                w_at = w[panel].ctypes.data
                y_at = y[0, column:].ctypes.data
                bias_at = bias[column:].ctypes.data
                m_at = m[column:].ctypes.data
                for row in range(top, min(top + block, M), rows):
                    a_offsets = offsets[0, row:].ctypes.data
                    y_offsets = offsets[1, row:].ctypes.data
                    # K is one run of groups. There is nothing to fetch for later, and no residual.
                    microkernel(
                        name, a.ctypes.data, a_offsets, w_at, 1, w.shape[1], 0, w_at, 0,
                        bias_at, m_at, 0, y_at, y_offsets, scalars,
                    )  # fmt: skip

    compiled = compile_rung(product, gemm, product.blocked(types.int64))

    def multiply(a: Array) -> Array:
        M, N = len(a), len(product.weight)
        a = fill_up(a, 1, product.step)
        y = np.empty((M + 1, panels * columns), product.form.activation)
        # Rows that the last tile lacks are the last row again, written behind the output.
        row = np.arange(-(-M // rows) * rows + 1)
        from_bytes = np.minimum(row, M - 1) * a.strides[0]
        to_values = np.minimum(row, M) * y.shape[1]
        compiled(a, np.array([from_bytes, to_values], np.int32), w, epilogue, y, block)
        return y[:M, :N]

    return multiply
