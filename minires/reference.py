"""The definitions: every operator of the network in plain NumPy, in the order you meet them.

Nothing here is tuned beyond what NumPy's BLAS gives. Fast kernels are checked against these
functions, so a definition is written to be read and to be right. Activations are NHWC, weights
OHWI. Equations have the numbers of the book's chapters. This file imports NumPy alone.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

BATCHNORM_EPS = 1e-5  # torchvision's; it also keeps a channel whose variance is zero finite
EXACT_K = 512  # how many products of a u8 and an s8 float32 can sum without rounding


# A convolution is im2col and a matrix product.


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Count the places where a kernel fits along one axis of `size` pixels."""
    return (size + 2 * padding - kernel) // stride + 1


def im2col_ref(x: Array, k_h: int, k_w: int, stride: int, padding: int, fill: float = 0) -> Array:
    """Copy every patch that the kernel visits into one row of a matrix, (M, K).

    There are M = batch * out_h * out_w patches, in reading order, of K = k_h * k_w * in_c values
    each. The channel changes fastest, as in OHWI weights. `fill` is the value of the padding: 0, or
    the zero point of a quantized tensor.

    Once every patch is a row, a convolution is one matrix product: Chellapilla, Puri and Simard,
    "High Performance Convolutional Neural Networks for Document Processing" (2006), section 2.1.
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


def gemm_f32_ref(a: Float32, b: Float32) -> Float32:
    """Multiply (M, K) by (K, N) in float32, by NumPy's BLAS.

    A dot product of K terms, summed in any order, errs by at most ``K * eps * sum(|a| * |b|)``
    to first order (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1).
    """
    with np.errstate(all="ignore"):  # an Apple M4's BLAS warns without a reason: numpy issue 28687
        return a @ b


# A BatchNorm is one multiply and one add per channel, once its statistics are fixed: y = gamma *
# (x - mean) / sqrt(var + eps) + beta (Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2).


def batchnorm_ref(
    x: Float32, gamma: Float32, beta: Float32, mean: Float32, var: Float32
) -> Float32:
    """Normalize each channel, the last axis of x, by its running statistics."""
    y: Float32 = (x - mean) * (gamma / np.sqrt(var + np.float32(BATCHNORM_EPS))) + beta
    return y


def fold_batchnorm(
    weight: Float32, gamma: Float32, beta: Float32, mean: Float32, var: Float32
) -> tuple[Float32, Float32]:
    """Scale a convolution's weights, (out_c, ...), so that it does its BatchNorm's work.

    gamma * (w x - mean) / s + beta  =  (gamma / s * w) x + (beta - gamma / s * mean), with
    s = sqrt(var + eps): equation 4.1 of the book. It returns the folded weights and the bias that
    the convolution gains, (out_c,). This is done once, in float64, and rounded at the end.
    """
    factor = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + BATCHNORM_EPS)
    per_channel = factor.reshape(-1, *[1] * (weight.ndim - 1))
    bias = beta - mean * factor
    return (weight * per_channel).astype(np.float32), bias.astype(np.float32)


def relu_ref(x: Float32) -> Float32:
    """Replace negative values by zero; NaN stays NaN."""
    return np.maximum(x, np.float32(0))


def maxpool_ref(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """Take the largest value under a square window, channel by channel, of NHWC activations.

    It only compares, so it is exact on quantized values: scale and zero point stay the same. The
    padding, at most half the kernel, holds the type's least value, which never wins.
    """
    out_h = output_size(x.shape[1], kernel, stride, padding)
    out_w = output_size(x.shape[2], kernel, stride, padding)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, border, constant_values=lowest)

    y = np.full((x.shape[0], out_h, out_w, x.shape[3]), lowest, x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            tap = padded[:, i : i + stride * out_h : stride, j : j + stride * out_w : stride]
            np.maximum(y, tap, out=y)
    return y


def global_avgpool_ref(x: Float32) -> Float32:
    """Average each channel over all pixels: (batch, in_h, in_w, channels) to (batch, channels)."""
    y: Float32 = x.mean(axis=(1, 2))
    return y


def softmax_ref(logits: Float32) -> Float32:
    """Turn logits into probabilities along the last axis: positive, and their sum is one."""
    # The largest is subtracted first: exp cannot overflow, and the quotient is the same.
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Float32 = exp / exp.sum(axis=-1, keepdims=True)
    return probabilities


# INT8 writes real numbers in eight bits: real = scale * (q - zero_point), equation 5.1 of the book
# (Jacob et al., "Quantization and Training of Neural Networks for Efficient
# Integer-Arithmetic-Only Inference", 2017, equation 1). Integers are added exactly. Every float32
# multiply, add and division rounds by itself, half to even; none is fused with the next. So NumPy
# and every instruction set give the same bits.


class QParams(NamedTuple):
    """How a tensor of eight-bit integers stands for real numbers."""

    scale: np.float32  # the real number between two neighbours
    zero_point: int  # the integer that stands for 0, from 0 to 255


def quantize_ref(x: Float32, scale: np.float32, zero_point: int) -> npt.NDArray[np.uint8]:
    """Round to the nearest step and saturate: q = clip(rint(x / scale) + zero_point, 0, 255).

    Equation 5.2 of the book. It divides, as ONNX's QuantizeLinear does; a product with 1 / scale
    would round differently. x holds no NaN.
    """
    steps = np.rint(x / scale)
    clipped = np.clip(steps, np.float32(-zero_point), np.float32(255 - zero_point))
    q: npt.NDArray[np.uint8] = (clipped.astype(np.int32) + zero_point).astype(np.uint8)
    return q


def dequantize_ref(q: npt.NDArray[np.integer[Any]], scale: np.float32, zero_point: int) -> Float32:
    """Turn steps back into real numbers: scale * (q - zero_point)."""
    real: Float32 = (q.astype(np.int32) - zero_point).astype(np.float32) * scale
    return real


def fake_quantize_ref(x: Float32, scale: np.float32, zero_point: int) -> Float32:
    """Quantize and dequantize: round a float32 tensor to the values that eight bits can hold."""
    return dequantize_ref(quantize_ref(x, scale, zero_point), scale, zero_point)


def gemm_u8s8_ref(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Multiply (M, K) u8 by (K, N) s8 and sum in s32, exactly.

    NumPy hands float matrices to BLAS, whose kernels are tuned for vectors and caches; integer
    matrices go through a plain loop, tens of times slower. But a float32 holds every integer up
    to 2**24, and 512 products sum to at most 255 * 128 * 512 = 16,711,680 < 2**24. So nothing
    rounds in a block of 512 along K, in whatever order, and the blocks are added as integers.
    The same in one slow line: ``a.astype(np.int64) @ b.astype(np.int64)``.

    ``|acc| <= 255 * 128 * K``: for the largest K here, 4608, that is 150,405,120, and K may be
    at most 65,793 for it to stay below 2**31.
    """
    acc_s32 = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for k in range(0, a.shape[1], EXACT_K):
        block = slice(k, k + EXACT_K)
        acc_f32 = gemm_f32_ref(a[:, block].astype(np.float32), b[block].astype(np.float32))
        acc_s32 += acc_f32.astype(np.int32)
    return acc_s32


def requantize_ref(
    acc_s32: npt.NDArray[np.int32],
    m: Float32 | np.float32,
    y_zero_point: int,
    shortcut: Float32 | None = None,
) -> npt.NDArray[np.uint8]:
    """Bring sums, (M, N), to the output's scale and back into eight bits: equations 7.2 and 7.3.

    t = float32(acc) * m + shortcut; y = rint(clip(t, -zero_point, 255 - zero_point)) + zero_point.
    The sums include bias_s32, so the input's zero point has no part in them any more. m, (N,) or
    one for all, is x_scale * w_scale / y_scale. The shortcut is added in steps of y_scale.

    The clip comes before the conversion to integers, so that this cannot overflow; with a zero
    point of 0 it is also the ReLU. Above 2**24 float32(acc) rounds, half to even, by definition.
    """
    t = acc_s32.astype(np.float32) * m
    if shortcut is not None:
        t = t + shortcut
    t = np.clip(t, np.float32(-y_zero_point), np.float32(255 - y_zero_point))
    y: npt.NDArray[np.uint8] = (np.rint(t).astype(np.int32) + y_zero_point).astype(np.uint8)
    return y


# bfloat16 is the upper half of a float32: its sign, its exponent and 7 of its 23 bits of fraction.


def round_bf16_ref(x: Float32) -> Float32:
    """Round to the nearest bfloat16, half to even, by the bits: at most 2**-8 of x away.

    Adding 0x7FFF carries into the upper half if the lower half is above its middle. At the middle
    itself the upper half's last bit, added too, decides. x holds no NaN.
    """
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def round_f16_ref(x: Float32) -> Float32:
    """Round to the nearest IEEE half float, half to even: 10 bits of fraction, up to 65,504."""
    return x.astype(np.float16).astype(np.float32)


def round_tf32_ref(x: Float32) -> Float32:
    """Round to 10 bits of fraction, half away from zero, by the bits; the exponent stays."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
