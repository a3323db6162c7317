"""ResNet-50 with its fused steps taken apart: convolution, batchnorm, add, relu.

It runs in FP32 and NumPy only. With it you can see that fusing and folding change only roundings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from minires import reference as ref
from minires.backends import Backend
from minires.checkpoint import check_state_dict, count_classes, fp32_params, state_dict_shapes
from minires.layers import OPERATORS, Array, Layer, Operator
from minires.model import ResNet50, resnet50_layers


def unfuse(state: Mapping[str, Array], meta: Mapping[str, Any] | None = None) -> "UnfusedResNet50":
    """Build the float32 network whose BatchNorms, additions and ReLUs are layers of their own.

    Parameters
    ----------
    state : mapping
        torchvision's state_dict, as `minires.checkpoint.read_checkpoint` returns it: float32 or
        float16.
    meta : mapping, optional
        As for `ResNet50`.

    Returns
    -------
    UnfusedResNet50
        You can call, step through and hook it like any other; it runs in fp32 with backend "numpy".

    Raises
    ------
    WeightsError
        For tensors that do not belong to a ResNet-50.

    Examples
    --------
    >>> from minires.unfuse import unfuse
    >>> state = minires.checkpoint.read_checkpoint("weights/resnet50_cifar10.safetensors")
    >>> apart = unfuse(state)
    >>> [step.name for step in apart.steps(x)][1:4]
    ['conv1', 'bn1', 'relu1']
    """
    layers = resnet50_layers(count_classes(state))
    state = check_state_dict(state, state_dict_shapes(layers))
    parts = unfused_layers(layers)
    return UnfusedResNet50(parts, fp32_params(parts, state), meta=meta)


def unfused_layers(layers: Iterable[Layer]) -> list[Layer]:
    """Split each convolution from the BatchNorm, the addition and the ReLU fused into it.

    A convolution keeps its name; torchvision's names of the others, bn1, add and relu1, follow it.
    """
    parts: list[Layer] = []
    ends: dict[str, str] = {}  # a fused layer's name -> the name of its last part
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


class UnfusedResNet50(ResNet50):
    """A network in fp32 whose fused steps are apart; `unfuse` makes it."""

    operators: ClassVar[Mapping[str, Mapping[str, Operator]]] = {
        "fp32": {
            **OPERATORS["fp32"],
            "batchnorm": Operator(batchnorm=batchnorm_f32),
            "add": Operator(add=add_f32),
            "relu": Operator(relu=relu_f32),
        }
    }
    # Compiled kernels only run fused steps.
    backends: ClassVar[dict[str, Backend]] = {"numpy": Backend(("fp32",))}
