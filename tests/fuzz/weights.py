"""Mutated files of weights beside PyTorch's: safetensors, INT8 files, and metadata."""

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

from minires import predict
from minires.metadata import read_calibration, read_json, read_meta
from minires.preprocess import check_input, preprocess
from minires.quantize import qparams_of_range, quantize_model, save_int8
from minires.quantize.calibrate import STORED_CALIBRATION
from minires.quantize.default import stored_calibration
from minires.quantize.int8_file import UNSEALED, load_int8, seal
from tests.fuzz import small
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Target

CALIBRATION = {
    "ranges": {name: [-2, 1.5] for name in small.EDGES if name != "maxpool"},
    "saturated": {name: 0.1 for name in small.EDGES if name != "maxpool"},
    "observer": "mse",
    "images": 8,
}


@functools.cache
def base(kind: str, scratch: Path) -> bytes:
    """Make the file that mutants are made of."""
    if kind == "safetensors":
        told = {key: json.dumps(small.TOLD[key]) for key in ("categories", "preset")}
        metadata = {"format": "minires-float", **told, "calibration": json.dumps(CALIBRATION)}
        return save(dict(small.state_dict()), metadata)
    path = scratch / "base"
    save_int8(small.int8_network(), path)
    return path.read_bytes()


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


def change_told(random: Random, told: dict[str, str]) -> None:
    """Change some of the JSON in a file's metadata."""
    for key, text in told.items():
        if text[0] in "[{" and random.random() < 0.2:
            told[key] = json.dumps(mutate_tree(random, json.loads(text)))
            if random.random() < 0.1:
                told[key] = mutate_bytes(random, told[key].encode()).decode("latin-1")


def change(random: Random, header: Any, values: bytes) -> tuple[Any, bytes]:
    """Change the metadata, seldom the rest of the header, and some values."""
    change_told(random, header["__metadata__"])
    if random.random() < 0.15:
        header = mutate_tree(random, header)
    if random.random() < 0.3:
        at = random.randrange(len(values))
        changed = random.randbytes(random.choice([1, 1, 4]))
        values = (values[:at] + changed + values[at + len(changed) :])[: len(values)]
    return header, values


def make_safetensors(random: Random, scratch: Path) -> bytes:
    """Change the bytes, or what the header says."""
    content = base("safetensors", scratch)
    if random.random() < 0.15:
        return mutate_bytes(random, content)
    return joined(random, *change(random, *split(content)))


def read_safetensors(path: Path) -> None:
    """Load, classify, and do it again in INT8 by the calibration in the file."""
    model = small.run(path)
    if STORED_CALIBRATION in model.meta:
        int8 = quantize_model(model, stored_calibration(model))
        assert np.isfinite(int8(small.IMAGE)).all()


def make_int8(random: Random, scratch: Path) -> bytes:
    """Change the header, its metadata, or the values, mostly under a checksum that is right."""
    header, values = change(random, *split(base("int8", scratch)))
    match header:
        case {"__metadata__": dict(metadata)} if random.random() < 0.9:
            metadata["checksum"] = UNSEALED
            return seal(joined(random, header, values))
    return joined(random, header, values)


def read_int8(path: Path) -> None:
    """Load, and classify."""
    with small.in_place_of_resnet50():
        model = load_int8(path)
    model.meta.setdefault("categories", small.TOLD["categories"])
    predict(model, small.IMAGE)


def make_told(random: Random, scratch: Path) -> bytes:
    """Change the metadata of a float file with two classes, and a calibration of two edges."""
    calibration = {"ranges": {"a": [0, 1.5], "b": [-2, 3]}, "saturated": {"a": 0, "b": 0.1},
                   "observer": "mse", "images": 8}  # fmt: skip
    tree = {"meta": small.TOLD, "calibration": calibration}
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
    Target("safetensors", make_safetensors, read_safetensors),
    Target("int8", make_int8, read_int8),
    Target("metadata", make_told, read_told),
]
