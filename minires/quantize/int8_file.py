"""The INT8 network as one .safetensors file: 26 MB that load without the FP32 weights."""

import json
import mmap
import operator
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minires.checkpoint import read_metadata
from minires.errors import MiniresError, WeightsError
from minires.layers import Array, Int8Params
from minires.model import ResNet50, resnet50_layers
from minires.preprocess import read_preset
from minires.quantize.calibrate import quantized_edges
from minires.reference import QParams

FORMAT, VERSION = "minires-int8", "1"
TENSORS = {"w_s8": np.int8, "w_scale": np.float32, "bias_s32": np.int32}


def save_int8(model: ResNet50, path: str | os.PathLike[str]) -> None:
    """Write an INT8 network; the file appears whole or not at all.

    Parameters
    ----------
    model : ResNet50
        With precision "int8".
    path : path-like
        Where to; an existing file is replaced.

    Raises
    ------
    MiniresError
        For a network in fp32.
    """
    if model.precision == "fp32":
        raise MiniresError("this network is in fp32; quantize_model makes one that can be saved")
    tensors = {
        f"{name}.{field}": np.ascontiguousarray(getattr(p, field))
        for name, p in model.params.items()
        if isinstance(p, Int8Params)
        for field in TENSORS
    }
    qparams = {layer.name: layer.qparams for layer in model.layers if layer.qparams}
    meta = {**model.meta}
    if "preset" in meta:
        meta["preset"] = asdict(meta["preset"])
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "qparams": json.dumps(
            {name: (float(q.scale), q.zero_point) for name, q in qparams.items()}
        ),
        "meta": json.dumps(meta),
    }
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        # Not save_file, which lets only the owner read what it writes.
        (Path(folder) / path.name).write_bytes(save(tensors, metadata))
        os.replace(Path(folder) / path.name, path)


def is_int8_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file of weights is one that `save_int8` wrote, of any version.

    Parameters
    ----------
    path : path-like
        A file that `read_checkpoint` takes.

    Returns
    -------
    bool
        True where `load_int8` is what reads it.
    """
    return read_metadata(path).get("format") == FORMAT


def load_int8(path: str | os.PathLike[str]) -> ResNet50:
    """Read what `save_int8` wrote.

    The file is mapped, and its weights are read when they are computed with. Replacing or deleting
    it meanwhile does no harm; writing into it does.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    ResNet50
        With precision "int8", bit for bit the one saved.

    Raises
    ------
    WeightsError
        For a file that is truncated, of another format or version, or of another network.
    """
    try:
        with safe_open(path, "numpy") as opened, open(path, "rb") as file:
            metadata = opened.metadata() or {}
            maps = hasattr(mmap, "MADV_DONTNEED")  # Windows would let nobody replace the file
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if maps else file.read()
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error
    found = metadata.get("format"), metadata.get("version")
    if found != (FORMAT, VERSION):
        raise WeightsError(
            f"{path}: format {found[0]} version {found[1]}, wanted {FORMAT} version {VERSION}; "
            "make it anew with minires quantize"
        )
    try:
        return _build(metadata, _view(memory))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not an INT8 ResNet-50 of minires ({error})") from error


def _view(memory: mmap.mmap | bytes) -> dict[str, Array]:
    """View a safetensors file: the header's length in 8 bytes, the header in JSON, the values.

    Nothing is read yet. What the engine lays out anew need not be in memory twice.
    """
    start = 8 + int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8:start])
    views = {}
    for key in header.keys() - {"__metadata__"}:
        kind, bits = header[key]["dtype"][0], header[key]["dtype"][1:]  # I8, F32, or the like
        dtype, offset = f"{kind.lower()}{int(bits) // 8}", header[key]["data_offsets"][0]
        views[key] = np.ndarray(header[key]["shape"], dtype, memory, start + offset)
    return views


def _build(metadata: dict[str, str], tensors: dict[str, Any]) -> ResNet50:
    meta = json.loads(metadata["meta"])
    if "preset" in meta:
        meta["preset"] = read_preset(meta["preset"])
    qparams = {
        name: QParams(np.float32(scale), operator.index(zero_point))
        for name, (scale, zero_point) in json.loads(metadata["qparams"]).items()
    }
    layers = [
        replace(layer, qparams=qparams.get(layer.name))
        for layer in resnet50_layers(num_classes=len(tensors["fc.bias_s32"]))
    ]
    known = {f"{layer.name}.{field}" for layer in layers for field in TENSORS}
    if unexpected := sorted(tensors.keys() - known):
        raise ValueError(f"unexpected {unexpected[0]}")
    scales = {name: q.scale for name, q in qparams.items()}
    scales |= {key: value for key, value in tensors.items() if key.endswith("w_scale")}
    for name, scale in scales.items():
        if not (np.all(scale > 0) and np.all(np.isfinite(scale))):
            raise ValueError(f"{name} has a scale that is not a positive number")
    for name, q in qparams.items():
        if not 0 <= q.zero_point <= 255:
            raise ValueError(f"{name} has the zero point {q.zero_point}, wanted 0 to 255")
    edges = [*quantized_edges(layers), "maxpool"]
    if qparams.keys() != set(edges) or qparams["maxpool"] != qparams["conv1"]:
        raise ValueError("its edges are not those of this network")
    classes = layers[-1].out_c
    if len(meta.get("categories", range(classes))) != classes:
        raise ValueError(f"{len(meta['categories'])} categories for {classes} classes")
    params: dict[str, Any] = {}
    for layer in layers:
        inputs = [qparams[name] for name in layer.inputs]
        if layer.op in ("conv", "linear"):
            shapes = {"w_s8": (layer.out_c, layer.kernel**2 * layer.in_c)}
            for field, dtype in TENSORS.items():
                tensor, shape = tensors[f"{layer.name}.{field}"], shapes.get(field, (layer.out_c,))
                if tensor.shape != shape or tensor.dtype != dtype:
                    raise ValueError(
                        f"{layer.name}.{field} is {tensor.dtype} {tensor.shape}, "
                        f"wanted {np.dtype(dtype)} {shape}"
                    )
            weights = [tensors[f"{layer.name}.{field}"] for field in TENSORS]
            params[layer.name] = Int8Params(inputs[0], *weights, *inputs[1:])
        elif layer.op == "avgpool":
            params[layer.name] = inputs[0]
    return ResNet50(layers, params, "int8", meta)
