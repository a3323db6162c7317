"""torchvision's state_dict: which tensors the network needs, and how its layers want them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minires.layers import Array, FloatParams, Layer, Shape, lock
from minires.reference import fold_batchnorm

BATCHNORM = ("weight", "bias", "running_mean", "running_var")  # gamma, beta, mean, var


def state_dict_shapes(layers: list[Layer]) -> dict[str, Shape]:
    """Name every tensor that the layers need from torchvision's state_dict, with its shape."""
    shapes: dict[str, Shape] = {}
    for layer in layers:
        if layer.op == "conv":
            shapes[f"{layer.name}.weight"] = (layer.out_c, layer.in_c, layer.kernel, layer.kernel)
            shapes |= {f"{layer.bn}.{field}": (layer.out_c,) for field in BATCHNORM}
        elif layer.op == "linear":
            shapes[f"{layer.name}.weight"] = (layer.out_c, layer.in_c)
            shapes[f"{layer.name}.bias"] = (layer.out_c,)
    return shapes


def fp32_params(layers: list[Layer], state: Mapping[str, Array]) -> dict[str, Any]:
    """Fold BatchNorms into their convolutions and lay the weights out as GEMM reads them.

    The parameters are read-only and share no memory with the state_dict, which the caller may go
    on changing.
    """
    params: dict[str, Any] = {}
    for layer in layers:
        if layer.op == "conv":
            weight = state[f"{layer.name}.weight"].transpose(0, 2, 3, 1)  # OIHW to OHWI
            bias = np.zeros(layer.out_c, np.float32)
            if layer.bn:
                weight, bias = fold_batchnorm(weight, *_batchnorm(state, layer.bn))
            else:
                weight = weight.copy()
            params[layer.name] = FloatParams(weight.reshape(layer.out_c, -1), bias)  # (N, K)
        elif layer.op == "linear":
            params[layer.name] = FloatParams(state["fc.weight"].copy(), state["fc.bias"].copy())
        elif layer.op == "batchnorm":
            params[layer.name] = _batchnorm(state, layer.name)
    return {name: lock(p) for name, p in params.items()}


def _batchnorm(state: Mapping[str, Array], name: str) -> tuple[Array, ...]:
    return tuple(state[f"{name}.{field}"].copy() for field in BATCHNORM)
