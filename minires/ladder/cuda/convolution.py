"""What every rung of the GPU's ladder is handed: a convolution, and what it answers with.

im2col is implicit in all of them. x lies padded in memory, NHWC, so a row of the kernel is one run
of neighbours: of three pixels with all their channels. A row m of the im2col matrix begins at
``rows[m]``, and its next run `line` further.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda

from minires.layers import Array, Int8Params, Layer, Shape

BLOCKS = 2  # of a multiprocessor


class Convolution(NamedTuple):
    """A convolution's input and parameters, on the host."""

    x: Array  # (batch, H, W, C) with its padding
    weight: Array  # (N, runs, values of a run)
    bias: Array  # (N,), of the sums' type
    m: Array  # (N,) float32: from the sums to the output's steps
    low: float  # the output's least value, before its zero point is added
    zero_point: int  # of the output
    shape: Shape  # of the output, NHWC
    stride: int

    @property
    def line(self) -> int:
        """How far a row of pixels is from the next, in values."""
        return self.x.shape[2] * self.x.shape[3]

    def rows(self, multiple: int) -> Array:
        """Tell where each row of the im2col matrix begins; the last one fills up whole tiles."""
        batch, height, width, _ = self.shape
        pixel = self.x.shape[3]
        image = self.x.shape[1] * self.line
        starts = np.add.outer(image * np.arange(batch), self.stride * self.line * np.arange(height))
        starts = np.add.outer(starts, self.stride * pixel * np.arange(width)).ravel()
        return np.pad(starts, (0, -len(starts) % multiple), mode="edge").astype(np.uint32)

    @property
    def words(self) -> tuple[Array, Array]:
        """x, flat, and the weights, (N, runs, words), with four bytes in a word."""
        return self.x.ravel().view(np.int32), self.weight.view(np.int32)


class Launch(NamedTuple):
    """A kernel with all that it needs, in the GPU's memory."""

    kernel: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]
    y: Any  # (M, N), and rows that fill it up
    keeps: tuple[Any, ...] = ()  # arrays whose addresses are among the arguments

    def start(self, stream: Any) -> None:
        """Have the GPU begin, and do not wait for it."""
        self.kernel[self.grid, self.block, stream](*self.arguments)

    def answer(self, shape: Shape) -> Array:
        """Compute, wait, and copy the output back."""
        self.start(0)
        y: Array = self.y.copy_to_host()
        return y[: np.prod(shape[:-1])].reshape(shape)


def convolution_of(layer: Layer, p: Any, x: Array) -> Convolution:
    """Pad an input, NHWC, and put a layer's parameters beside it."""
    border = layer.padding
    runs = layer.kernel, layer.kernel * layer.in_c
    shape = layer.output_shape(x.shape)
    stride = layer.stride
    if isinstance(p, Int8Params):
        assert layer.qparams is not None
        scale, zero_point = layer.qparams
        weight = p.w_s8
        bias = p.bias_s32
        m = p.x_qparams.scale * p.w_scale / scale
        padding = p.x_qparams.zero_point
        low = float(-zero_point)
    else:
        weight, bias = p
        m = bias
        padding = 0
        zero_point = 0
        low = 0.0 if layer.relu else -np.inf
    around = [(0, 0), (border, border), (border, border), (0, 0)]
    x = np.pad(x, around, constant_values=padding)
    weight = weight.reshape(-1, *runs)
    return Convolution(x, weight, bias, m, low, zero_point, shape, stride)


def on_gpu(*arrays: Array) -> tuple[Any, ...]:
    """Copy arrays to the GPU."""
    return tuple(cuda.to_device(np.ascontiguousarray(array)) for array in arrays)


def compiled_for(function: Any, signature: Any, threads: int) -> Any:
    """Compile a kernel so that two blocks of so many threads share a multiprocessor.

    One multiplies while the other copies. A block of 256 threads gets 128 registers a thread.
    """
    if config.ENABLE_CUDASIM:  # the simulator runs Python, which has no registers
        return cuda.jit(signature)(function)
    return cuda.jit(signature, launch_bounds=(threads, BLOCKS))(function)
