"""Rung `loop`: a thread for each output, and in it the loops of its sum.

There are millions of threads, and the GPU runs them 32 together: a warp. Neighbours in a warp have
neighbouring channels, so they read neighbouring weights at once. But each product still costs two
loads.
"""

from typing import Any

import numpy as np
from numba import cuda, types

from minires.ladder.cuda.convolution import Convolution, Launch, on_gpu

F32, U32 = types.float32, types.uint32
SIGNATURE = types.void(F32[::1], U32[::1], F32[:, :, ::1], F32[::1], F32[:, ::1], U32, F32)
ACROSS, DOWN = 32, 8  # outputs of a block: of N and of M


def loop(x: Any, rows: Any, w: Any, bias: Any, y: Any, line: int, low: float) -> None:
    """Compute one output; w is (runs, values, N)."""
    n, m = cuda.grid(2)
    if m < y.shape[0] and n < y.shape[1]:
        total = np.float32(0)
        for run in range(w.shape[0]):
            start = rows[m] + run * line
            k = 0
            while k < w.shape[1]:  # Numba makes twice as many instructions of range
                total += x[start + k] * w[run, k, n]
                k += 1
        y[m, n] = max(total + bias[n], low)


def prepare(conv: Convolution) -> Launch:
    """Copy the operands to the GPU, the weights with N innermost."""
    starts = conv.rows(1)
    N = len(conv.weight)
    weight = np.moveaxis(conv.weight, 0, 2)
    x, rows, w, bias = on_gpu(conv.x.ravel(), starts, weight, conv.bias)
    y = cuda.device_array((len(starts), N), np.float32)
    grid = -(-N // ACROSS), -(-len(starts) // DOWN)
    arguments = x, rows, w, bias, y, np.uint32(conv.line), np.float32(conv.low)
    return Launch(cuda.jit(SIGNATURE)(loop), grid, (ACROSS, DOWN), arguments, y)
