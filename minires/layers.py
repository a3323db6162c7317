"""What a layer is and what it does: a convolution is im2col, a GEMM and an epilogue.

Activations are NHWC. Every operator takes the layer's description, its parameters and its
inputs, and returns its output; model.py says which precision uses which operator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minires import reference as ref
from minires.hooks import Hook, HookHandle
from minires.reference import QParams

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Operator = Callable[..., Array]
Gemm = Callable[[Array, Array], Array]  # (M, K) by (K, N)


@dataclass(frozen=True, eq=False)
class Layer:
    """One step of the network, as data.

    It cannot be changed, because compiled kernels are laid out for it: `dataclasses.replace` makes
    another one. Hooks can be put on and taken off at any time.

    Attributes
    ----------
    name : str
        torchvision's name of the convolution, pool or linear layer.
    op : str
        input, conv, maxpool, avgpool or linear; taken apart, also batchnorm, add and relu.
    inputs : tuple of str
        The layers whose outputs it reads: x and, where one is added, the residual.
    in_c, out_c : int
        Channels read and written.
    kernel, stride, padding : int
        In pixels, the same along both axes.
    bn : str
        torchvision's name of the BatchNorm fused into a convolution.
    relu : bool
        Whether negative outputs become zero.
    qparams : QParams or None
        Scale and zero point of the output, where it is in eight bits.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    in_c: int
    out_c: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    bn: str = ""
    relu: bool = False
    qparams: QParams | None = None
    hooks: list[HookHandle] = field(default_factory=list, repr=False)

    def output_shape(self, x: Shape) -> Shape:
        """Tell the shape that comes out where one of shape `x` goes in."""
        if self.op in ("conv", "maxpool"):
            sizes = (ref.output_size(s, self.kernel, self.stride, self.padding) for s in x[1:3])
            return (x[0], *sizes, self.out_c)
        return (x[0], self.out_c) if self.op in ("avgpool", "linear") else x

    def macs(self, output: Shape) -> int:
        """Count the multiply-adds, M * N * K, behind an output of shape `output`."""
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
        self.hooks.append(HookHandle(self.hooks, hook))
        return self.hooks[-1]


class FloatParams(NamedTuple):
    """What a convolution or the linear layer knows in float32."""

    weight: Array  # (N, K): OHWI, a row per output channel
    bias: Array  # (N,)


class Int8Params(NamedTuple):
    """What a convolution or the linear layer knows in INT8."""

    x: QParams  # the input's
    w_s8: Array  # (N, K)
    w_scale: Array  # (N,) float32
    bias_s32: Array  # (N,) in steps of x.scale * w_scale, with x.zero_point folded in
    residual: QParams | None = None  # the residual's

    def dequantize(self) -> FloatParams:
        """Turn weights and bias back into the real numbers that they stand for."""
        bias_s32 = self.bias_s32 + self.x.zero_point * self.w_s8.sum(axis=1, dtype=np.int32)
        bias = bias_s32 * (np.float64(self.x.scale) * self.w_scale)
        return FloatParams(self.w_s8 * self.w_scale[:, np.newaxis], bias.astype(np.float32))


def read_only(p: Any) -> Any:
    """Make sure that nobody can write into a layer's parameters: copy the arrays that one can."""
    if isinstance(p, tuple):
        parts = [read_only(part) for part in p]
        return type(p)(*parts) if hasattr(p, "_fields") else tuple(parts)
    if isinstance(p, np.ndarray) and p.flags.writeable:
        p = p.copy()
        p.flags.writeable = False
    return p


def lock(p: Any) -> Any:
    """Make the arrays of a layer's parameters read-only, where they are nobody else's."""
    for part in p if isinstance(p, tuple) else ():
        if isinstance(part, np.ndarray):
            part.flags.writeable = False
    return p


# FP32: the definition. Each INT8 operator below it is a small difference of it.


def input_f32(layer: Layer, _: None, x: Array) -> Array:
    """Turn torchvision's NCHW into NHWC."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))  # (batch, in_h, in_w, in_c)


def conv_f32(layer: Layer, p: FloatParams, x: Array, residual: Array | None = None,
             gemm: Gemm | None = None) -> Array:  # fmt: skip
    """Convolve: im2col, a GEMM, and an epilogue of bias, residual and ReLU."""
    columns = ref.im2col_ref(x, layer.kernel, layer.kernel, layer.stride, layer.padding)  # (M, K)
    y = (gemm or ref.gemm_f32_ref)(columns, p.weight.T)  # (M, N)
    y += p.bias
    if residual is not None:
        y += residual.reshape(y.shape)  # (M, N)
    if layer.relu:
        np.maximum(y, 0, out=y)
    return y.reshape(layer.output_shape(x.shape))  # (batch, out_h, out_w, out_c)


def maxpool(layer: Layer, _: None, x: Array) -> Array:
    """Max-pool, the same for real numbers and for steps."""
    return ref.maxpool_ref(x, layer.kernel, layer.stride, layer.padding)


def avgpool_f32(layer: Layer, _: None, x: Array) -> Array:
    """Average over all pixels."""
    return ref.global_avgpool_ref(x)  # (batch, in_c)


def linear_f32(layer: Layer, p: FloatParams, x: Array) -> Array:
    """Classify: a GEMM without im2col."""
    return ref.gemm_f32_ref(x, p.weight.T) + p.bias  # (batch, num_classes)


# Real INT8: u8 activations, s8 weights, s32 accumulators, u8 out.


def y_qparams(layer: Layer) -> QParams:
    """Scale and zero point of the output; quantize/ has given them to every INT8 layer."""
    assert layer.qparams is not None
    return layer.qparams


def input_int8(layer: Layer, _: None, x: Array) -> Array:
    """Turn NCHW into NHWC and quantize."""
    return ref.quantize_ref(input_f32(layer, None, x), *y_qparams(layer))


def conv_int8(layer: Layer, p: Int8Params, x: Array, residual: Array | None = None,
              gemm: Gemm | None = None) -> Array:  # fmt: skip
    """Convolve as in FP32, but in integers, with the requantization as the epilogue."""
    kernel, y = layer.kernel, y_qparams(layer)
    columns = ref.im2col_ref(x, kernel, kernel, layer.stride, layer.padding, p.x.zero_point)
    acc_s32 = (gemm or ref.gemm_u8s8_ref)(columns, p.w_s8.T) + p.bias_s32  # (M, N)
    m = p.x.scale * p.w_scale / y.scale
    shortcut = None
    if residual is not None:
        assert p.residual is not None
        steps = residual.reshape(acc_s32.shape).astype(np.int32) - p.residual.zero_point
        shortcut = steps.astype(np.float32) * (p.residual.scale / y.scale)  # (M, N), equation 8.1
    y_u8 = ref.requantize_ref(acc_s32, m, y.zero_point, shortcut)  # its clip is the ReLU
    return y_u8.reshape(layer.output_shape(x.shape))  # (batch, out_h, out_w, out_c)


def avgpool_int8(layer: Layer, p: QParams, x: Array) -> Array:
    """Sum over all pixels; the division by their number is part of the requantization."""
    pixels, y = x.shape[1] * x.shape[2], y_qparams(layer)
    acc_s32 = x.sum(axis=(1, 2), dtype=np.int32) - pixels * p.zero_point  # (batch, in_c)
    m = p.scale / (y.scale * np.float32(pixels))
    return ref.requantize_ref(acc_s32, m, y.zero_point)


def linear_int8(layer: Layer, p: Int8Params, x: Array) -> Array:
    """Classify in integers; the logits leave as float32."""
    acc_s32 = ref.gemm_u8s8_ref(x, p.w_s8.T) + p.bias_s32  # (batch, num_classes)
    return acc_s32.astype(np.float32) * (p.x.scale * p.w_scale)
