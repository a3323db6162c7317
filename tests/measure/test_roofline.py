"""This machine's layers under their roofs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from minires.measure.roofline import format_layers, measure_layers, plot_layers
from minires.model import ResNet50
from tests.measure.conftest import ROOFS
from tests.seeded_weights import seeded_input


def test_layers_are_measured_under_their_roofs(
    models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    layers = measure_layers(models, seeded_input((1, 3, 64, 64)), runs=2)
    assert {len(rows) for rows in layers.values()} == {54}
    assert all(row.gops > 0 and row.calls == 1 for rows in layers.values() for row in rows)
    lines = format_layers(layers, "here").splitlines()
    assert lines[0] == "here"
    assert [line.split()[0] for line in lines[3:57]] == [row.name for row in layers["fp32"]]
    slow = [row._replace(seconds=1.0, roofs=ROOFS) for row in layers["fp32"]]  # nothing in doubt
    assert len(format_layers({"fp32": slow}, "here").splitlines()) == 3 + 54
    fast = [row._replace(seconds=1e-9, roofs=ROOFS) for row in layers["fp32"]]
    lines = format_layers({"fp32": fast}, "here").splitlines()
    assert lines[-1].startswith("NOT STEADY: conv1 seems faster than its limit (other doubts: 53)")
    assert all(line.split()[3] == "?" for line in lines[3:57])
    doubted = [row._replace(roofs=ROOFS._replace(doubts=("it was busy",))) for row in slow]
    lines = format_layers({"fp32": doubted}, "here").splitlines()
    assert all(line.split()[2].endswith("?") for line in lines[3:57])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot_layers({"fp32": slow}, tmp_path / "layers.svg", "here")
    assert "fp32 peak, 100 GOP/s" in (tmp_path / "layers.svg").read_text("utf-8")
