import numpy as np

from minires.layers import Layer
from minires.model import ResNet50
from minires.reference import QParams
from minires.summary import format_edges

LAYERS = [
    Layer("input", "input", (), 3, 3, qparams=QParams(np.float32(0.5), 100)),
    Layer("conv1", "conv", ("input",), 3, 8, qparams=QParams(np.float32(0.02), 0)),
    Layer("maxpool", "maxpool", ("conv1",), 8, 8, qparams=QParams(np.float32(0.02), 0)),
    Layer("fc", "linear", ("maxpool",), 8, 10),
]
SATURATED = {"input": 0.0, "conv1": 0.00125}


def test_each_edge_has_a_line() -> None:
    lines = [line.split() for line in format_edges(LAYERS, SATURATED).splitlines()]
    assert lines == [
        ["edge", "range", "scale", "zero", "point", "saturated"],
        ["input", "-50", "to", "77.5", "0.5", "100", "0.0000%"],
        ["conv1", "0", "to", "5.1", "0.02", "0", "0.1250%"],
        ["maxpool", "0", "to", "5.1", "0.02", "0"],
    ]


def test_an_int8_network_prints_its_edges_below_its_layers() -> None:
    edges = format_edges(LAYERS, SATURATED)
    assert str(ResNet50(LAYERS, {}, "int8", {"saturated": SATURATED})).endswith(f"\n\n{edges}")
    assert "saturated" not in str(ResNet50(LAYERS, {}, "fp32"))
