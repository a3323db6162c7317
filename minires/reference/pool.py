"""Max-pool and global average pool."""

from typing import Any

import numpy as np
import numpy.typing as npt

from minires.reference.im2col import output_size


def maxpool_ref(x: npt.NDArray[Any], kernel: int, stride: int, padding: int) -> npt.NDArray[Any]:
    """Take the largest value under a square window, channel by channel.

    Parameters
    ----------
    x : ndarray
        Activations, (batch, in_h, in_w, channels), a float or integer dtype. Max-pool keeps
        order, so on quantized values it is exact, and scale and zero point stay as they are.
    kernel, stride, padding : int
        The same along both axes; padding at most half the kernel, so that no window is empty.

    Returns
    -------
    ndarray
        (batch, out_h, out_w, channels) in x's dtype.
    """
    out_h = output_size(x.shape[1], kernel, stride, padding)
    out_w = output_size(x.shape[2], kernel, stride, padding)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min  # never wins
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, border, constant_values=lowest)

    y = np.full((x.shape[0], out_h, out_w, x.shape[3]), lowest, x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            tap = padded[:, i : i + stride * out_h : stride, j : j + stride * out_w : stride]
            np.maximum(y, tap, out=y)
    return y


def global_avgpool_ref(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average each channel over all pixels.

    Parameters
    ----------
    x : ndarray
        Activations, (batch, in_h, in_w, channels) float32.

    Returns
    -------
    ndarray
        (batch, channels) float32.
    """
    y: npt.NDArray[np.float32] = x.mean(axis=(1, 2))
    return y
