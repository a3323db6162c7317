"""Rung `stages`: while the warps multiply one step along K, later steps are on their way.

This is the engine's own kernel, as it is: `minires.kernels.cuda.gemm`. Copies of 16 bytes go to
shared memory past the registers, two steps ahead. `ldmatrix` loads four matrices at once. And a
lane's outputs are 8 neighbours, which it stores together.
"""

from typing import Any

import numpy as np
from numba import cuda

from minires.kernels.cuda.fragments import SLAB, column_order
from minires.kernels.cuda.gemm import LARGE, NAMES, SIGNATURE, Arguments, Gemm, gemm_function
from minires.ladder.cuda.convolution import Convolution, Launch, on_gpu

GEMM = Gemm("mma-u8s8", LARGE, "u8", residual=False)


def kernel() -> Any:
    """Write the engine's function for the largest tile."""
    return gemm_function(GEMM)


def prepare(conv: Convolution) -> Launch:
    """Copy the operands to the GPU, as the engine does; a run is some steps of 64 bytes."""
    M = int(np.prod(conv.shape[:3]))
    N = len(conv.weight)
    _, runs, run = conv.weight.shape
    starts = conv.rows(LARGE.rows)
    ends = np.where(np.arange(len(starts)) < M, N * np.arange(len(starts)), -1)  # -1: nowhere
    in_order = conv.weight.reshape(-1, SLAB, runs * run)[:, column_order()]
    operands = on_gpu(conv.x.ravel(), starts, in_order, ends.astype(np.int32), conv.bias, conv.m)
    y = cuda.device_array((len(starts), N), np.uint8)
    names = "x", "x_offsets", "w", "y_offsets", "bias", "m", "y"
    pointers = {
        name: array.__cuda_array_interface__["data"][0]
        for name, array in zip(names, (*operands, y), strict=True)
    }
    lengths = {"k_bytes": runs * run, "run": run, "run_stride": conv.line}
    limits = {
        "low": np.float32(conv.low),
        "high": np.float32(conv.low + 255),
        "zero_point": conv.zero_point,
    }
    arguments = Arguments(**dict.fromkeys(NAMES, 0) | pointers | lengths | limits)
    grid = N // LARGE.columns, len(starts) // LARGE.rows, 1
    compiled = cuda.jit(SIGNATURE)(kernel())
    return Launch(compiled, grid, (LARGE.threads,), arguments, y, keeps=operands)
