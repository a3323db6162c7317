"""What a layer is, and what it computes in each precision: a row of phases.

A convolution is im2col, a GEMM and an epilogue; `OPERATORS` at the end says which function does
each of them, precision by precision. Activations are NHWC; weights are (N, K), a row per channel.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minires import reference as ref
from minires.hooks import HookHandle, put_on
from minires.reference import QParams

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Hook = Callable[["Layer", tuple[Array, ...], Array], Array | None]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the network, as data.

    `dataclasses.replace` makes a changed one, without hooks. Hooks go on and off at any time.

    Examples
    --------
    >>> model["layer2.0.conv2"].output_shape((1, 16, 16, 128))
    (1, 8, 8, 128)
    """

    name: str  # torchvision's name of the convolution, pool or linear layer
    op: str  # input, conv, maxpool, avgpool or linear; in unfuse.py also batchnorm, add and relu
    inputs: tuple[str, ...]  # names of the layers it reads: x, and the residual if one is added
    in_c: int  # channels read
    out_c: int  # channels written
    kernel: int = 1  # pixels, the same along both axes, as are stride and padding
    stride: int = 1
    padding: int = 0
    bn: str = ""  # torchvision's name of the BatchNorm fused into a convolution
    relu: bool = False  # whether negative outputs become zero
    qparams: QParams | None = None  # scale and zero point of an output in eight bits
    kept: bool = False  # whether it stays in float32 in an INT8 network, as mixed.py runs it
    hooks: list[HookHandle] = field(default_factory=list, init=False, repr=False)

    def output_shape(self, x: Shape) -> Shape:
        """Return the output's shape for an input of shape `x`."""
        if self.op in ("conv", "maxpool"):
            sizes = (ref.output_size(s, self.kernel, self.stride, self.padding) for s in x[1:3])
            return (x[0], *sizes, self.out_c)
        return (x[0], self.out_c) if self.op in ("avgpool", "linear") else x

    def macs(self, output: Shape) -> int:
        """Count the multiply-adds, M * N * K, that an output of shape `output` takes."""
        has_weights = self.op in ("conv", "linear")
        return int(np.prod(output)) * self.kernel**2 * self.in_c if has_weights else 0

    @property
    def parameters(self) -> int:
        """Count the trained values: weights, and a bias or a BatchNorm's gamma and beta."""
        has_weights = self.op in ("conv", "linear")
        per_channel = self.kernel**2 * self.in_c + (2 if self.bn else 1)
        return self.out_c * per_channel if has_weights else 0

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Have ``hook(layer, inputs, output)`` called after each run, as `HookHandle` tells."""
        return put_on(self.hooks, hook)


class FloatParams(NamedTuple):
    """The parameters of a convolution or of the linear layer in float32."""

    weight: Array  # (N, K): OHWI, a row per output channel
    bias: Array  # (N,)


class Int8Params(NamedTuple):
    """The parameters of a convolution or of the linear layer in INT8."""

    x_qparams: QParams  # the input's scale and zero point
    w_s8: Array  # (N, K)
    w_scale: Array  # (N,) float32
    # (N,) in steps of x_scale * w_scale, less x_zero_point * sum(w_s8): see `gemm_u8s8`. It is so
    # small that with the sums it stays below 2**31.
    bias_s32: Array
    residual_qparams: QParams | None = None  # those of the residual, if one is added

    @property
    def weight(self) -> Array:
        """The real numbers that the weights stand for, (N, K) float32."""
        return self.w_s8 * self.w_scale[:, np.newaxis]

    @property
    def bias(self) -> Array:
        """The real numbers that the bias stands for, (N,) float32."""
        x_scale, x_zero_point = self.x_qparams
        bias_s32 = self.bias_s32 + x_zero_point * self.w_s8.sum(axis=1, dtype=np.int32)
        real: Array = (bias_s32 * (np.float64(x_scale) * self.w_scale)).astype(np.float32)
        return real

    def dequantize(self) -> FloatParams:
        """Turn weights and bias back into the real numbers that they stand for."""
        return FloatParams(self.weight, self.bias)


# FP32. A phase takes the layer, its parameters and the result of the phase before it; the first one
# takes the layer's input. M counts output pixels, N output channels, K the products in a sum.


def to_nhwc(layer: Layer, _: None, x: Array) -> Array:
    """Turn torchvision's NCHW into NHWC, where a pixel's channels lie side by side."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))  # (batch, in_h, in_w, in_c)


def im2col(layer: Layer, p: FloatParams, x: Array) -> Array:
    """Copy the patch behind each output pixel into a row, (M, K); padding is zero."""
    return ref.im2col_ref(x, layer.kernel, layer.kernel, layer.stride, layer.padding)


def gemm_f32(layer: Layer, p: FloatParams | Int8Params, columns: Array) -> Array:
    """Multiply each patch by each channel's weights, (M, N)."""
    return ref.gemm_f32_ref(columns, p.weight.T)


def epilogue_f32(
    layer: Layer, p: FloatParams | Int8Params, y: Array, residual: Array | None = None
) -> Array:
    """Add the bias and the residual, and clip at zero, while the sums are at hand."""
    y += p.bias
    if residual is not None:
        y += residual.reshape(y.shape)  # (M, N)
    if layer.relu:
        np.maximum(y, 0, out=y)
    return y


def maxpool(layer: Layer, _: None, x: Array) -> Array:
    """Max-pool, the same on real numbers and on eight-bit ones: it only compares."""
    return ref.maxpool_ref(x, layer.kernel, layer.stride, layer.padding)


def avgpool_f32(layer: Layer, _: None, x: Array) -> Array:
    """Average over all pixels, (batch, in_c)."""
    return ref.global_avgpool_ref(x)


# Simulated INT8: the operands are rounded, and the arithmetic stays float32.


def fake(layer: Layer, _: Any, y: Array) -> Array:
    """Round a layer's output to eight bits, but keep it as real numbers: simulated INT8."""
    return ref.fake_quantize_ref(y, *y_qparams(layer))


# Real INT8: u8 activations, s8 weights, s32 accumulators, u8 out.


def y_qparams(layer: Layer) -> QParams:
    """Return the output's scale and zero point, which minires/quantize/ sets on all but fc."""
    assert layer.qparams is not None
    return layer.qparams


def quantize(layer: Layer, _: None, x: Array) -> Array:
    """Bring the image into eight bits; from here on all activations are u8."""
    return ref.quantize_ref(x, *y_qparams(layer))


def im2col_u8(layer: Layer, p: Int8Params, x_u8: Array) -> Array:
    """Copy patches as in FP32; the padding holds the zero point, which stands for 0."""
    kernel, zero_point = layer.kernel, p.x_qparams.zero_point
    return ref.im2col_ref(x_u8, kernel, kernel, layer.stride, layer.padding, zero_point)


def gemm_u8s8(layer: Layer, p: Int8Params, columns_u8: Array) -> Array:
    """Multiply u8 by s8 and sum exactly, (M, N) s32; x's zero point is left for the bias.

    sum((x_u8 - zero_point) * w_s8)  =  sum(x_u8 * w_s8) - zero_point * sum(w_s8), and the second
    part is the same for every patch, so the bias has it.
    """
    return ref.gemm_u8s8_ref(columns_u8, p.w_s8.T)


def requantize(
    layer: Layer, p: Int8Params, acc_s32: Array, residual_u8: Array | None = None
) -> Array:
    """Bring the sums to the output's scale, add the residual, and round to eight bits, once.

    A sum counts in steps of x_scale * w_scale, the residual in steps of its own scale. Each is
    multiplied by its step / y_scale, so that both count in the output's: equations 7.1 and 8.1.
    """
    y_scale, y_zero_point = y_qparams(layer)
    m = p.x_qparams.scale * p.w_scale / y_scale  # (N,) one for each channel, like w_scale
    shortcut = None
    if residual_u8 is not None:
        assert p.residual_qparams is not None
        scale, zero_point = p.residual_qparams
        steps = residual_u8.reshape(acc_s32.shape).astype(np.int32) - zero_point
        shortcut = steps.astype(np.float32) * (scale / y_scale)  # (M, N)
    # layer.relu is not read: a layer with a ReLU has zero point 0, so the clip at 0 is its ReLU.
    return ref.requantize_ref(acc_s32 + p.bias_s32, m, y_zero_point, shortcut)


def avgpool_int8(layer: Layer, x_qparams: QParams, x_u8: Array) -> Array:
    """Sum over all pixels; the requantization divides. It needs no parameters but these."""
    pixels = x_u8.shape[1] * x_u8.shape[2]
    y_scale, y_zero_point = y_qparams(layer)
    acc_s32 = x_u8.sum(axis=(1, 2), dtype=np.int32) - pixels * x_qparams.zero_point  # (batch, in_c)
    m = x_qparams.scale / (y_scale * np.float32(pixels))
    return ref.requantize_ref(acc_s32, m, y_zero_point)


def dequantize(layer: Layer, p: Int8Params, acc_s32: Array) -> Array:
    """Turn the last sums into real numbers, the logits: each times x_scale * w_scale."""
    return (acc_s32 + p.bias_s32).astype(np.float32) * (p.x_qparams.scale * p.w_scale)


TAKE_RESIDUAL = ("epilogue", "add")  # the phases that take the residual, too
PhaseTime = tuple[str, float, float]  # a phase that has run: its name, start and end in seconds


class Operator:
    """Phases by name, which run one after another, each on the result of the one before."""

    def __init__(self, **phases: Callable[..., Array]) -> None:
        self.phases = phases

    def __call__(
        self, layer: Layer, p: Any, x: Array, *residual: Array, times: list[PhaseTime] | None = None
    ) -> Array:
        """Compute a layer's output, and note in `times` when each phase ran."""
        y = x
        for name, phase in self.phases.items():
            started = perf_counter()
            y = phase(layer, p, y, *residual) if name in TAKE_RESIDUAL else phase(layer, p, y)
            if times is not None:
                times.append((name, started, perf_counter()))
        # The phases of a convolution return (M, N), one row for each pixel; the layer returns NHWC.
        return y.reshape(layer.output_shape(x.shape)) if layer.op == "conv" else y


def rounded(narrow: Callable[[Array], Array]) -> dict[str, Operator]:
    """Make a precision of FP32 with fewer bits: the operands are rounded, the sums stay float32."""

    def quantize(layer: Layer, _: Any, y: Array) -> Array:
        return narrow(y)  # for the next layer to read

    def gemm(layer: Layer, p: FloatParams, columns: Array) -> Array:
        return ref.gemm_f32_ref(columns, narrow(p.weight).T)  # the columns are rounded already

    return {
        "input": Operator(input=to_nhwc, quantize=quantize),
        "conv": Operator(im2col=im2col, gemm=gemm, epilogue=epilogue_f32, quantize=quantize),
        "maxpool": Operator(maxpool=maxpool),
        "avgpool": Operator(avgpool=avgpool_f32, quantize=quantize),
        "linear": Operator(gemm=gemm, epilogue=epilogue_f32),
    }


# Each precision is a table: one line for each operator, its phases in the order they run.
OPERATORS: dict[str, dict[str, Operator]] = {
    "fp32": {
        "input": Operator(input=to_nhwc),
        "conv": Operator(im2col=im2col, gemm=gemm_f32, epilogue=epilogue_f32),
        "maxpool": Operator(maxpool=maxpool),
        "avgpool": Operator(avgpool=avgpool_f32),
        "linear": Operator(gemm=gemm_f32, epilogue=epilogue_f32),
    },
    "bf16": rounded(ref.round_bf16_ref),
    "fp16": rounded(ref.round_f16_ref),
    "tf32": rounded(ref.round_tf32_ref),
    "int8-simulated": {
        "input": Operator(input=to_nhwc, quantize=fake),
        "conv": Operator(im2col=im2col, gemm=gemm_f32, epilogue=epilogue_f32, quantize=fake),
        "maxpool": Operator(maxpool=maxpool),
        "avgpool": Operator(avgpool=avgpool_f32, quantize=fake),
        "linear": Operator(gemm=gemm_f32, epilogue=epilogue_f32),
    },
    "int8": {
        "input": Operator(input=to_nhwc, quantize=quantize),
        "conv": Operator(im2col=im2col_u8, gemm=gemm_u8s8, epilogue=requantize),
        "maxpool": Operator(maxpool=maxpool),
        "avgpool": Operator(avgpool=avgpool_int8),
        "linear": Operator(gemm=gemm_u8s8, epilogue=dequantize),
    },
}
