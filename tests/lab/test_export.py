"""What the page is given: plans in JSON, weights, and an example."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

import minires
from minires.lab import export
from minires.layers import Array
from minires.preprocess import normalize
from minires.quantize import load_int8


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return export.export_network()


def expand(runs: list[list[int]]) -> Array:
    return np.concatenate([first + apart * np.arange(times) for first, apart, times in runs])


@pytest.mark.parametrize("offsets", [[5], [0, 4, 8, 12, 40, 44, 48], [3, 3, 3], [1, 2, 4, 8, 16]])
def test_offsets_come_in_runs(offsets: list[int]) -> None:
    table = np.array(offsets, np.int32)
    assert expand(export.in_runs(table)).tolist() == offsets  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_plan_in_json_is_the_plan(files: dict[str, bytes], precision: str) -> None:
    model = minires.resnet50("CIFAR10", precision, "numpy")
    told = json.loads(files[f"{precision}.json"])
    plan = export.plan_for(model)
    assert (told["size"], told["categories"][3]) == (64, "cat")
    assert [step["name"] for step in told["steps"]] == [layer.name for layer in model.layers]
    assert len(told["buffers"]) == len(plan.buffers)
    for step, planned in zip(told["steps"], plan.steps, strict=True):
        assert step["y"] == planned.y._asdict()
        assert (step["gemm"] is None) == (planned.gemm is None)
        if planned.gemm:
            assert expand(step["gemm"]["xOffsets"]).tolist() == planned.gemm.x_offsets.tolist()
            assert expand(step["gemm"]["yOffsets"]).tolist() == planned.gemm.y_offsets.tolist()
            assert step["gemm"]["panelBytes"] == planned.gemm.panel_bytes


def test_the_weights_are_those_of_the_network(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "int8.safetensors"
    path.write_bytes(files[path.name])
    model = minires.resnet50("CIFAR10", "int8", "numpy")
    fp32 = load(files["fp32.safetensors"])
    assert np.array_equal(load_int8(path).params["fc"].w_s8, model.params["fc"].w_s8)
    assert fp32["conv1.weight"].dtype == np.float16
    assert len(files["int8.json"]) + len(files["fp32.json"]) < 100_000


def test_the_example_is_what_the_network_sees(files: dict[str, bytes]) -> None:
    preset = minires.get_weights("CIFAR10").preset
    pixels = np.frombuffer(files["example.rgb"], np.uint8).reshape(64, 64, 3)
    assert np.array_equal(
        normalize(pixels, preset), minires.preprocess(export.find_cat(), preset)[0]
    )


def test_a_network_in_int8_alone_has_no_fp32(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(files["int8.safetensors"])
    again = export.export_network(str(path), np.zeros((40, 50, 3), np.uint8))
    assert set(again) == {"example.rgb", "int8.json", "int8.safetensors"}
    assert set(again["example.rgb"]) == {0}
