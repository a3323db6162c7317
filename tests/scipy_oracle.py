"""Convolution and max-pool by SciPy in float64: an oracle that shares no code with minires."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

Array = npt.NDArray[Any]


def pad(x: Array, padding: int, value: float) -> Array:
    """Surround the pixels of NHWC activations."""
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return np.pad(x, border, constant_values=value)


def convolve(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Convolve NHWC activations with OHWI weights; the result is NHWC, float64."""
    padded = pad(x.astype(np.float64), padding, 0)
    y = [
        [signal.correlate(image, kernel, "valid", "direct")[::stride, ::stride, 0]
         for kernel in weight.astype(np.float64)]
        for image in padded
    ]  # fmt: skip
    return np.moveaxis(np.array(y), 1, -1)  # (batch, out_h, out_w, out_c)


def maxpool(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """Max-pool NHWC activations."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = pad(x, padding, lowest)
    largest = ndimage.maximum_filter(padded, (1, kernel, kernel, 1), mode="constant", cval=lowest)
    # SciPy gives each pixel the window around it; keep the windows that lie inside.
    rows, columns = (slice(kernel // 2, kernel // 2 + size - kernel + 1, stride)
                     for size in padded.shape[1:3])  # fmt: skip
    y: Array = largest[:, rows, columns]
    return y
