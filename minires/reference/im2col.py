"""im2col: a convolution's patches as the rows of a matrix.

Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document
Processing" (2006), section 2.1: once every patch is a row, a convolution is one matrix product.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Count the places where a kernel fits along one axis.

    Parameters
    ----------
    size : int
        Pixels along the axis, before padding.
    kernel, stride, padding : int
        The kernel's extent, its step, and the pixels added at each end.

    Returns
    -------
    int
        Output pixels along the axis.
    """
    return (size + 2 * padding - kernel) // stride + 1


def im2col_ref(
    x: npt.NDArray[Any], k_h: int, k_w: int, stride: int, padding: int, fill: float = 0
) -> npt.NDArray[Any]:
    """Copy every patch that the kernel visits into one row.

    Parameters
    ----------
    x : ndarray
        Activations, (batch, in_h, in_w, in_c), any dtype.
    k_h, k_w : int
        Kernel height and width.
    stride, padding : int
        The same along both axes.
    fill : float
        What the padding holds: 0, or the zero point of a quantized tensor.

    Returns
    -------
    ndarray
        (M, K) in x's dtype, with M = batch * out_h * out_w patches in reading order and
        K = k_h * k_w * in_c, the channel fastest: the order of OHWI weights.
    """
    batch, in_h, in_w, in_c = x.shape
    if (k_h, k_w, stride, padding) == (1, 1, 1, 0):
        return x.reshape(-1, in_c)  # (M, K): a 1x1 kernel's patches are the pixels, no copy
    out_h = output_size(in_h, k_h, stride, padding)
    out_w = output_size(in_w, k_w, stride, padding)
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, border, constant_values=fill) if padding else x

    columns = np.empty((batch, out_h, out_w, k_h, k_w, in_c), x.dtype)
    for i in range(k_h):
        for j in range(k_w):  # the pixel under tap (i, j), for all patches at once
            columns[:, :, :, i, j] = padded[
                :, i : i + stride * out_h : stride, j : j + stride * out_w : stride
            ]
    return columns.reshape(batch * out_h * out_w, k_h * k_w * in_c)  # (M, K)
