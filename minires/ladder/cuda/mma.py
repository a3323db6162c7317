"""Rung `mma`: a warp multiplies matrices, by the tensor cores.

Its 32 lanes hold 16 rows of x and 8 columns of the weights together, 32 bytes of K of each. They
load these fragments word by word from the shared tiles; `minires.kernels.cuda.fragments` says whose
word is whose. One instruction makes 4096 products.
"""

from typing import Any

import numpy as np
from numba import cuda, types

from minires.ladder.cuda.convolution import Convolution, Launch, compiled_for, on_gpu
from minires.ladder.cuda.words import mma, requantize

F32, I32, U32, U8 = types.float32, types.int32, types.uint32, types.uint8
VECTORS = I32[::1], F32[::1]  # bias and m
SIGNATURE = types.void(I32[::1], U32[::1], I32[:, :, ::1], *VECTORS, U8[:, ::1], U32, I32)
WARPS = (2, 4)  # of a block: along M and along N
DOWN, ACROSS = 4, 4  # of a warp: so many times 16 rows, and 8 columns
STEP, HALF = 16, 8  # words of K that are copied together, and that are multiplied at once
WIDE = STEP + 4  # words of a row: 4 more, and the words of 8 rows lie in different banks


def kernel(warps: tuple[int, int] = WARPS, down: int = DOWN, across: int = ACROSS) -> Any:
    """Write the function for a tile of some warps' fragments."""
    warps_m, warps_n = warps
    tile_m, tile_n = 16 * down * warps_m, 8 * across * warps_n
    at_once = 32 * warps_m * warps_n // STEP  # rows that the block copies by one word a thread
    a_shape, b_shape = (tile_m, WIDE), (tile_n, WIDE)

    def gemm(x: Any, rows: Any, w: Any, bias: Any, m: Any, y: Any, line: int, zero: int) -> None:
        a = cuda.shared.array(a_shape, I32)
        b = cuda.shared.array(b_shape, I32)
        sums = cuda.local.array((down, across, 4), I32)
        # Unsigned: what may be negative would be looked at each time, and counted from the end.
        thread = np.uint32(cuda.threadIdx.x)
        warp, group, lane = thread // 32, thread % 32 // 4, thread % 4
        top, left = warp % warps_m * 16 * down + group, warp // warps_m * 8 * across
        first_n, first_m = np.uint32(cuda.blockIdx.x) * tile_n, np.uint32(cuda.blockIdx.y) * tile_m
        for i in range(down):
            for j in range(across):
                sums[i, j, 0] = sums[i, j, 1] = sums[i, j, 2] = sums[i, j, 3] = 0
        for run in range(w.shape[1]):
            for start in range(0, w.shape[2], STEP):
                word, first = thread % STEP, thread // STEP
                for i in range(tile_m // at_once):
                    row = first + at_once * i
                    a[row, word] = x[rows[first_m + row] + run * line + start + word]
                for i in range(tile_n // at_once):
                    column = first + at_once * i
                    b[column, word] = w[first_n + column, run, start + word]
                cuda.syncthreads()
                for half in range(0, STEP, HALF):
                    for i in range(down):
                        k, r = half + lane, top + 16 * i
                        four = a[r, k], a[r + 8, k], a[r, k + 4], a[r + 8, k + 4]
                        for j in range(across):
                            c, d = left + 8 * j + group, sums[i, j]
                            two = b[c, k], b[c, k + 4]
                            d[0], d[1], d[2], d[3] = mma((d[0], d[1], d[2], d[3]), four, two)
                cuda.syncthreads()
        for j in range(across):
            for s in range(4):
                n = first_n + left + 8 * j + 2 * lane + s % 2
                of_bias, of_m = bias[n], m[n]
                for i in range(down):
                    row = first_m + top + 16 * i + s // 2 * 8
                    y[row, n] = requantize(sums[i, j, s] + of_bias, of_m, zero)

    return gemm


def prepare(conv: Convolution, *tile: Any) -> Launch:
    """Copy the operands to the GPU; `tile` is what `kernel` takes."""
    (warps_m, warps_n), down, across = tile or (WARPS, DOWN, ACROSS)
    flat, weight = conv.words
    starts = conv.rows(16 * down * warps_m)
    x, rows, w, bias, m = on_gpu(flat, starts // 4, weight, conv.bias, conv.m)
    y = cuda.device_array((len(starts), len(weight)), np.uint8)
    grid = len(weight) // (8 * across * warps_n), len(starts) // (16 * down * warps_m)
    arguments = x, rows, w, bias, m, y, np.uint32(conv.line // 4), np.int32(conv.zero_point)
    compiled = compiled_for(kernel(*tile), SIGNATURE, 32 * warps_m * warps_n)
    return Launch(compiled, grid, (32 * warps_m * warps_n,), arguments, y)
