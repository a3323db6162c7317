"""Rung `implicit`: the im2col matrix is never written, since its rows are addresses.

In NHWC the pixels under one row of the convolution's kernel are neighbours. So a row of the matrix
consists of runs of memory: one for each row of the kernel, always the same distance apart. You only
need to know where the first one begins.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from minires.kernels.cpu import room_in
from minires.kernels.microkernel import Microkernel, microkernel
from minires.kernels.pack import aligned
from minires.kernels.threads import WORKERS
from minires.ladder.product import Product, compile_rung, fill_up
from minires.layers import Array


def prepare(product: Product) -> Callable[[Array], Array]:
    """Pack the weights run by run, and compile a thread's loops, for activations in NHWC."""
    kernel = Microkernel.of(product.isa, product.form.operands, product.form.epilogue)
    name, rows, columns, layer = kernel.name, kernel.rows, kernel.columns, product.layer
    N, runs, pad, stride = layer.out_c, layer.kernel, layer.padding, layer.stride
    filled = fill_up(product.weight.reshape(N * runs, -1), 1, product.step)
    words = fill_up(filled.reshape(N, -1), columns, 1).view(np.uint32)  # (N, runs * groups)
    panels, groups = len(words) // columns, words.shape[1] // runs
    w = aligned((panels, runs * groups, columns), np.uint32)
    w[...] = words.reshape(panels, columns, -1).transpose(0, 2, 1)
    block = max(1, room_in(2) // 2 // (4 * groups * runs * rows)) * rows
    epilogue, threads = product.epilogue(columns), product.threads

    def gemm(
        x: Array, offsets: Array, w: Array, epilogue: Any, y: Array, block: int, runs: int,
        run_stride: int, threads: int, thread: int,
    ) -> None:  # fmt: skip
        bias, m, scalars = epilogue
        tiles, groups = (offsets.shape[1] - 1) // rows, w.shape[1] // runs
        begin, end = tiles * thread // threads * rows, tiles * (thread + 1) // threads * rows
        for top in range(begin, end, block):
            for panel in range(len(w)):
                column = panel * columns
                w_at, y_at = w[panel].ctypes.data, y[0, column:].ctypes.data
                bias_at, m_at = bias[column:].ctypes.data, m[column:].ctypes.data
                for row in range(top, min(top + block, end), rows):
                    x_offsets = offsets[0, row:].ctypes.data
                    y_offsets = offsets[1, row:].ctypes.data
                    # There is nothing to fetch for later, and no residual.
                    microkernel(
                        name, x.ctypes.data, x_offsets, w_at, runs, groups, run_stride, w_at, 0,
                        bias_at, m_at, 0, y_at, y_offsets, scalars,
                    )  # fmt: skip

    compiled = compile_rung(product, gemm, product.blocked(*[types.int64] * 5))

    @functools.cache
    def lay_out(shape: tuple[int, ...]) -> tuple[Array, Array, int]:
        batch, height, width, channels = shape
        size = batch, height + 2 * pad, width + 2 * pad, channels
        padded = aligned(size, product.form.activation, product.zero_point)
        pixels = np.indices(layer.output_shape(shape)[:3]).reshape(3, -1)
        strides = np.array(padded.strides[:3]) * [1, stride, stride]
        first = strides @ pixels  # bytes to each row's first tap
        M = len(first)
        row = np.arange(-(-M // rows) * rows + 1)
        # Rows that the last tile lacks are the last row again, written behind the output.
        to_values = np.minimum(row, M) * panels * columns
        return padded, np.array([first[np.minimum(row, M - 1)], to_values], np.int32), M

    def convolve(x: Array) -> Array:
        padded, offsets, M = lay_out(x.shape)
        _, height, width, channels = x.shape
        padded[:, pad : pad + height, pad : pad + width] = x
        y = np.empty((M + 1, panels * columns), product.form.activation)
        operands = padded.reshape(-1, channels), offsets, w, epilogue, y
        WORKERS.all(compiled, threads, *operands, block, runs, padded.strides[1], threads)
        return y[:M, :N].reshape(layer.output_shape(x.shape))

    return convolve
