"""Rung `dp4a`: the same tiles in INT8, four products in each lane by one instruction.

A word has four bytes along K. So there is a quarter of the words, and of the instructions. The sums
are integers; each is brought back to eight bits while it is in its register.
"""

from typing import Any

import numpy as np
from numba import cuda, types

from minires.ladder.cuda.convolution import Convolution, Launch, compiled_for, on_gpu
from minires.ladder.cuda.words import dp4a, requantize

F32, I32, U32, U8 = types.float32, types.int32, types.uint32, types.uint8
VECTORS = I32[::1], F32[::1]  # bias and m
SIGNATURE = types.void(I32[::1], U32[::1], I32[:, :, ::1], *VECTORS, U8[:, ::1], U32, I32)
SIDE, EACH = 16, 8  # threads of a block, and outputs of a thread, each way
STEP = 8  # words of K that are copied together
PAD = 4  # words behind a row: 32 threads that write 8 columns find 32 banks


def kernel(side: int = SIDE, each: int = EACH) -> Any:
    """Write the function for a tile of ``side * each`` rows and as many columns."""
    tile = side * each
    threads = side * side
    a_shape, b_shape = (STEP, tile + PAD), (STEP, tile)

    def gemm(x: Any, rows: Any, w: Any, bias: Any, m: Any, y: Any, line: int, zero: int) -> None:
        a = cuda.shared.array(a_shape, I32)
        b = cuda.shared.array(b_shape, I32)
        sums = cuda.local.array((each, each), I32)  # registers, since all loops are written out
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
                            a_word = a[k, down + side * i]
                            b_word = b[k, across + side * j]
                            sums[i, j] = dp4a(sums[i, j], a_word, b_word)
                cuda.syncthreads()
        for j in range(each):
            n = first_n + across + side * j
            of_bias, of_m = bias[n], m[n]
            for i in range(each):
                t = requantize(sums[i, j] + of_bias, of_m, zero)
                y[first_m + down + side * i, n] = t

    return gemm


def prepare(conv: Convolution, side: int = SIDE, each: int = EACH) -> Launch:
    """Copy the operands to the GPU; N and a run's words are multiples of the tile's."""
    tile = side * each
    starts = conv.rows(tile)
    flat, weight = conv.words
    x, rows, w, bias, m = on_gpu(flat, starts // 4, np.moveaxis(weight, 0, 2), conv.bias, conv.m)
    y = cuda.device_array((len(starts), len(weight)), np.uint8)
    grid = len(weight) // tile, len(starts) // tile
    compiled = compiled_for(kernel(side, each), SIGNATURE, side * side)
    arguments = x, rows, w, bias, m, y, np.uint32(conv.line // 4), np.int32(conv.zero_point)
    return Launch(compiled, grid, (side, side), arguments, y)
