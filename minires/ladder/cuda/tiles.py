"""Rung `tiles`: a block of threads copies tiles of both operands to memory that it shares.

Each value comes from far away once for a block, not once for each product. And a thread has 8 x 8
outputs: it loads 8 values of each operand, and makes 64 products of them in registers.
"""

from typing import Any

import numpy as np
from numba import cuda, types

from minires.ladder.cuda.convolution import Convolution, Launch, compiled_for, on_gpu

F32, U32 = types.float32, types.uint32
SIGNATURE = types.void(F32[::1], U32[::1], F32[:, :, ::1], F32[::1], F32[:, ::1], U32, F32)
SIDE, EACH = 16, 8  # threads of a block, and outputs of a thread, each way
STEP = 8  # values of K that are copied together
PAD = 4  # values behind a row: 32 threads that write 8 columns find 32 banks


def kernel(side: int = SIDE, each: int = EACH) -> Any:
    """Write the function for a tile of ``side * each`` rows and as many columns."""
    tile = side * each
    threads = side * side
    a_shape = (STEP, tile + PAD)
    b_shape = (STEP, tile)

    def tiles(x: Any, rows: Any, w: Any, bias: Any, y: Any, line: int, low: float) -> None:
        a = cuda.shared.array(a_shape, F32)
        b = cuda.shared.array(b_shape, F32)
        sums = cuda.local.array((each, each), F32)  # registers, since all loops are written out
        # Unsigned: what may be negative would be looked at each time, and counted from the end.
        across = np.uint32(cuda.threadIdx.x)
        down = np.uint32(cuda.threadIdx.y)
        thread = down * side + across
        first_n = np.uint32(cuda.blockIdx.x) * tile
        first_m = np.uint32(cuda.blockIdx.y) * tile
        for i in range(each):
            for j in range(each):
                sums[i, j] = 0
        for run in range(w.shape[0]):
            for start in range(0, w.shape[1], STEP):
                for i in range(STEP * tile // threads):
                    at = thread + threads * i
                    row, depth = at // STEP, at % STEP
                    a[depth, row] = x[rows[first_m + row] + run * line + start + depth]
                    depth, column = at // tile, at % tile
                    b[depth, column] = w[run, start + depth, first_n + column]
                cuda.syncthreads()
                for k in range(STEP):
                    for i in range(each):
                        for j in range(each):
                            sums[i, j] += a[k, down + side * i] * b[k, across + side * j]
                cuda.syncthreads()
        for i in range(each):
            for j in range(each):
                m = first_m + down + side * i
                n = first_n + across + side * j
                y[m, n] = max(sums[i, j] + bias[n], low)

    return tiles


def prepare(conv: Convolution, side: int = SIDE, each: int = EACH) -> Launch:
    """Copy the operands to the GPU; N and a run's values are multiples of the tile's."""
    tile = side * each
    starts = conv.rows(tile)
    weight = np.moveaxis(conv.weight, 0, 2)
    x, rows, w, bias = on_gpu(conv.x.ravel(), starts, weight, conv.bias)
    y = cuda.device_array((len(starts), len(conv.weight)), np.float32)
    grid = len(conv.weight) // tile, len(starts) // tile
    compiled = compiled_for(kernel(side, each), SIGNATURE, side * side)
    arguments = x, rows, w, bias, y, np.uint32(conv.line), np.float32(conv.low)
    return Launch(compiled, grid, (side, side), arguments, y)
