"""What files say of themselves; tests/quantize/ has those of whole files."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from minires.errors import MiniresError, WeightsError
from minires.metadata import read_calibration, read_json, read_meta, read_qparams
from minires.preprocess import IMAGENET_V2, LARGEST_SIDE, Preset, read_preset
from minires.quantize import qparams_of_range

ENDLESS: dict[str, Any] = {
    "nothing": None,
    "a number": 1e300,
    "an infinite number": float("inf"),
    "no number": float("nan"),
    "many digits": 10**4000,
    "yes": True,
    "a long text": "a" * 10**6,
    "a terminal's command": "\x1b[2J",
    "half a character": "\ud800",
    "a list": [1, "a", None] * 10**4,
    "an object": {"a" * 10**6: "b"},
}


def message(error: pytest.ExceptionInfo[MiniresError]) -> str:
    """Return the one sentence, of a length that can be read."""
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 400
    return text


# JSON


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 10**6, "9" * 5000, '{"a":' * 900 + "1"])
def test_what_is_no_json_is_told(text: str) -> None:
    with pytest.raises(WeightsError) as caught:
        read_json(text)
    assert "its metadata is n" in message(caught)


def test_what_is_nested_too_often_is_refused_although_python_reads_it() -> None:
    assert read_json("[" * 16 + "]" * 16)
    for opening, closing in ("[", "]"), ('{"a":', "}"):
        text = opening * 17 + "1" + closing * 17
        assert json.loads(text)
        with pytest.raises(WeightsError, match="nested more than 16 times"):
            read_json(text)


# Presets

FIELDS = json.loads(json.dumps(asdict(IMAGENET_V2)))


def test_a_preset_comes_back() -> None:
    assert read_preset(FIELDS) == IMAGENET_V2
    small = Preset(28, 28, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), enlarge=32)
    assert read_preset(json.loads(json.dumps(asdict(small)))) == small
    largest = {**FIELDS, "resize": LARGEST_SIDE, "crop": LARGEST_SIDE, "enlarge": LARGEST_SIDE}
    assert read_preset(largest).enlarge == LARGEST_SIDE
    assert read_preset({**FIELDS, "mean": [0, 0, 0], "std": [1, 1, 1]}).std == (1, 1, 1)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_preset_with_one_value_of_the_wrong_kind(field: str, kind: str) -> None:
    if (field, kind) == ("enlarge", "nothing"):
        return  # as most presets have it
    for value in ENDLESS[kind], [ENDLESS[kind]] * 3:
        with pytest.raises(MiniresError, match="preset") as caught:
            read_preset({**FIELDS, field: value})
        message(caught)


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_is_no_preset_at_all(kind: str) -> None:
    with pytest.raises(MiniresError, match="a preset is") as caught:
        read_preset(ENDLESS[kind])
    message(caught)


@pytest.mark.parametrize(
    "change",
    [
        {"enlarge": 20_000},
        {"resize": LARGEST_SIDE + 1},
        {"resize": 0},
        {"crop": -224},
        {"crop": 31},
        {"crop": 224.0},
        {"enlarge": 31},
        {"enlarge": 0},
        {"mean": [0.5, 0.5]},
        {"mean": [99, 0.5, 0.5]},
        {"std": [0.2, 0.2, 0]},
        {"std": [0.2, 0.2, -0.2]},
        {"std": [0.2, 0.2, 0.001]},
        {"more": 1},
    ],
)
def test_a_preset_that_makes_no_images_for_the_network(change: dict[str, Any]) -> None:
    with pytest.raises(MiniresError, match="a preset"):
        read_preset({**FIELDS, **change})


@pytest.mark.parametrize("field", ["resize", "crop", "mean", "std"])
def test_a_preset_that_is_not_whole(field: str) -> None:
    with pytest.raises(MiniresError, match="a preset is"):
        read_preset({key: value for key, value in FIELDS.items() if key != field})


# A network's meta

META = {
    "name": "own",
    "categories": ["cat", "dog"],
    "preset": FIELDS,
    "saturated": {"conv1": 0.25},
    "calibration": {"observer": "mse", "images": 3},
    "licence": None,
    "anything": [{"else": 1}],
}


def test_meta_comes_back_with_its_preset() -> None:
    assert read_meta(META, 2) == {**META, "preset": IMAGENET_V2}
    assert read_meta({}, 2) == {}


@pytest.mark.parametrize("key", ["name", "categories", "preset", "saturated", "calibration"])
@pytest.mark.parametrize("kind", ENDLESS)
def test_meta_with_one_value_of_the_wrong_kind(key: str, kind: str) -> None:
    value = ENDLESS[kind]
    for wrong in value, [value, value], {"conv1": value}, {"observer": value, "images": value}:
        with pytest.raises(MiniresError) as caught:
            read_meta({**META, key: wrong}, 2)
        message(caught)


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_is_no_meta_at_all(kind: str) -> None:
    if kind == "an object":
        return
    with pytest.raises(WeightsError, match="wanted names and values"):
        read_meta(ENDLESS[kind], 2)


def test_categories_are_as_many_as_classes() -> None:
    with pytest.raises(WeightsError, match="names 2 categories for 3 classes"):
        read_meta(META, 3)


# Scales, and ranges to make them of


@pytest.mark.parametrize("kind", ENDLESS)
def test_scales_of_the_wrong_kind(kind: str) -> None:
    assert read_qparams({"a": [0.5, 3]}, ["a"])["a"] == (0.5, 3)
    value = ENDLESS[kind]
    for wrong in value, [value, 0], [0.5, value], [0.5, 3, value], [value]:
        with pytest.raises(WeightsError) as caught:
            read_qparams({"a": wrong}, ["a"])
        message(caught)
    with pytest.raises(WeightsError, match="not those of this network's edges"):
        read_qparams(value, ["a"])


def test_scales_that_no_edge_can_have() -> None:
    for scale in 0, -0.5, 1e-46, 514, 3.5e38:
        with pytest.raises(WeightsError, match="wanted a scale above 0"):
            read_qparams({"a": [scale, 0]}, ["a"])


def test_a_calibration_comes_back() -> None:
    told = {"ranges": {"a": [0, 1]}, "saturated": {"a": 0.5}, "observer": "mse", "images": 3}
    found = read_calibration(json.dumps(told), ["a"])
    assert found == {**told, "ranges": {"a": (0, 1)}}


@pytest.mark.parametrize("limit", [(0, 65505), (-3e38, 3e38), (-65505, 0), (1, 0.5)])
def test_a_range_that_no_edge_can_have_is_refused(limit: tuple[float, float]) -> None:
    told: dict[str, Any] = {"ranges": {"a": [-65504, 65504]}, "saturated": {"a": 0}}
    told |= {"observer": "mse", "images": 3}
    [widest] = read_calibration(json.dumps(told), ["a"])["ranges"].values()
    scale, zero_point = qparams_of_range(*widest)
    assert read_qparams({"a": [float(scale), zero_point]}, ["a"])  # what is saved can be loaded
    told["ranges"] = {"a": limit}
    with pytest.raises(WeightsError, match=r"a has the range .*; wanted two numbers, from -65504"):
        read_calibration(json.dumps(told), ["a"])
