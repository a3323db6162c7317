"""INT8 in exact integers, and random cases to hold layers.py to: neither shares code with minires.

The integers here are int64 and never round. What the definition rounds, the oracle rounds with
integers too: to 24 significant bits, half to even, which is what a float32 is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from minires.layers import Int8Params, Layer
from minires.reference import QParams

Array = npt.NDArray[Any]


def round_half_even(numerator: Array, shift: Array | int) -> Array:
    """Divide int64 by 2**shift, shift 0 to 62, to the nearest integer, ties to the even one."""
    quotient = numerator >> shift
    twice = 2 * (numerator - (quotient << shift))
    up = (twice > (1 << np.int64(shift))) | ((twice == (1 << np.int64(shift))) & (quotient % 2 > 0))
    return quotient + (up & (np.int64(shift) > 0))


def to_float32(value: Array) -> Array:
    """Round int64 to 24 significant bits; what comes out is again an int64."""
    bits = np.frexp(value.astype(np.float64))[1].astype(np.int64)
    drop = np.maximum(bits - 24, 0)
    return round_half_even(value, drop) << drop


def requantize_exact(acc: Array, m: np.float32, zero_point: int) -> Array:
    """Requantize int64 accumulators below 2**31 by one multiplier, 2**-38 to 2**23."""
    mantissa, denominator = float(m).as_integer_ratio()  # 24 bits at most, and a power of two
    product = to_float32(to_float32(acc) * mantissa)  # 48 bits before the rounding
    steps = round_half_even(product, denominator.bit_length() - 1)
    return np.clip(steps + zero_point, 0, 255).astype(np.uint8)


def exact_sums(x: Array, x_zero_point: int, weight: Array, stride: int, padding: int) -> Array:
    """Convolve NHWC u8 activations with OHWI s8 weights in int64, the zero point taken off first.

    Padding is a real zero here, where the definition pads with the zero point and takes it off
    through the bias.
    """
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    real = np.pad(x.astype(np.int64) - x_zero_point, border)
    k_h, k_w = weight.shape[1:3]
    out_h, out_w = ((real.shape[i + 1] - k) // stride + 1 for i, k in enumerate((k_h, k_w)))
    sums = np.zeros((len(x), out_h, out_w, len(weight)), np.int64)
    for i in range(k_h):
        for j in range(k_w):
            pixels = real[:, i:, j:][:, ::stride, ::stride][:, :out_h, :out_w]
            sums += pixels @ weight[:, i, j].astype(np.int64).T
    return sums


@dataclass(frozen=True)
class ConvCase:
    """A quantized convolution as ONNX spells it: the bias does not hold the zero point."""

    x: Array  # (batch, in_h, in_w, in_c) uint8
    x_qparams: QParams
    weight: Array  # (out_c, kernel, kernel, in_c) int8
    w_scale: Array  # (out_c,) float32
    bias: Array  # (out_c,) int32
    y_qparams: QParams
    stride: int
    padding: int

    @property
    def layer(self) -> Layer:
        """The convolution as minires describes it."""
        out_c, kernel, _, in_c = self.weight.shape
        return Layer("conv", "conv", ("x",), in_c, out_c, kernel, self.stride, self.padding,
                     qparams=self.y_qparams)  # fmt: skip

    @property
    def params(self) -> Int8Params:
        """The convolution's parameters as minires wants them."""
        rows = self.weight.reshape(len(self.weight), -1)  # (N, K)
        fold = self.x_qparams.zero_point * rows.sum(axis=1, dtype=np.int32)
        return Int8Params(self.x_qparams, rows, self.w_scale, self.bias - fold)


scales = st.one_of(
    st.integers(-12, 4).map(lambda power: np.float32(2.0**power)),  # sums end in exact ties
    st.floats(2.0**-12, 2.0**4, width=32).map(np.float32),
)
zero_points = st.one_of(st.sampled_from([0, 1, 127, 128, 254, 255]), st.integers(0, 255))
seeds = st.integers(0, 2**32 - 1)


@st.composite
def conv_cases(draw: st.DrawFn, largest_weight: int = 128, linear: bool = False) -> ConvCase:
    """Draw shapes, scales and zero points; a seed fills the tensors.

    The output's scale is derived, so that the largest sums reach 2 to 2000 steps: some cases
    use a few steps only and some saturate. A bias of up to 2**30 brings sums beyond 2**24,
    where float32 rounds them. Weights stay within +-largest_weight and in int8.
    """
    kernel = 1 if linear else draw(st.integers(1, 5))
    stride, padding = (1, 0) if linear else (draw(st.integers(1, 3)), draw(st.integers(0, kernel)))
    smallest = max(1, kernel - 2 * padding)
    in_h, in_w = (1 if linear else draw(st.integers(smallest, smallest + 9)) for _ in range(2))
    batch, in_c, out_c = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 40))
    largest_bias = draw(st.sampled_from([0, 1000, 2**24, 2**30]))
    kind = draw(st.sampled_from(["any", "any", "extremes", "ties"]))
    random = np.random.RandomState(draw(seeds))
    x = random.randint(0, 256, (batch, in_h, in_w, in_c)).astype(np.uint8)
    highest_weight = min(largest_weight, 127)
    weight = random.randint(-largest_weight, highest_weight + 1, (out_c, kernel, kernel, in_c))
    bias = random.randint(-largest_bias, largest_bias + 1, out_c)

    x_scale, w_scale = draw(scales), np.full(out_c, draw(scales))
    if draw(st.booleans()):  # a scale for each channel
        w_scale *= random.choice(np.float32([0.25, 0.7, 1, 3]), out_c)
    sums = largest_bias + 255 * largest_weight * (kernel**2 * in_c) ** 0.5
    y_scale = float(x_scale) * float(w_scale.max()) * sums / draw(st.sampled_from([2, 100, 2000]))
    if draw(st.booleans()):
        y_scale = 2 ** np.round(np.log2(y_scale))
    if kind == "extremes":  # in pairs of equal sign, whose sum 16 bits cannot hold
        x[x > 0] = 255
        weight = np.where(weight < 0, -largest_weight, highest_weight)
    elif kind == "ties":  # the bias alone, at and around half steps
        weight[:] = 0
        ties = (random.randint(-255, 256, out_c) + 0.5) * y_scale / (float(x_scale) * w_scale)
        bias = np.rint(np.clip(ties, -(2**30), 2**30)) + random.randint(-2, 3, out_c)
    return ConvCase(
        x,
        QParams(x_scale, draw(zero_points)),
        weight.astype(np.int8),
        w_scale,
        bias.astype(np.int32),
        QParams(np.float32(y_scale), draw(zero_points)),
        stride,
        padding,
    )
