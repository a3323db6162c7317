"""The operators that do not multiply, as plain Numba: the image's way in, and the pools.

A thread has one place of the output: a pixel, a channel, or a word of channels, 32 bits.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types

from minires.kernels.cuda import numbers

THREADS = 256  # of a block
CHANNELS = 3  # of an image


class Format(NamedTuple):
    """How a precision keeps its tensors on a GPU."""

    operands: str  # a key of a set in `instructions.SETS`
    dtype: Any  # of an activation on the host; of bfloat16 its bits
    out: str  # a convolution's output: a key of `epilogue.ITEM`
    lowest: float  # never wins a maximum; 16 bits are compared as integers

    @property
    def stored(self) -> Any:
        """The type of an activation on the GPU."""
        return numbers.STORED[self.out]


FORMATS = {
    "fp32": Format("f32", np.float32, "f32", -np.inf),
    "tf32": Format("tf32", np.float32, "tf32", -np.inf),
    "fp16": Format("f16", np.float16, "f16", np.iinfo(np.int16).min),
    "bf16": Format("bf16", np.int16, "bf16", np.iinfo(np.int16).min),
    "int8": Format("u8s8", np.uint8, "u8", 0),
}


def operators(form: Format) -> dict[str, tuple[Any, Any]]:
    """Write a precision's functions, each with its signature, as `numba.cuda.jit` takes them."""
    stored = form.stored
    whole = types.int32
    real = types.float32
    words = types.int32[::1]
    values = stored[::1]
    images = types.Array(real, 4, "C")
    places = types.UniTuple(types.int64, 4)
    return {
        "fill": (_fill, types.void(values, stored)),
        "input": (_input(form), types.void(images, values, places, real, whole)),
        "maxpool": (_maxpool(form), types.void(words, words, places, places, places)),
        "avgpool": (_avgpool(form), types.void(values, values, places, places, real, whole, whole)),
    }


def _fill(y: Any, value: Any) -> None:
    """Fill a buffer, padding and all."""
    i = cuda.grid(1)
    if i < y.size:
        y[i] = value


# Strides come as (first, image, row, pixel): where an image's first pixel lies, and how far it is
# from one image, row and pixel to the next.


def _input(form: Format) -> Any:
    narrow = numbers.narrow(form.out)

    def input_nhwc(x: Any, y: Any, strides: Any, scale: Any, zero_point: Any) -> None:
        """Turn NCHW float32 into padded NHWC: a thread has a pixel."""
        first, image, row, pixel = strides
        column, line, number = cuda.grid(3)
        if column < x.shape[3] and line < x.shape[2]:
            at = first + number * image + line * row + column * pixel
            for channel in range(CHANNELS):
                y[at + channel] = narrow(x[number, channel, line, column], scale, zero_point)

    return input_nhwc


def _maxpool(form: Format) -> Any:
    greatest = numbers.greatest(form.out)

    def maxpool(x: Any, y: Any, shape: Any, x_strides: Any, y_strides: Any) -> None:
        """Take the greatest of 3 x 3 pixels, 2 apart: a thread has a word of channels."""
        _, height, width, words = shape
        first, image, row, pixel = x_strides
        y_first, y_image, y_row, y_pixel = y_strides
        word, column, place = cuda.grid(3)
        if word < words and column < width:
            line, number = place % height, place // height
            at = first + number * image + 2 * (line * row + column * pixel) + word
            best = x[at]
            for i in range(3):
                for j in range(3):
                    best = greatest(best, x[at + i * row + j * pixel])
            y[y_first + number * y_image + line * y_row + column * y_pixel + word] = best

    return maxpool


def _avgpool(form: Format) -> Any:
    widen = numbers.widen(form.out)
    average = numbers.average(form.out)
    narrow = numbers.narrow(form.out)
    quantized = form.out == "u8"
    zero = np.int32(0) if quantized else np.float32(0)

    def avgpool(
        x: Any, y: Any, shape: Any, strides: Any, m: Any, x_zero_point: Any, zero_point: Any
    ) -> None:  # fmt: skip
        """Average an image's pixels: a thread has a channel."""
        _, height, width, channels = shape
        first, image, row, pixel = strides
        channel, number = cuda.grid(2)
        if channel < channels:
            at = first + number * image + channel
            total = zero
            for line in range(height):
                for column in range(width):
                    total += widen(x[at + line * row + column * pixel])
            mean = average(total, np.int32(height * width), m, x_zero_point, zero_point)
            y[number * channels + channel] = (
                mean if quantized else narrow(mean, np.float32(1), np.int32(0))
            )

    return avgpool
