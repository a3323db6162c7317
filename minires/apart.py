"""The network with its fused steps taken apart: convolution, batchnorm, add, relu.

FP32 and NumPy only: to see that fusing and folding change nothing but the rounding.
"""

from collections.abc import Sequence
from dataclasses import replace

from minires import reference as ref
from minires.layers import Array, Layer, Operator


def take_apart(layers: Sequence[Layer]) -> list[Layer]:
    """Split each convolution from the BatchNorm, the addition and the ReLU fused into it.

    Parameters
    ----------
    layers : sequence of Layer
        The fused network, in the order it runs.

    Returns
    -------
    list of Layer
        A convolution keeps its name and its hooks; bn1, add and relu1 follow it.
    """
    parts: list[Layer] = []
    ends: dict[str, str] = {}  # a fused layer's name -> the part that has its output
    for layer in layers:
        x, residual = layer.inputs[:1], layer.inputs[1:]
        parts.append(replace(layer, inputs=tuple(ends[name] for name in x), bn="", relu=False))

        def then(op: str, name: str, *inputs: str, channels: int = layer.out_c) -> None:
            parts.append(Layer(name, op, (parts[-1].name, *inputs), channels, channels))

        if layer.bn:
            then("batchnorm", layer.bn)
        if residual:
            then("add", layer.name.replace("conv3", "add"), ends[residual[0]])
        if layer.relu:
            then("relu", layer.name.replace("conv", "relu"))
        ends[layer.name] = parts[-1].name
    return parts


def batchnorm_f32(layer: Layer, p: tuple[Array, ...], x: Array) -> Array:
    """Normalize by gamma, beta, mean and var, in this order."""
    return ref.batchnorm_ref(x, *p)


def add_f32(layer: Layer, _: None, x: Array, residual: Array) -> Array:
    """Add the block's input to its output."""
    return x + residual


def relu_f32(layer: Layer, _: None, x: Array) -> Array:
    """Clip at zero."""
    return ref.relu_ref(x)


OPERATORS_APART: dict[str, Operator] = {
    "batchnorm": batchnorm_f32,
    "add": add_f32,
    "relu": relu_f32,
}
