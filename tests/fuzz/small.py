"""A network of seven layers in ResNet-50's place, so that its file is small and soon read.

A mutant of a ResNet-50 has 100 MB. Of its reading only the list of layers is replaced here: all
that reads, checks, folds and runs is the package's own.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import minires
from minires import api, model
from minires.checkpoint import state_dict_shapes
from minires.layers import Int8Params, Layer
from minires.model import ResNet50
from minires.preprocess import IMAGENET_V2
from minires.quantize import int8_file
from minires.quantize.calibrate import quantized_edges
from minires.reference import QParams

CLASSES = 2
TOLD: dict[str, Any] = {
    "name": "fuzzed",
    "categories": ["cat", "dog"],
    "preset": {**asdict(IMAGENET_V2), "resize": 36, "crop": 32, "enlarge": 40},
    "calibration": {"observer": "mse", "images": 8},
}
IMAGE = np.linspace(-2, 2, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32)


def layers(num_classes: int = CLASSES) -> list[Layer]:
    """List layers of all kinds that a ResNet-50 has; a shortcut joins the last convolution."""
    return [
        Layer("input", "input", (), 3, 3),
        Layer("conv1", "conv", ("input",), 3, 2, 3, stride=4, padding=1, bn="bn1", relu=True),
        Layer("maxpool", "maxpool", ("conv1",), 2, 2, kernel=3, stride=2, padding=1),
        Layer("conv2", "conv", ("maxpool",), 2, 2, bn="bn2", relu=True),
        Layer("conv3", "conv", ("conv2", "maxpool"), 2, 2, bn="bn3", relu=True),
        Layer("avgpool", "avgpool", ("conv3",), 2, 2),
        Layer("fc", "linear", ("avgpool",), 2, num_classes),
    ]


SHAPES = state_dict_shapes(layers())
EDGES = [*quantized_edges(layers()), "maxpool"]


@contextmanager
def in_place_of_resnet50() -> Iterator[None]:
    """Have the package load this network, and take no name for one of its own files'."""
    with (
        mock.patch.object(model, "resnet50_layers", layers),
        mock.patch.object(int8_file, "resnet50_layers", layers),
        mock.patch.object(api.download, "resolve", lambda path, _: (path, None)),
    ):
        yield


def run(path: Path) -> ResNet50:
    """Load float weights as a user does, and have the definitions classify with them."""
    with in_place_of_resnet50():
        loaded = minires.resnet50(path, backend="numpy")
    if len(loaded.meta["categories"]) < 100:
        minires.predict(loaded, IMAGE)
    return loaded


@functools.cache
def state_dict() -> Mapping[str, Any]:
    """Make weights whose numbers do not matter, but which are another for each value."""
    return {
        name: np.linspace(0.5, 1.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        for name, shape in SHAPES.items()
    }


def int8_network() -> ResNet50:
    """Make the network in INT8."""
    q = QParams(np.float32(0.1), 3)
    params: dict[str, Any] = {"avgpool": q}
    for layer in layers():
        if layer.op in ("conv", "linear"):
            n = layer.out_c
            w_s8 = np.ones((n, layer.kernel**2 * layer.in_c), np.int8)
            w_scale, bias = np.full(n, 0.1, np.float32), np.zeros(n, np.int32)
            residual = q if len(layer.inputs) > 1 else None
            params[layer.name] = Int8Params(q, w_s8, w_scale, bias, residual)
    quantized = [layer if layer.op == "linear" else replace(layer, qparams=q) for layer in layers()]
    meta = {**TOLD, "preset": IMAGENET_V2, "saturated": dict.fromkeys(EDGES, 0.0)}
    return ResNet50(quantized, params, "int8", meta)
