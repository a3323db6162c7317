"""Mutated files of weights: both of PyTorch's formats, safetensors, INT8 files, and metadata."""

import functools
import io
import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

import minires
from minires.layers import Int8Params
from minires.metadata import read_calibration, read_json, read_meta
from minires.model import ResNet50, resnet50_layers
from minires.preprocess import IMAGENET_V2, check_input, preprocess
from minires.quantize import qparams_of_range, save_int8
from minires.quantize.calibrate import quantized_edges
from minires.quantize.int8_file import UNSEALED, load_int8, seal
from minires.reference import QParams
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Target
from tests.test_checkpoint import Storages, tensors, write_legacy, write_zip

ARRAYS = {
    "conv1.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    "bn1.bias": np.ones(2, np.float16),
    "bn1.num_batches_tracked": np.array(7),
    "fc.bias": np.zeros(3, np.float32),
}
TOLD: dict[str, Any] = {
    "name": "fuzzed",
    "categories": ["cat", "dog"],
    "preset": {**asdict(IMAGENET_V2), "enlarge": 256},
    "calibration": {"observer": "mse", "images": 8},
}


@functools.cache
def base(kind: str, scratch: Path) -> bytes:
    """Make the file that mutants are made of."""
    path = scratch / "base"
    if kind == "int8":
        save_int8(int8_network(), path)
    elif kind == "safetensors":
        path.write_bytes(save(ARRAYS, {"format": "minires-float", "preset": "{}"}))
    else:
        write = write_zip if kind == "zip" else write_legacy
        write(path, *torch_state())
    return path.read_bytes()


def torch_state() -> tuple[Any, Storages]:
    """Describe arrays as torch does, inside of what a training script saves around them."""
    state, storages = tensors(ARRAYS)
    return {"epoch": 3, "state_dict": state, "history": (1, 0.5, None)}, storages


def int8_network() -> ResNet50:
    """Make a network of two classes whose numbers do not matter."""
    layers = resnet50_layers(2)
    q = QParams(np.float32(0.1), 3)
    params: dict[str, Any] = {"avgpool": q}
    for layer in layers:
        if layer.op in ("conv", "linear"):
            n = layer.out_c
            w_s8 = np.ones((n, layer.kernel**2 * layer.in_c), np.int8)
            w_scale, bias = np.full(n, 0.1, np.float32), np.zeros(n, np.int32)
            params[layer.name] = Int8Params(q, w_s8, w_scale, bias)
    quantized = [layer if layer.op == "linear" else replace(layer, qparams=q) for layer in layers]
    saturated = dict.fromkeys(quantized_edges(layers), 0.0)
    meta = {**TOLD, "preset": IMAGENET_V2, "saturated": saturated}
    return ResNet50(quantized, params, "int8", meta)


def make_torch(kind: str, random: Random, scratch: Path) -> bytes:
    """Change the archive, or the pickle inside of it."""
    content = base(kind, scratch)
    if kind != "zip" or random.random() < 0.3:
        return mutate_bytes(random, content)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            inner = old.read(name)
            hit = random.random() < (0.9 if name.endswith("data.pkl") else 0.05)
            new.writestr(name, mutate_bytes(random, inner) if hit else inner)
    return written.getvalue()


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Take a .safetensors file apart."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def joined(random: Random, header: Any, values: bytes) -> bytes:
    """Put a .safetensors file together, the header's length mostly right."""
    text = json.dumps(header, separators=(",", ":")).encode()
    if random.random() < 0.1:
        text = mutate_bytes(random, text)
    return len(text).to_bytes(8, "little") + text + values


def make_safetensors(random: Random, scratch: Path) -> bytes:
    """Change the bytes, or what the header says."""
    content = base("safetensors", scratch)
    if random.random() < 0.3:
        return mutate_bytes(random, content)
    header, values = split(content)
    return joined(random, mutate_tree(random, header), values)


def make_int8(random: Random, scratch: Path) -> bytes:
    """Change the header, its metadata, or the values, mostly under a checksum that is right."""
    header, values = split(base("int8", scratch))
    told = header["__metadata__"]
    for key in "meta", "qparams":
        if random.random() < 0.5:
            told[key] = json.dumps(mutate_tree(random, json.loads(told[key])))
            if random.random() < 0.1:
                told[key] = mutate_bytes(random, told[key].encode()).decode("latin-1")
    if random.random() < 0.3:
        header = mutate_tree(random, header)
    if random.random() < 0.1:
        values = mutate_bytes(random, values)
    match header:
        case {"__metadata__": dict(metadata)} if random.random() < 0.9:
            metadata["checksum"] = UNSEALED
            return seal(joined(random, header, values))
    return joined(random, header, values)


def make_told(random: Random, scratch: Path) -> bytes:
    """Change the metadata of a float file with two classes, and a calibration of two edges."""
    calibration = {"ranges": {"a": [0, 1.5], "b": [-2, 3]}, "saturated": {"a": 0, "b": 0.1},
                   "observer": "mse", "images": 8}  # fmt: skip
    tree = {"meta": TOLD, "calibration": calibration}
    text = json.dumps(mutate_tree(random, tree))
    return mutate_bytes(random, text.encode()) if random.random() < 0.2 else text.encode()


def read_told(path: Path) -> None:
    """Use what is believed: a preset on an image, a range for a scale."""
    told = read_json(path.read_bytes().decode("latin-1"))
    if not isinstance(told, dict):
        return
    calibration = read_calibration(json.dumps(told.get("calibration")), ["a", "b"])
    assert all(0 < qparams_of_range(*limit).scale < np.inf
               for limit in calibration["ranges"].values())  # fmt: skip
    meta = read_meta(told.get("meta"), 2)
    if "preset" in meta:
        check_input(preprocess(Image.new("RGB", (40, 30), "red"), meta["preset"]))


TARGETS = [
    Target("zip", functools.partial(make_torch, "zip"), minires.resnet50),
    Target("legacy", functools.partial(make_torch, "legacy"), minires.resnet50),
    Target("safetensors", make_safetensors, minires.resnet50),
    Target("int8", make_int8, load_int8),
    Target("metadata", make_told, read_told),
]
