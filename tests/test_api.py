"""What `import minires` offers, and a network of the user's own."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import minires
from minires import api, quantize
from minires.checkpoint import read_checkpoint
from minires.cli import main
from minires.errors import MiniresError
from minires.model import ResNet50, resnet50_layers
from minires.notice import tell_once
from minires.preprocess import IMAGENET_V1, Preset
from minires.quantize.convert import keep_layers
from minires.unfuse import unfuse
from tests.comparing import Array, assert_same

ROOT = Path(__file__).parents[1]
CAT = ROOT / "examples" / "images" / "cat.jpg"
FILE = ROOT / "weights" / "resnet50_cifar10.safetensors"
NAMES = [f"name {number}" for number in range(10)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def state() -> dict[str, Array]:
    return {key: np.ascontiguousarray(value) for key, value in read_checkpoint(FILE).items()}


@pytest.fixture(scope="module")
def own(state: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of a network that nobody has told anything about."""
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def model() -> ResNet50:
    return minires.resnet50("CIFAR10")


# The module


def test_a_prompt_offers_what_is_public_and_nothing_else() -> None:
    offered = set(dir(minires))
    assert offered == {*minires.__all__, "measure", "quantize", "__version__"}
    assert all(getattr(minires, name) is not None for name in offered)
    assert dir(minires.measure) == sorted(minires.measure.__all__)
    assert callable(minires.measure.measure_roofs)
    with pytest.raises(AttributeError, match="'minires' has no attribute 'Any_'"):
        minires.Any_  # noqa: B018


# A network of one's own


def test_own_names_and_preset_are_used(own: Path) -> None:
    guessed = minires.resnet50(own)
    assert guessed.meta["categories"][:2] == ["class 0", "class 1"]
    assert guessed.meta["preset"] == IMAGENET_V1
    model = minires.resnet50(own, categories=NAMES, preset="CIFAR10")
    assert model.meta["categories"] == NAMES
    assert model.meta["preset"] == minires.get_weights("CIFAR10").preset
    assert minires.classify(CAT, model=model)[0].label == "name 3"
    other = Preset(40, 40, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert minires.resnet50(own, preset=other).preprocess(CAT).shape == (1, 3, 40, 40)


def test_a_guessed_preset_is_told_once(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once.cache_clear()
    minires.resnet50(own, preset="CIFAR10")
    minires.resnet50("CIFAR10")
    minires.resnet50(FILE)  # a copy of known weights is known, too
    assert capsys.readouterr().err == ""
    model = minires.resnet50(own)
    told = "own.safetensors does not say how it wants its images; they are prepared as for "
    assert told in capsys.readouterr().err
    minires.resnet50(own, "bf16")
    quantize.save_int8(minires.resnet50("CIFAR10", "int8"), tmp_path / "int8.safetensors")
    model = minires.resnet50(
        tmp_path / "int8.safetensors"
    )  # it has the preset, and says that it is in INT8
    assert model.precision == "int8"
    api._tell_guess(ResNet50(resnet50_layers(1000), {}, meta=model.meta))  # ImageNet's classes
    assert capsys.readouterr().err == ""


def test_known_weights_can_be_told_otherwise() -> None:
    model = minires.resnet50("CIFAR10", categories=NAMES, preset="IMAGENET1K_V2")
    assert model.meta["categories"] == NAMES
    assert model.meta["preset"] == minires.get_weights("IMAGENET1K_V2").preset
    assert minires.resnet50("CIFAR10").meta["categories"][3] == "cat"


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> list[Preset]:
    """List what networks are made INT8 for, and make them quickly: on one image, to nearest."""
    presets = []

    def batches(preset: Preset) -> list[Array]:
        presets.append(preset)
        return [np.ones((1, 3, 32, 32), np.float32)]

    monkeypatch.setattr("minires.quantize.default.default_batches", batches)
    monkeypatch.setattr("minires.quantize.default.RECIPE", ("mse", "nearest", "off"))
    return presets


def test_int8_is_calibrated_for_each_preset_but_not_for_each_name(
    own: Path, cache: Path, presets: list[Preset]
) -> None:
    cifar10 = minires.get_weights("CIFAR10").preset
    for names in NAMES, NAMES[::-1]:
        model = minires.resnet50(own, "int8", categories=names, preset="CIFAR10")
        assert (model.meta["categories"], model.meta["preset"]) == (names, cifar10)
    assert minires.resnet50(own, "int8").meta["preset"] == IMAGENET_V1
    assert minires.resnet50(own, "int8").meta["categories"][0] == "class 0"
    assert presets == [cifar10, IMAGENET_V1]
    assert len(list(cache.glob("resnet50-int8-*"))) == 2
    saved = cache / "saved.safetensors"
    minires.quantize.save_int8(model, saved)
    again = minires.resnet50(saved, "int8", categories=NAMES)
    assert (again.meta["categories"], again.meta["preset"]) == (NAMES, cifar10)


def test_a_checkpoints_own_names_are_used(state: dict[str, Array], tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    prefixed = {f"module.{key}": value for key, value in state.items()}
    numbers = {name: number for number, name in enumerate(NAMES)}
    save_file(prefixed, path, {"format": "pt", "class_to_idx": json.dumps(numbers)})
    assert minires.resnet50(path).meta["categories"] == NAMES
    save_file(prefixed, path, {"format": "pt", "class_to_idx": json.dumps(NAMES[:4])})
    assert minires.resnet50(path).meta["categories"][0] == "class 0"


def test_shards_that_change_are_calibrated_anew(
    state: dict[str, Array], tmp_path: Path, presets: list[Preset]
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    shard = tmp_path / "model-00001-of-00001.safetensors"
    index.write_text(json.dumps({"weight_map": {"fc.bias": shard.name}}))
    for bias in 0.0, 1.0:
        save_file({**state, "fc.bias": np.full(10, bias, np.float32)}, shard)
        model = minires.resnet50(index, "int8", preset="CIFAR10")
        np.testing.assert_allclose(model.params["fc"].bias, bias, atol=1e-3)
    assert len(presets) == 2


def test_the_command_line_takes_names_and_preset(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    options = ["--weights", str(own), "--preset", "CIFAR10", "--top", "1"]
    assert main(["classify", str(CAT), *options, "--categories", str(names)]) == 0
    assert capsys.readouterr().out.split("%")[1].strip() == "name 3"
    names.write_text("one")
    for command in ["profile", str(CAT)], ["roofline"], ["summary"], ["explain", "conv1", str(CAT)]:
        assert main([*command, "--weights", str(own), "--preset", "IMAGENET"]) == 1
        assert "there is no preset 'IMAGENET'" in capsys.readouterr().err
    assert main(["classify", str(CAT), *options, "--categories", str(names)]) == 1
    told = "minires: 1 categories are given for 10 classes\n"
    assert tuple(capsys.readouterr()) == ("", told)


# What is taken


def test_a_network_is_named_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    resnet50 = api.resnet50
    monkeypatch.setattr(api, "resnet50", lambda name: loads.append(name) or resnet50(name))
    api._loaded.cache_clear()
    answers = [minires.classify(CAT, np.int64(2), name) for name in ("CIFAR10", "CIFAR10", FILE)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0].label == "cat"
    assert len(answers[0]) == 2
    assert loads == ["CIFAR10", str(FILE)]


class Tensor:
    """As torch's: it has to be detached and fetched before NumPy may have it."""

    def __init__(self, array: Array, steps: int = 2) -> None:
        self.array = array
        self.steps = steps

    def detach(self) -> "Tensor":
        return Tensor(self.array, self.steps - 1)

    cpu = detach

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        if self.steps:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.array


class Foreign:
    """Anything else that has ``__array__``."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self.array


def test_tensors_are_taken(model: ResNet50) -> None:
    x = model.preprocess(CAT)
    image = np.asarray(Image.open(CAT))
    for tensor in Tensor(x), Foreign(x):
        assert_same(model(tensor), model(x))  # type: ignore[arg-type]
        assert_same(next(model.steps(tensor)).output, next(model.steps(x)).output)  # type: ignore[arg-type]
    for source in (
        Tensor(image.transpose(2, 0, 1)),  # as torchvision decodes it
        Tensor(image),
        Foreign(image),
        image.transpose(1, 0, 2)[::-1, ::-1].transpose(1, 0, 2)[::-1, ::-1],
    ):
        assert_same(model.preprocess(source), model.preprocess(image))
    grey = np.asarray(Image.open(CAT).convert("L"))
    assert_same(model.preprocess(Tensor(grey)), model.preprocess(grey))


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, io.BytesIO, lambda _: CAT, lambda _: str(CAT)]
)
def test_bytes_of_any_kind_are_taken(make: Callable[[bytes], Any], model: ResNet50) -> None:
    assert_same(model.preprocess(make(CAT.read_bytes())), model.preprocess(CAT))


def test_numpys_numbers_are_taken(model: ResNet50) -> None:
    side, mean = np.int32(64), np.array([0.5, 0.5, 0.5], np.float32)
    preset = Preset(side, side, mean, mean)  # type: ignore[arg-type]
    assert preset == Preset(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert type(preset.resize) is int
    assert len(minires.classify(CAT, np.uint8(3), model)) == 3
    assert resnet50_layers(np.int64(7))[-1].out_c == 7


# What is not

WRONG: list[Any] = [
    *(-1, 0, 2**70, True, 1 + 2j, math.nan, np.float32(2), "x", "", "a\0b", "\ud800", b"x"),
    *([], ["x"], (), {}, {"a": 1}, slice(3), object(), print, int, minires, lambda: 0),
    *(np.ones(3), np.ones((2, 2), "U3"), np.array([None])),
    *(Foreign(np.ones(3)), Tensor(np.ones(3), 3)),
]
LAYER = "layer1.0.conv1"


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return every public function, with arguments of which one at a time will be wrong."""
    model = minires.resnet50("CIFAR10", backend="numpy")
    int8 = minires.resnet50("CIFAR10", "int8", backend="numpy")
    x = model.preprocess(CAT)
    preset = model.meta["preset"]
    state = {key: value.astype(np.float32) for key, value in read_checkpoint(FILE).items()}
    limits = {layer.name: (0.0, 1.0) for layer in model.layers}
    calibration = quantize.Calibration(limits, {}, "minmax", 1)
    prof, roofs = minires.profile(model), minires.measure.measure_roofs
    return {
        "resnet50": (
            minires.resnet50,
            {"weights": "CIFAR10", "precision": "fp32", "backend": "numpy", "categories": NAMES,
             "preset": preset},
        ),
        "classify": (minires.classify, {"image": CAT, "top": 2, "model": model}),
        "predict": (minires.predict, {"model": model, "x": x, "top": 2}),
        "preprocess": (minires.preprocess, {"images": CAT, "preset": preset}),
        "load_image": (minires.load_image, {"source": CAT}),
        "Preset": (
            minires.Preset,
            {"resize": 32, "crop": 32, "mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0),
             "enlarge": 64},
        ),
        "get_weights": (minires.get_weights, {"name": "CIFAR10"}),
        "set_num_threads": (minires.set_num_threads, {"count": 1}),
        "profile": (minires.profile, {"model": model}),
        "ResNet50": (
            ResNet50,
            {"layers": model.layers, "params": model.params, "precision": "fp32", "meta": {}},
        ),
        "from_state_dict": (ResNet50.from_state_dict, {"state": state}),
        "call": (model.__call__, {"x": x}),
        "steps": (lambda x: next(model.steps(x)), {"x": x}),
        "model.preprocess": (model.preprocess, {"images": CAT}),
        "model[name]": (model.__getitem__, {"name": LAYER}),
        "precision": (lambda value: setattr(model, "precision", value), {"value": "fp32"}),
        "backend": (lambda value: setattr(model, "backend", value), {"value": "numpy"}),
        "hook": (model[LAYER].register_forward_hook, {"hook": print}),
        "unfuse": (unfuse, {"state": state}),
        "calibrate": (
            quantize.calibrate,
            {"model": model, "batches": [], "observer": "minmax"},
        ),
        "quantize_model": (
            quantize.quantize_model,
            {"model": model, "calibration": calibration, "rounding": "x", "correction": "off"},
        ),
        "keep": (
            lambda keep: keep_layers(model.layers, keep),
            {"keep": ["fc"]},
        ),
        "Calibration": (
            lambda ranges: quantize.quantize_model(
                model, quantize.Calibration(ranges, {}, "minmax", 1)
            ),
            {"ranges": {}},
        ),
        "qparams_of_range": (quantize.qparams_of_range, {"low": 0.0, "high": 1.0}),
        "measure_roofs": (roofs, {"precision": "fp32"}),
        "rows": (prof.rows, {"group": "step", "sort": "order", "roofs": None}),
        "table": (prof.table, {"group": "step", "sort": "order", "roofs": None}),
        "to_json": (prof.to_json, {"roofs": None}),
        "trace": (prof.export_chrome_trace, {"path": "trace.json"}),
        "plot": (prof.plot, {"path": None, "group": "stage"}),
        "save_int8": (quantize.save_int8, {"model": int8, "path": ""}),
        "load_int8": (quantize.load_int8, {"path": ""}),
        "resnet50_layers": (resnet50_layers, {"num_classes": 10}),
    }  # fmt: skip


def test_every_wrong_argument_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    """A value may be right by chance; but no error may be anything but a `MiniresError`."""
    monkeypatch.chdir(tmp_path)  # in case that a wrong path is one
    refused = 0
    for name, (function, arguments) in calls().items():
        for parameter in arguments:
            may_be_none = name == "resnet50" or parameter in ("roofs", "rounding", "model", "path")
            for value in WRONG if may_be_none else [None, *WRONG]:
                what = f"{name}({parameter}={value!r:.50})"
                error = error_of(function, {**arguments, parameter: value})
                if error is not None:
                    refused += 1
                    assert isinstance(error, MiniresError), f"{what}: {error!r}"
                    assert "\n" not in str(error), what
                    assert 10 < len(str(error)) < 500, what
    assert refused > 700


def error_of(function: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    try:
        function(**arguments)
    except Exception as error:
        return error
    return None


def test_a_network_in_the_place_of_top_is_told_before_weights_are_loaded(
    model: ResNet50, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minires.api, "_loaded", lambda _: pytest.fail("weights were loaded"))
    with pytest.raises(MiniresError, match="in the place of top; write model= before it"):
        minires.classify(CAT, model)  # type: ignore[arg-type]
    with pytest.raises(MiniresError, match="top is 0; wanted"):
        minires.classify(CAT, 0)
