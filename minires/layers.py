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

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Hook = Callable[["Layer", tuple[Array, ...], Array], Array | None]


@dataclass(eq=False)
class Layer:
    """One step of the network, as data.

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
    hooks: list[Hook] = field(default_factory=list, repr=False)

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

    def register_forward_hook(self, hook: Hook) -> "HookHandle":
        """Have ``hook(layer, inputs, output)`` called after each run, as in torch.

        Parameters
        ----------
        hook : callable
            What it returns, unless None, takes the output's place.

        Returns
        -------
        HookHandle
            Takes the hook off again, by ``remove()`` or at the end of a with statement.
        """
        self.hooks.append(hook)
        return HookHandle(self.hooks, hook)


class HookHandle(NamedTuple):
    """What `Layer.register_forward_hook` returns."""

    hooks: list[Hook]
    hook: Hook

    def remove(self) -> None:
        """Take the hook off; a second time does nothing."""
        self.hooks[:] = [other for other in self.hooks if other is not self.hook]

    def __enter__(self) -> "HookHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class FloatParams(NamedTuple):
    """A convolution's or linear layer's float32 parameters."""

    weight: Array  # (N, K): OHWI, a row per output channel
    bias: Array  # (N,)


def input_f32(layer: Layer, _: None, x: Array) -> Array:
    """Turn torchvision's NCHW into NHWC."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))  # (batch, in_h, in_w, in_c)


def conv_f32(layer: Layer, p: FloatParams, x: Array, residual: Array | None = None) -> Array:
    """Convolve: im2col, GEMM, and an epilogue on the accumulators before they are stored."""
    columns = ref.im2col_ref(x, layer.kernel, layer.kernel, layer.stride, layer.padding)  # (M, K)
    y = ref.gemm_f32_ref(columns, p.weight.T)  # (M, N)
    y += p.bias
    if residual is not None:
        y += residual.reshape(y.shape)  # (M, N)
    if layer.relu:
        np.maximum(y, 0, out=y)
    return y.reshape(layer.output_shape(x.shape))  # (batch, out_h, out_w, out_c)


def maxpool(layer: Layer, _: None, x: Array) -> Array:
    """Max-pool; the same for floats and for quantized values."""
    return ref.maxpool_ref(x, layer.kernel, layer.stride, layer.padding)


def avgpool_f32(layer: Layer, _: None, x: Array) -> Array:
    """Average over all pixels."""
    return ref.global_avgpool_ref(x)  # (batch, in_c)


def linear_f32(layer: Layer, p: FloatParams, x: Array) -> Array:
    """Classify: the GEMM without an im2col."""
    return ref.gemm_f32_ref(x, p.weight.T) + p.bias  # (batch, num_classes)


# Taken apart, a fused step's parts are layers of their own.


def batchnorm_f32(layer: Layer, p: tuple[Array, ...], x: Array) -> Array:
    """Normalize by gamma, beta, mean and var, in this order."""
    return ref.batchnorm_ref(x, *p)


def add_f32(layer: Layer, _: None, x: Array, residual: Array) -> Array:
    """Add the block's input to its output."""
    return x + residual


def relu_f32(layer: Layer, _: None, x: Array) -> Array:
    """Clip at zero."""
    return ref.relu_ref(x)
