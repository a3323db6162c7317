import copy
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from minires.api import resnet50
from minires.download import imagenet_categories
from minires.errors import MiniresError, WeightsError
from minires.layers import Int8Params
from minires.model import ResNet50
from minires.preprocess import IMAGENET_V1, IMAGENET_V2
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from minires.quantize.int8_file import UNSEALED, int8_size, load_int8, save_int8, seal
from minires.reference import QParams
from tests.comparing import assert_same
from tests.seeded_weights import seeded_input, seeded_state_dict

META = {"name": "seeded", "preset": IMAGENET_V2, "categories": [f"class {i}" for i in range(1000)]}


@pytest.fixture(scope="module")
def model() -> ResNet50:
    fp32 = ResNet50.from_state_dict(seeded_state_dict(), META)
    return quantize_model(fp32, calibrate(fp32, [seeded_input((1, 3, 32, 32))], "percentile"))


@pytest.fixture(scope="module")
def saved(model: ResNet50, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.safetensors"
    save_int8(model, path)
    return path


def test_the_file_has_26_megabytes(saved: Path) -> None:
    """25.5 million weights of a byte each, 27,560 channels with a scale and a bias, the names."""
    assert 25.5e6 < saved.stat().st_size < 26.5e6
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_it_comes_back_bit_for_bit(model: ResNet50, saved: Path) -> None:
    loaded = load_int8(saved)
    assert loaded.precision == "int8"
    assert loaded.params.keys() == model.params.keys()
    for name, p in model.params.items():
        if isinstance(p, Int8Params):
            for field in ("x_qparams", "residual_qparams"):
                assert getattr(loaded.params[name], field) == getattr(p, field)
            for field in ("w_s8", "w_scale", "bias_s32"):
                assert_same(getattr(loaded.params[name], field), getattr(p, field))
        else:
            assert loaded.params[name] == p
    for one, other in zip(loaded.layers, model.layers, strict=True):
        assert vars(one) == vars(other)
        assert one.qparams is None or isinstance(one.qparams.scale, np.float32)
    x = seeded_input((2, 3, 32, 32), 5)
    assert_same(loaded(x), model(x))


def test_meta_comes_back(model: ResNet50, saved: Path) -> None:
    """The preset with its tuples: it is compared with the ones there are, and hashed."""
    assert load_int8(saved).meta == model.meta


def test_saving_what_was_loaded_writes_the_same_file(saved: Path, tmp_path: Path) -> None:
    save_int8(load_int8(saved), tmp_path / "again.safetensors")
    again = tmp_path / "again.safetensors"
    with safe_open(saved, "numpy") as one, safe_open(again, "numpy") as other:
        told = [file.metadata() for file in (one, other)]
        for metadata in told:
            del metadata["checksum"]  # safetensors puts the others in any order
        assert told[0] == told[1]
        assert list(one.keys()) == list(other.keys())
    assert saved.stat().st_size == again.stat().st_size


def test_it_loads_in_well_under_a_second(saved: Path) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        load_int8(saved)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def resident(model: ResNet50) -> int:
    """Count the KiB of a network's mapped weights that are in this process's memory."""
    address = model.params["conv1"].w_s8.ctypes.data
    text = Path("/proc/self/smaps").read_text("ascii")
    for mapped in re.split(r"^(?=[0-9a-f]+-)", text, flags=re.M)[1:]:
        start, end = (int(word, 16) for word in mapped.split(maxsplit=1)[0].split("-"))
        if start <= address < end and (rss := re.search(r"^Rss: +(\d+)", mapped, re.M)):
            return int(rss[1])
    raise AssertionError("it is not mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is in memory")
def test_weights_that_the_engine_has_laid_out_are_not_in_memory_twice(saved: Path) -> None:
    loaded = load_int8(saved)
    assert resident(loaded) < 10_000  # the small tensors; Linux reads ahead
    loaded(seeded_input((1, 3, 32, 32)))
    assert resident(loaded) > 20_000  # NumPy reads weights where they lie
    loaded.backend = "numba"
    loaded(seeded_input((1, 3, 32, 32)))
    assert resident(loaded) < 10_000


def shorten(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


@pytest.mark.skipif(sys.platform == "win32", reason="there an open file cannot be removed")
@pytest.mark.parametrize("harm", [Path.unlink, shorten, overwrite])
def test_what_was_loaded_outlives_its_file(
    model: ResNet50, saved: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Were the file itself mapped, shortening it would end this process."""
    path = Path(shutil.copy(saved, tmp_path))
    loaded = load_int8(path)
    harm(path)
    for other in (loaded, copy.deepcopy(loaded)):
        for name in "conv1", "fc":
            assert_same(other.params[name].w_s8, model.params[name].w_s8)


def test_without_room_for_a_copy_the_weights_are_in_memory(
    model: ResNet50, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full_disk)
    assert_same(load_int8(saved).params["fc"].w_s8, model.params["fc"].w_s8)


def test_every_flipped_bit_is_noticed(saved: Path, tmp_path: Path) -> None:
    """In the header, in scales, in weights; each of another tensor or character."""
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = np.random.RandomState(0)
    places = [0, 1, 9, *draw.randint(8, header, 20), *draw.randint(header, len(whole), 8)]
    path = tmp_path / "flipped.safetensors"
    for place in [*places, len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randint(8)
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"flipped\.safetensors: "):
            load_int8(path)


# Files that are not one


def tampered(
    saved: Path, path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]
) -> Path:
    """Write the saved file again with its tensors or its metadata changed."""
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    change(tensors, metadata)
    path.write_bytes(seal(save(tensors, {**metadata, "checksum": UNSEALED})))
    return path


@pytest.mark.parametrize("share", [0, 1e-7, 3e-7, 1e-4, 0.01, 0.5, 0.999, 1 - 1e-7])
def test_a_truncated_file_is_an_error(saved: Path, tmp_path: Path, share: float) -> None:
    """Within the length, the header, the first and the last tensor."""
    whole = saved.read_bytes()
    path = tmp_path / "short.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match=r"short\.safetensors"):
        load_int8(path)


@pytest.mark.parametrize("content", [b"a text, not tensors", b"\x00" * 4096, b"\xff" * 4096])
def test_another_kind_of_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.bin: "):
        load_int8(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match=path.name):
            load_int8(path)
    with pytest.raises(WeightsError, match=r"a folder; give the file in it that has the weights$"):
        load_int8(tmp_path)


def test_float_weights_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fp32.safetensors"
    save_file({"fc.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"fp32\.safetensors.*wanted minires-int8"):
        load_int8(path)


@pytest.mark.parametrize(
    ("key", "value"), [("version", "1"), ("version", "a" * 10**6), ("format", "x")]
)
def test_another_format_or_version_is_an_error(
    saved: Path, tmp_path: Path, key: str, value: str
) -> None:
    path = tampered(saved, tmp_path / "v", lambda _, metadata: metadata.update({key: value}))
    with pytest.raises(WeightsError, match=r"wanted minires-int8 version 2.*minires quantize"):
        load_int8(path)


def drop_layer(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """A network without layer3's last block, as ResNet-34 might look."""
    for key in [key for key in tensors if key.startswith("layer3.5.")]:
        del tensors[key]


def widen_layer(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """A Wide ResNet-50: more channels in conv2."""
    tensors["layer1.0.conv2.w_s8"] = np.zeros((128, 1152), np.int8)


def other_dtype(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["conv1.w_s8"] = tensors["conv1.w_s8"].astype(np.int16)


def short_bias(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["conv1.bias_s32"] = tensors["conv1.bias_s32"][:-1]


def scalar_classes(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["fc.bias_s32"] = np.array(5, np.int32)


def no_classifier(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    del tensors["fc.bias_s32"]


def no_qparams(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    del metadata["qparams"]


def one_edge_less(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    qparams = json.loads(metadata["qparams"])
    del qparams["layer2.0.conv1"]
    metadata["qparams"] = json.dumps(qparams)


def last_edge_less(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    qparams = json.loads(metadata["qparams"])
    del qparams["avgpool"]
    metadata["qparams"] = json.dumps(qparams)


def qparams_as_list(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = "[1, 2]"


def odd_tensor(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["layer5.w_s8"] = np.zeros((1, 1), np.int8)


def nan_scale(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["conv1.w_scale"][3] = np.nan


def zero_scale(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = json.dumps(json.loads(metadata["qparams"]) | {"conv1": [0.0, 0]})


def far_zero_point(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = json.dumps(json.loads(metadata["qparams"]) | {"conv1": [0.1, 999]})


def infinite_zero_point(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = metadata["qparams"].replace(", 0]", ", Infinity]", 1)


def broken_zero_point(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = json.dumps(json.loads(metadata["qparams"]) | {"conv1": [0.1, 3.7]})


def odd_maxpool(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = json.dumps(json.loads(metadata["qparams"]) | {"maxpool": [0.1, 0]})


def odd_edge(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = json.dumps(json.loads(metadata["qparams"]) | {"fc": [0.1, 0]})


def few_categories(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["meta"] = json.dumps(json.loads(metadata["meta"]) | {"categories": ["cat", "dog"]})


def broken_json(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["meta"] = "{"


def nested_json(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["meta"] = '{"a":' * 10**5


def nested_qparams(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = "[" * 900 + "]" * 900


def no_meta(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    del metadata["meta"]


def huge_scale(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["qparams"] = json.dumps(json.loads(metadata["qparams"]) | {"conv1": [1e300, 0]})


def large_preset(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    meta = json.loads(metadata["meta"])
    metadata["meta"] = json.dumps({**meta, "preset": {**meta["preset"], "enlarge": 20_000}})


def no_classes(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    for field in "w_s8", "w_scale", "bias_s32":
        tensors[f"fc.{field}"] = tensors[f"fc.{field}"][:0]


def long_name(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    tensors["a" * 10**6] = np.zeros(1, np.int8)


CHANGES = [
    drop_layer, widen_layer, other_dtype, short_bias, scalar_classes, no_classifier, no_qparams,
    one_edge_less, last_edge_less, qparams_as_list, broken_json, nested_json, nested_qparams,
    no_meta, odd_tensor, nan_scale, zero_scale, huge_scale, far_zero_point, infinite_zero_point,
    broken_zero_point, odd_maxpool, odd_edge, few_categories, large_preset, no_classes, long_name,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_architecture_or_broken_metadata_is_an_error(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]
) -> None:
    """Although the checksum is right."""
    path = tampered(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(WeightsError, match=r"changed\.safetensors") as caught:
        load_int8(path)
    assert "checksum" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_a_file_longer_than_its_tensors_is_not_copied(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(saved, tmp_path))
    os.truncate(path, 2**29)  # it takes no room
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: pytest.fail("copied"))
    with pytest.raises(WeightsError, match="its size is not"):
        load_int8(path)


def test_what_a_file_does_not_say_is_assumed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say_nothing(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["meta"] = "{}"

    path = tampered(saved, tmp_path / "silent.safetensors", say_nothing)
    assert load_int8(path).meta == {}
    meta = resnet50(path, "int8").meta
    assert (meta["name"], meta["preset"]) == ("silent.safetensors", IMAGENET_V1)
    assert meta["categories"] == imagenet_categories()


# Saving


def test_saving_replaces_a_file(model: ResNet50, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"what was there before")
    save_int8(model, path)
    assert_same(load_int8(path).params["fc"].w_s8, model.params["fc"].w_s8)
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_loaded_is_not_saved(model: ResNet50, tmp_path: Path) -> None:
    for meta in (
        {"categories": ["one"]},
        {"name": "a" * 300},
        {"preset": replace(IMAGENET_V2, crop=1)},
    ):
        other = ResNet50(model.layers, model.params, "int8", {**model.meta, **meta})
        with pytest.raises(MiniresError):
            save_int8(other, tmp_path / "model.safetensors")
    wide = [replace(layer, qparams=QParams(np.float32(1000), 0)) for layer in model.layers]
    with pytest.raises(MiniresError, match="at most 513"):
        save_int8(ResNet50(wide, model.params, "int8"), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_size_is_told_before(saved: Path, model: ResNet50) -> None:
    assert saved.stat().st_size <= int8_size(model.layers) <= saved.stat().st_size + 2**16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_an_int8_network_is_saved_as_one(
    model: ResNet50, tmp_path: Path, precision: str
) -> None:
    other = ResNet50(model.layers, {}, precision)
    with pytest.raises(MiniresError, match=precision):
        save_int8(other, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
