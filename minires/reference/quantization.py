"""Numbers in eight bits: real = scale * (q - zero_point), equation 5.1 of the book.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2017), equation 1. Every multiply, add and division below is float32 and rounds by
itself, half to even; no two are contracted into one. So NumPy and every instruction set give
the same bits.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class QParams(NamedTuple):
    """How a tensor of eight-bit integers stands for real numbers."""

    scale: np.float32
    zero_point: int


def quantize_ref(
    x: npt.NDArray[np.float32], scale: np.float32, zero_point: int
) -> npt.NDArray[np.uint8]:
    """Round to the nearest step and saturate: q = clip(rint(x / scale) + zero_point, 0, 255).

    Equation 5.2 of the book. It divides, as ONNX's QuantizeLinear does; a product with 1 / scale
    would round differently.

    Parameters
    ----------
    x : ndarray
        Any shape, float32, without NaN.
    scale : float32
        The step, positive.
    zero_point : int
        What stands for zero, 0 to 255.

    Returns
    -------
    ndarray
        The shape of x, uint8.
    """
    steps = np.rint(x / scale)
    clipped = np.clip(steps, np.float32(-zero_point), np.float32(255 - zero_point))
    q: npt.NDArray[np.uint8] = (clipped.astype(np.int32) + zero_point).astype(np.uint8)
    return q


def dequantize_ref(
    q: npt.NDArray[np.integer[Any]], scale: np.float32, zero_point: int
) -> npt.NDArray[np.float32]:
    """Turn steps back into real numbers: scale * (q - zero_point).

    Parameters
    ----------
    q : ndarray
        Any shape, an integer dtype.
    scale : float32
        The step.
    zero_point : int
        What stands for zero.

    Returns
    -------
    ndarray
        The shape of q, float32.
    """
    real: npt.NDArray[np.float32] = (q.astype(np.int32) - zero_point).astype(np.float32) * scale
    return real


def fake_quantize_ref(
    x: npt.NDArray[np.float32], scale: np.float32, zero_point: int
) -> npt.NDArray[np.float32]:
    """Quantize and dequantize: what eight bits keep of a float32 tensor, still as float32.

    Parameters
    ----------
    x, scale, zero_point
        As in `quantize_ref`.

    Returns
    -------
    ndarray
        The shape of x, float32.
    """
    return dequantize_ref(quantize_ref(x, scale, zero_point), scale, zero_point)


def requantize_ref(
    acc_s32: npt.NDArray[np.int32],
    m: npt.NDArray[np.float32] | np.float32,
    y_zero_point: int,
    shortcut: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """Bring accumulators to the output's scale and back into eight bits: equations 7.2 and 7.3.

    t = float32(acc) * m + shortcut; y = rint(clip(t, -zero_point, 255 - zero_point)) + zero_point.
    The clip comes before the conversion, which therefore cannot overflow; with a zero point of
    0 it is the ReLU. Above 2**24 float32(acc) rounds, half to even: part of the definition.

    Parameters
    ----------
    acc_s32 : ndarray
        Products summed, with bias and zero point in, (M, N) int32.
    m : ndarray or float32
        x_scale * w_scale / y_scale, (N,) or one for all, float32.
    y_zero_point : int
        What stands for zero in the output, 0 to 255.
    shortcut : ndarray, optional
        The residual in units of the output's scale, (M, N) float32, added before the rounding.

    Returns
    -------
    ndarray
        (M, N) uint8.
    """
    t = acc_s32.astype(np.float32) * m
    if shortcut is not None:
        t = t + shortcut
    t = np.clip(t, np.float32(-y_zero_point), np.float32(255 - y_zero_point))
    y: npt.NDArray[np.uint8] = (np.rint(t).astype(np.int32) + y_zero_point).astype(np.uint8)
    return y
