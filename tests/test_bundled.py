"""The network that comes with the package: its file, and its answers to real test images."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires import download
from minires.api import FORMAT
from minires.checkpoint import read_checkpoint, read_metadata
from minires.cli import main
from minires.errors import WeightsError
from minires.evaluate import accuracy, compare
from minires.preprocess import read_preset
from minires.quantize import default
from minires.quantize.default import stored_calibration
from tests.comparing import Array
from tests.scripts import load

ROOT = Path(__file__).parents[1]
CAT = str(ROOT / "examples" / "images" / "cat.jpg")
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "cifar10_accuracy.py"))
FILE = download.weights_dir() / "resnet50_cifar10.safetensors"
PER_CLASS = 30  # test images


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in "MINIRES_CACHE", "TORCH_HOME":
        monkeypatch.setenv(variable, str(tmp_path))


def test_the_file_comes_with_the_package_and_is_the_right_one() -> None:
    assert download.locate("CIFAR10") == download.verify("CIFAR10") == FILE
    assert FILE.stat().st_size <= 50e6


def test_a_bit_that_flipped_on_the_disk_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the note of its checksum still holds, because no time of change tells."""
    monkeypatch.setattr(download, "_is_right", lambda *_: True)
    copied = tmp_path / FILE.name
    content = bytearray(FILE.read_bytes())
    content[30_000_000] ^= 64
    copied.write_bytes(content)
    for name in "manifest.toml", "cifar10_categories.txt", "imagenet_categories.txt":
        (tmp_path / name).write_bytes((FILE.parent / name).read_bytes())
    monkeypatch.setattr(download, "weights_dir", lambda: tmp_path)
    with pytest.raises(WeightsError, match=r"its checksum is wrong; .* install minires anew"):
        minires.resnet50("CIFAR10")


def test_weights_are_float16_and_all_else_is_float32() -> None:
    for name, tensor in read_checkpoint(FILE).items():
        if not name.endswith("num_batches_tracked"):
            assert tensor.dtype == (np.float16 if tensor.ndim > 1 else np.float32), name


def test_the_file_and_the_manifest_say_the_same() -> None:
    told, weights = read_metadata(FILE), download.get_weights("CIFAR10")
    assert told["format"] == FORMAT
    assert json.loads(told["categories"]) == weights.meta["categories"]
    assert read_preset(json.loads(told["preset"])) == weights.preset


def test_the_accuracy_is_the_same_wherever_it_is_told() -> None:
    accuracy = download.get_weights("CIFAR10").meta["accuracy"]["acc@1"]
    texts = [ROOT / "weights" / "README.md", ROOT / "README.md", ROOT / "docs" / "using.md"]
    card, *others = (path.read_text(encoding="utf-8") for path in texts)
    assert f"| fp32 | {accuracy:.2f}% |" in card
    (int8,) = re.findall(r"\| int8 \| ([\d.]+)% \|", card)
    for text in others:
        assert f"{accuracy:.1f}% of CIFAR-10's test images in FP32" in text
        assert f"{float(int8):.1f}% in INT8" in text
    log = (ROOT / "weights" / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["test_average"] == pytest.approx(accuracy, abs=0.05)  # by rounding


def test_int8_needs_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "calibrate", lambda *_: pytest.fail("calibrated"))
    stored = stored_calibration(minires.resnet50("CIFAR10"))
    assert stored is not None
    model = minires.resnet50("CIFAR10", "int8")
    observed = {"observer": "mse", "images": 512}
    assert model.meta["calibration"] == observed | {"rounding": "nearest", "correction": "off"}
    assert model["conv1"].qparams == minires.quantize.qparams_of_range(*stored.ranges["conv1"])


def test_recipes_are_compared_on_images_that_did_not_calibrate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    recipes = load("benchmarks/cifar10_recipes.py")
    every, images = 50_000 // 512, range(50_000)  # as weights/train_cifar10.py chooses them
    assert images[::every][:512] == recipes.FOR_CALIBRATION
    assert set(recipes.ANSWERED) <= set(images) - set(recipes.FOR_CALIBRATION)
    card = (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    assert f"On {len(recipes.ANSWERED)}\ntraining images that calibrated nothing" in card


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-simulated"])
def test_a_cat_is_called_a_cat(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["classify", CAT, "--weights", "CIFAR10", "--precision", precision, "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["model"] == {"name": "CIFAR10", "precision": precision, "backend": "numba"}
    assert answer["images"][0]["predictions"][0]["label"] == "cat"
    assert err == ""


@pytest.fixture(scope="module")
def answers(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """The right labels of some test images, and the logits by precision."""
    archive = test_data / "cifar10" / "cifar10.tar.xz"
    categories = download.get_weights("CIFAR10").meta["categories"]
    images, labels = BENCHMARK["read_test_images"](archive, categories, PER_CLASS)
    assert np.bincount(labels).tolist() == [PER_CLASS] * 10
    logits: dict[str, Any] = {"labels": labels}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIRES_CACHE", str(tmp_path_factory.mktemp("cache")))
        for precision in "fp32", "int8":
            model = minires.resnet50("CIFAR10", precision)
            logits[precision] = BENCHMARK["logits_of"](model, images)
    return logits


def test_fp32_is_right_on_test_images(answers: dict[str, Array]) -> None:
    """87% of all 10,000 is the least that was aimed at; of 300, chance moves it by 2 points."""
    assert accuracy(answers["fp32"], answers["labels"]).top1 >= 0.85


def test_int8_is_as_right_as_fp32(answers: dict[str, Array]) -> None:
    """Of all 10,000 it may lose half a point; here an image counts for a third of one."""
    comparison = compare(answers["int8"], answers["fp32"], answers["labels"])
    print(comparison)
    assert abs(comparison.difference) <= 0.015
    assert comparison.agreement >= 0.97
