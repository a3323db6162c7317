import copy
import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minires.errors import MiniresError, WeightsError
from minires.layers import Int8Params
from minires.model import ResNet50
from minires.preprocess import IMAGENET_V2
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from minires.quantize.int8_file import load_int8, save_int8
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
            assert (loaded.params[name].x, loaded.params[name].residual) == (p.x, p.residual)
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
        assert one.metadata() == other.metadata()
        assert list(one.keys()) == list(other.keys())
    assert saved.stat().st_size == again.stat().st_size


def test_it_loads_in_well_under_a_second(saved: Path) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        load_int8(saved)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def resident(path: Path) -> int:
    """Count the KiB of a mapped file that are in this process's memory."""
    maps = re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text("ascii"), flags=re.M)
    found = [re.search(r"^Rss: +(\d+)", m, re.M) for m in maps if str(path) in m]
    assert found
    return sum(int(rss[1]) for rss in found if rss)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is in memory")
def test_weights_that_the_engine_has_laid_out_are_not_in_memory_twice(saved: Path) -> None:
    loaded = load_int8(saved)
    assert resident(saved) < 10_000  # the header and the small tensors; Linux reads ahead
    loaded(seeded_input((1, 3, 32, 32)))
    assert resident(saved) > 20_000  # NumPy reads weights where they lie
    loaded.backend = "numba"
    loaded(seeded_input((1, 3, 32, 32)))
    assert resident(saved) < 10_000


@pytest.mark.skipif(sys.platform == "win32", reason="there an open file cannot be removed")
def test_what_was_loaded_outlives_its_file(model: ResNet50, saved: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(saved, tmp_path))
    loaded = load_int8(path)
    path.unlink()
    for other in (loaded, copy.deepcopy(loaded)):
        assert_same(other.params["fc"].w_s8, model.params["fc"].w_s8)


# Files that are not one


def tampered(
    saved: Path, path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]
) -> Path:
    """Write the saved file again with its tensors or its metadata changed."""
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(saved)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
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
    with pytest.raises(WeightsError, match=r"other\.bin: not a readable \.safetensors file"):
        load_int8(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match=path.name):
            load_int8(path)


def test_float_weights_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fp32.safetensors"
    save_file({"fc.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"fp32\.safetensors.*wanted minires-int8"):
        load_int8(path)


@pytest.mark.parametrize(("key", "value"), [("version", "2"), ("version", ""), ("format", "x")])
def test_another_format_or_version_is_an_error(
    saved: Path, tmp_path: Path, key: str, value: str
) -> None:
    path = tampered(saved, tmp_path / "v", lambda _, metadata: metadata.update({key: value}))
    with pytest.raises(WeightsError, match=r"wanted minires-int8 version 1.*minires quantize"):
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


@pytest.mark.parametrize(
    "change",
    [drop_layer, widen_layer, other_dtype, short_bias, scalar_classes, no_classifier, no_qparams,
     one_edge_less, last_edge_less, qparams_as_list, broken_json,
     odd_tensor, nan_scale, zero_scale, far_zero_point,
     infinite_zero_point, broken_zero_point, odd_maxpool, odd_edge, few_categories],
)  # fmt: skip
def test_another_architecture_or_broken_metadata_is_an_error(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]
) -> None:
    path = tampered(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(WeightsError, match=r"changed\.safetensors"):
        load_int8(path)


# Saving


def test_saving_replaces_a_file(model: ResNet50, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"what was there before")
    save_int8(model, path)
    assert_same(load_int8(path).params["fc"].w_s8, model.params["fc"].w_s8)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, b"what was there before"])
def test_saving_that_fails_leaves_nothing_half_written(
    model: ResNet50, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    path = tmp_path / "model.safetensors"
    if before is not None:
        path.write_bytes(before)

    def full_disk(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_int8(model, path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_others_may_read_the_file_if_the_user_lets_them(model: ResNet50, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    save_int8(model, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_network_in_fp32_is_not_saved_as_int8(model: ResNet50, tmp_path: Path) -> None:
    fp32 = ResNet50(model.layers, {}, "fp32")
    with pytest.raises(MiniresError, match="fp32"):
        save_int8(fp32, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
