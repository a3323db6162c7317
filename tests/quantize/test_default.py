import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from minires.api import FORMAT, _guess_meta, resnet50
from minires.download import weights_dir
from minires.errors import WeightsError
from minires.images import load_image
from minires.metadata import MOST_ACTIVATION
from minires.model import ResNet50, resnet50_layers
from minires.preprocess import IMAGENET_V2, Preset, preprocess
from minires.quantize import default
from minires.quantize.calibrate import STORED_CALIBRATION, Calibration, calibrate
from minires.quantize.convert import quantize_model
from minires.quantize.default import (
    calibration_photographs,
    default_batches,
    default_int8,
    stored_calibration,
)
from minires.quantize.int8_file import UNSEALED, load_int8, seal
from tests.comparing import Array, assert_same
from tests.making_files import save_photograph
from tests.seeded_weights import seeded_input, seeded_state_dict

SMALL = Preset(32, 32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
X = seeded_input((2, 3, 32, 32), 9)
KEY = "some weights"
QUICK = ("mse", "nearest", "off")


@pytest.fixture(scope="module", autouse=True)
def without_gptq() -> Iterator[None]:
    """Round as fast as can be: on a whole network GPTQ takes ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "RECIPE", QUICK)
        yield


# Photographs


def credits() -> dict[str, list[str]]:
    """Read the table of credits: a file's title, author, licence and source."""
    text = (weights_dir() / "calibration" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}


def test_every_photograph_has_its_credits_and_there_is_no_other_file() -> None:
    folder = weights_dir() / "calibration"
    photographs = [path.name for path in calibration_photographs()]
    assert sorted(credits()) == photographs
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", *photographs]
    for name, cells in credits().items():
        assert len(cells) == 4, name
        assert all(cells), name
        assert re.search(r"Public domain|CC0|CC BY 2\.0\]\(https://", cells[2]), name
        assert "](https://" in cells[3], name


def test_the_photographs_come_in_a_fixed_order_and_are_as_the_credits_say() -> None:
    paths = calibration_photographs()
    assert [path.name for path in paths] == sorted(path.name for path in paths)
    assert len(paths) == 8
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", 384)


# Crops


@pytest.fixture
def two_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Calibrate on these instead of the package's; the second one is upright."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        save_photograph(path, seed)
    Image.open(paths[1]).transpose(Image.Transpose.ROTATE_90).save(paths[1])
    monkeypatch.setattr(default, "calibration_photographs", lambda: paths)
    return paths


def test_each_photograph_gives_four_crops_of_the_size_the_network_wants(
    two_photographs: list[Path],
) -> None:
    for preset in SMALL, IMAGENET_V2:
        batches = list(default_batches(preset))
        sides = (preset.crop, preset.crop)
        assert [x.shape for x in batches] == [(4, 3, *sides)] * 2
        for path, x in zip(two_photographs, batches, strict=True):
            assert_same(x[:1], preprocess(path, preset))  # the whole photograph comes first


def test_the_other_crops_are_two_ends_and_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thirds of the shorter side; a pixel's red and green say where it was."""
    width, height, side = 90, 60, 40
    where = np.zeros((height, width, 3), np.uint8)
    where[..., 0], where[..., 1] = np.arange(width), np.arange(height)[:, np.newaxis]
    Image.fromarray(where).save(tmp_path / "where.png")
    monkeypatch.setattr(default, "calibration_photographs", lambda: [tmp_path / "where.png"])
    plain = Preset(side, side, mean=(0, 0, 0), std=(1, 1, 1))  # crops stay as they are
    (crops,) = default_batches(plain)
    pixels = np.rint(255 * crops[1:]).astype(np.uint8).transpose(0, 2, 3, 1)
    for crop, (x, y) in zip(pixels, [(0, 0), (50, 20), (25, 10)], strict=True):
        assert_same(crop, where[y : y + side, x : x + side])


def test_the_packages_photographs_are_seen_one_after_the_other() -> None:
    """And no crop twice: it would count for nothing."""
    batches = list(default_batches(SMALL))
    assert len(batches) == len(calibration_photographs())
    for path, x in zip(calibration_photographs(), batches, strict=True):
        assert_same(x[:1], preprocess(load_image(path), SMALL))
    crops = np.concatenate(batches)
    assert np.isfinite(crops).all()
    assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == len(crops) == 32


# The cache


class Asked(Exception):  # noqa: N818 (no error: load_fp32 raises it to say that it was called)
    """The network in fp32 is wanted."""


def ask() -> ResNet50:
    raise Asked


@pytest.fixture(scope="module")
def fp32() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict(), {"name": "seeded", "preset": SMALL})


def one_crop(preset: Preset) -> Iterator[Array]:
    yield seeded_input((1, 3, preset.crop, preset.crop))


@pytest.fixture(scope="module")
def expected(fp32: ResNet50) -> Array:
    """What the recipe's network makes of X, by its parts."""
    return quantize_model(fp32, calibrate(fp32, one_crop(SMALL), QUICK[0]))(X)


@pytest.fixture(scope="module")
def filled(
    fp32: ResNet50, expected: Array, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Fill a cache, in a folder that is made for it; calibration sees a single crop."""
    folder = tmp_path_factory.mktemp("cache") / "not" / "there yet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIRES_CACHE", str(folder))
        patch.setattr(default, "default_batches", one_crop)
        assert_same(default_int8(lambda: fp32, KEY)(X), expected)
        yield folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache, for one test."""
    folder = tmp_path / "cache"
    shutil.copytree(filled, folder)
    monkeypatch.setenv("MINIRES_CACHE", str(folder))
    return folder


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_network_is_cached_as_one_int8_file(filled: Path, expected: Array) -> None:
    path = only_file(filled)
    assert re.fullmatch(r"resnet50-int8-[0-9a-f]{16}\.safetensors", path.name)
    assert_same(load_int8(path)(X), expected)


def test_a_cached_network_is_loaded_without_the_one_in_fp32(
    cache: Path, fp32: ResNet50, expected: Array
) -> None:
    before = only_file(cache).stat().st_ino  # a file made again is another one
    model = default_int8(ask, KEY)
    assert (model.precision, model.meta["name"]) == ("int8", fp32.meta["name"])
    assert model.meta["preset"] == SMALL
    assert_same(model(X), expected)
    assert only_file(cache).stat().st_ino == before


def test_other_weights_are_not_answered_from_the_cache(cache: Path) -> None:
    for key in "other weights", "", f"{KEY} ":
        with pytest.raises(Asked):
            default_int8(ask, key)


def test_another_recipe_is_not_answered_from_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default, "RECIPE", ("mse", "nearest", "on"))
    with pytest.raises(Asked):
        default_int8(ask, KEY)


def test_the_recipe_is_done_in_full(fp32: ResNet50, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts reach those that do them, and moments are taken for the rounding."""
    told: list[object] = []

    def note(model: ResNet50, calibration: Calibration, *how: object) -> ResNet50:
        told.extend([calibration.observer, *how[:2], set(calibration.moments)])
        return quantize_model(model, calibration, "nearest")

    monkeypatch.setattr(default, "RECIPE", ("minmax", "gptq", "shrunk"))
    monkeypatch.setattr(default, "quantize_model", note)
    monkeypatch.setattr(default, "default_batches", one_crop)
    monkeypatch.setenv("MINIRES_CACHE", os.devnull)
    with pytest.warns(UserWarning, match="not cached"):
        default_int8(lambda: fp32, KEY)
    with_weights = {layer.name for layer in fp32.layers if layer.op in ("conv", "linear")}
    assert told == ["minmax", "gptq", "shrunk", with_weights]


def test_networks_of_several_weights_lie_side_by_side(
    cache: Path, fp32: ResNet50, expected: Array
) -> None:
    other = ResNet50.from_state_dict(seeded_state_dict(1, 10), fp32.meta)
    assert default_int8(lambda: other, "other weights")(X).shape == (2, 10)
    assert len(list(cache.iterdir())) == 2
    assert default_int8(ask, "other weights")(X).shape == (2, 10)
    assert_same(default_int8(ask, KEY)(X), expected)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def write_float_weights(path: Path) -> None:
    save_file({"fc.bias": np.zeros(1000, np.float32)}, path)


def nest(path: Path) -> None:
    """JSON that ends Python's parser, under a checksum that is right."""
    with safe_open(path, "numpy") as file:
        metadata = {**file.metadata(), "meta": "[" * 10**5, "checksum": UNSEALED}
    path.write_bytes(seal(save(load_file(path), metadata)))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [truncate, nest, flip, write_float_weights, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_file_in_the_cache_is_made_again(
    cache: Path, fp32: ResNet50, expected: Array, damage: Callable[[Path], object]
) -> None:
    damage(only_file(cache))
    with pytest.raises(Asked):
        default_int8(ask, KEY)
    assert_same(default_int8(lambda: fp32, KEY)(X), expected)
    assert_same(default_int8(ask, KEY)(X), expected)
    only_file(cache)


def test_a_few_networks_are_kept_and_those_last_used(
    cache: Path, fp32: ResNet50, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default, "MOST_CACHED", 2)
    first = only_file(cache)
    default_int8(lambda: fp32, "second")
    os.utime(first, (1, 1))
    [second] = set(cache.iterdir()) - {first}
    os.utime(second, (2, 2))
    default_int8(ask, KEY)  # which makes it the younger one
    default_int8(lambda: fp32, "third")
    assert first.exists()
    assert not second.exists()
    assert len(list(cache.iterdir())) == 2


def test_a_copy_or_a_chmod_of_ones_own_weights_is_not_calibrated_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another content is, even where one byte is other and no time of change tells."""
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    keys: list[str] = []

    def note_key(load_fp32: Callable[[], ResNet50], key: str, progress: bool) -> ResNet50:
        keys.append(key)
        return ResNet50(resnet50_layers(), {}, "int8")

    monkeypatch.setattr("minires.api.default_int8", note_key)
    own = tmp_path / "own.safetensors"
    save_file({"fc.bias": np.zeros(3, np.float32)}, own)
    copied = Path(shutil.copy(own, tmp_path / "copy.safetensors"))
    changed = Path(shutil.copy(own, tmp_path / "changed.safetensors"))
    flip(changed)
    os.utime(changed, ns=(own.stat().st_atime_ns, own.stat().st_mtime_ns))
    for path in own, own, copied, changed:
        resnet50(path, "int8")
        path.chmod(0o600)
    resnet50(own, "int8")
    assert keys[:3] == [keys[0]] * 3 == [keys[4]] * 3
    assert keys[3] != keys[0]


@pytest.mark.parametrize("name", ["a" * 240, "katze \n\x1b[2J"])
def test_weights_of_any_name_are_cached(name: str, fp32: ResNet50, cache: Path) -> None:
    meta = _guess_meta(Path(name), 1000)
    named = ResNet50(fp32.layers, fp32.params, meta={**meta, "preset": SMALL})
    default_int8(lambda: named, "named")
    assert default_int8(ask, "named").meta["name"] == meta["name"]


# A calibration that comes with the weights

BY_RANGES = {"observer": "minmax", "images": len(X), "rounding": "nearest", "correction": "off"}


@pytest.fixture(scope="module")
def calibration(fp32: ResNet50) -> dict[str, Any]:
    """One that no photograph gives; as JSON has it, without tuples."""
    fields = calibrate(fp32, [3 * X], "minmax").stored()
    return dict(json.loads(json.dumps(fields)))


def with_calibration(fp32: ResNet50, text: str) -> ResNet50:
    return ResNet50(fp32.layers, fp32.params, meta={**fp32.meta, STORED_CALIBRATION: text})


def test_the_weights_own_calibration_is_used(
    fp32: ResNet50,
    calibration: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    monkeypatch.setattr(default, "calibrate", lambda *_: pytest.fail("calibrated"))
    assert stored_calibration(fp32) is None
    equipped = with_calibration(fp32, json.dumps(calibration))
    int8 = default_int8(lambda: equipped, KEY)
    assert int8.meta["calibration"] == BY_RANGES
    assert_same(int8(X), quantize_model(fp32, calibrate(fp32, [3 * X], "minmax"))(X))
    assert_same(default_int8(ask, KEY)(X), int8(X))
    assert capsys.readouterr().err == ""  # no bar for what is not done


def test_the_calibration_is_found_in_the_files_metadata(
    calibration: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    own, preset = tmp_path / "own.safetensors", replace(SMALL, enlarge=64)
    names = [f"name {i}" for i in range(1000)]
    told = {"categories": names, "preset": asdict(preset), "calibration": calibration}
    metadata = {key: json.dumps(value) for key, value in told.items()}
    save_file(seeded_state_dict(), own, metadata={"format": FORMAT, **metadata})
    model = resnet50(own, "int8")
    assert model.meta["calibration"] == BY_RANGES
    assert (model.meta["categories"], model.meta["preset"]) == (names, preset)
    # Of another program's file only the names are taken.
    save_file(seeded_state_dict(), own, metadata=metadata)
    assert resnet50(own).meta["categories"] == names
    assert resnet50(own).meta["preset"] != preset
    for key, text in [("categories", '["one"]'), ("preset", "{}"), ("preset", "{")]:
        save_file(seeded_state_dict(), own, metadata={"format": FORMAT, **metadata, key: text})
        with pytest.raises(
            WeightsError,
            match=r"own\.safetensors: (it names 1|a preset is|its metadata is no JSON)",
        ):
            resnet50(own)


SPOILED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field is missing": lambda fields: fields.pop("saturated"),
    "a field is unknown": lambda fields: fields.update(more=1),
    "a layer is missing": lambda fields: fields["ranges"].pop("conv1"),
    "a layer is unknown": lambda fields: fields["ranges"].update(fc=[0, 1]),
    "no ranges": lambda fields: fields.update(ranges=None),
    "ranges in a list": lambda fields: fields.update(ranges=list(fields["ranges"])),
    "one limit": lambda fields: fields["ranges"].update(conv1=[1]),
    "the wrong way round": lambda fields: fields["ranges"].update(conv1=[1, 0]),
    "not finite": lambda fields: fields["ranges"].update(conv1=[0, float("nan")]),
    "not a number": lambda fields: fields["ranges"].update(conv1=["0", "1"]),
    "too large for an activation": lambda fields: fields["ranges"].update(conv1=[0, 65505]),
    "too large for float32": lambda fields: fields["ranges"].update(conv1=[0, 1e300]),
    "too large for any float": lambda fields: fields["ranges"].update(conv1=[0, 10**4000]),
    "shares of the wrong type": lambda fields: fields["saturated"].update(conv1="0"),
    "shares above 1": lambda fields: fields["saturated"].update(conv1=2),
    "no observer": lambda fields: fields.update(observer=None),
    "an observer without end": lambda fields: fields.update(observer="a" * 10**6),
    "half an image": lambda fields: fields.update(images=0.5),
}


@pytest.mark.parametrize("kind", ["no JSON", "no fields", "nested", *SPOILED])
def test_a_spoiled_calibration_is_told(
    kind: str, fp32: ResNet50, calibration: dict[str, Any]
) -> None:
    texts = {"no JSON": "{", "no fields": "[1]", "nested": "[" * 10**5}
    if kind in SPOILED:
        fields = json.loads(json.dumps(calibration))
        SPOILED[kind](fields)
        texts[kind] = json.dumps(fields)
    with pytest.raises(
        WeightsError, match=r"^seeded: the calibration .*--calibrate FOLDER$"
    ) as caught:
        stored_calibration(with_calibration(fp32, texts[kind]))
    assert len(str(caught.value)) < 500


def test_any_range_that_is_taken_makes_a_network(
    fp32: ResNet50, calibration: dict[str, Any]
) -> None:
    for limit in MOST_ACTIVATION, 1e-44, 0:
        ranges = {name: [-limit, limit] for name in calibration["ranges"]}
        stored = stored_calibration(
            with_calibration(fp32, json.dumps({**calibration, "ranges": ranges}))
        )
        assert stored
        with np.errstate(all="ignore"):
            int8 = quantize_model(fp32, stored)
        assert all(0 < layer.qparams.scale < np.inf for layer in int8.layers if layer.qparams)


# A cache that cannot be written


def test_without_a_cache_there_is_a_warning_and_still_an_answer(
    filled: Path, fp32: ResNet50, expected: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a file no folder can be made, not even by root."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="not cached.*Not a directory"):
        model = default_int8(lambda: fp32, KEY)
    assert model.precision == "int8"
    assert_same(model(X), expected)


@pytest.fixture
def one_megabyte() -> Iterator[None]:
    """Let no file grow beyond that: what a full disk does, to whichever library writes."""
    resource = pytest.importorskip("resource")  # Unix has it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_in_the_cache_there_is_a_warning_and_still_an_answer(
    cache: Path, fp32: ResNet50, expected: Array, one_megabyte: None
) -> None:
    only_file(cache).unlink()
    with pytest.warns(UserWarning, match="not cached.*File too large"):
        model = default_int8(lambda: fp32, KEY)
    assert_same(model(X), expected)
    assert list(cache.iterdir()) == []


# The bar


@pytest.mark.parametrize("progress", [True, False])
def test_one_line_is_shown_where_stderr_is_no_terminal(
    cache: Path, fp32: ResNet50, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    only_file(cache).unlink()
    default_int8(lambda: fp32, KEY, progress)
    line = "minires: calibrating for INT8, once ...\n" if progress else ""
    assert tuple(capsys.readouterr()) == ("", line)
