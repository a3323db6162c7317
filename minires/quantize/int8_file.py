"""The INT8 network as one .safetensors file: 26 MB that load without the FP32 weights."""

import io
import json
import math
import mmap
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from minires.backends import INT8
from minires.checkpoint import naming, opened, read_header, read_metadata
from minires.errors import MiniresError, WeightsError, check_is, short
from minires.layers import Array, Int8Params, Layer, Shape
from minires.metadata import read_json, read_meta, read_qparams
from minires.mixed import KeptParams
from minires.model import ResNet50, resnet50_layers
from minires.quantize.calibrate import quantized_edges
from minires.reference import QParams
from minires.writing import write_whole

FORMAT, VERSION = "minires-int8", "2"
TENSORS = {"w_s8": "I8", "w_scale": "F32", "bias_s32": "I32"}
KEPT = {"weight": "F32", "bias": "F32"}  # of a layer that stays in float32
DTYPES = {"I8": np.int8, "F32": np.float32, "I32": np.int32}  # by safetensors' names
UNSEALED = "0" * 8  # what stands in the checksum's place while it is computed
PIECE = 2**20  # bytes that are read at once


class _Tensor(NamedTuple):
    """Where a tensor's values lie, counted from the header's end."""

    dtype: str
    shape: Shape
    offset: int
    end: int


def save_int8(model: ResNet50, path: str | os.PathLike[str]) -> None:
    """Write an INT8 network; the file appears whole or not at all.

    Parameters
    ----------
    model : ResNet50
        With precision "int8".
    path : path-like
        Where to. An existing file is replaced, a link is followed.

    Raises
    ------
    MiniresError
        For a network in another precision, for a meta or scales that `load_int8` would refuse, and
        for a place that cannot be written to.

    Examples
    --------
    >>> int8 = minires.resnet50("CIFAR10", "int8")
    >>> minires.quantize.save_int8(int8, folder / "int8.safetensors")
    """
    check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
    if model.precision not in INT8:
        raise MiniresError(
            f"this network is in {model.precision}; quantize_model makes one that can be saved"
        )
    tensors = {
        f"{layer.name}.{field}": np.ascontiguousarray(getattr(model.params[layer.name], field))
        for layer in model.layers
        for field in _fields(layer)
    }
    qparams = {layer.name: layer.qparams for layer in model.layers if layer.qparams}
    meta = {**model.meta}
    if "preset" in meta:
        meta["preset"] = asdict(meta["preset"])
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": UNSEALED,
        "qparams": json.dumps(
            {name: (float(q.scale), q.zero_point) for name, q in qparams.items()}
        ),
        "meta": json.dumps(meta),
    }
    read_meta(read_json(metadata["meta"]), model.layers[-1].out_c)  # as `load_int8` will
    read_qparams(read_json(metadata["qparams"]), qparams)
    write_whole(path, seal(save(tensors, metadata)))


def seal(content: bytes) -> bytes:
    """Write a file's checksum, CRC-32, into its header: of all bytes, its own being zeros."""
    checksum = f"{zlib.crc32(content):08x}"
    return content.replace(_sealed_with(UNSEALED), _sealed_with(checksum), 1)


def _sealed_with(checksum: str) -> bytes:
    return f'"checksum":"{checksum}"'.encode()


def int8_size(layers: Sequence[Layer]) -> int:
    """Count the bytes that `save_int8` writes, generously: 64 KB are names and metadata."""
    shapes = _tensor_shapes(layers).items()
    return 2**16 + sum(np.dtype(DTYPES[t]).itemsize * math.prod(s) for _, (t, s) in shapes)


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
    """Read what `save_int8` wrote, and compare its checksum.

    Whatever becomes of the file afterwards does no harm.

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
        For a file that is damaged, of another format or version, or of another network.

    Examples
    --------
    >>> int8 = minires.resnet50("CIFAR10", "int8")
    >>> minires.quantize.save_int8(int8, folder / "int8.safetensors")
    >>> minires.quantize.load_int8(folder / "int8.safetensors").precision
    'int8'
    """
    with naming(path), opened(path) as file:
        header, text = read_header(file)
        metadata = header.pop("__metadata__", {})
        found = metadata.get("format"), metadata.get("version")
        if found != (FORMAT, VERSION):
            raise WeightsError(
                f"format {short(found[0])} version {short(found[1])}, wanted {FORMAT} version "
                f"{VERSION}; make it anew with minires quantize"
            )
        for key in "checksum", "meta", "qparams":
            if not isinstance(metadata.get(key), str):
                raise WeightsError(f"its metadata has no {key}")
        layers = [
            replace(layer, kept=f"{layer.name}.weight" in header)
            for layer in resnet50_layers(_count_classes(header))
        ]
        described = _check_tensors(header, _tensor_shapes(layers))
        # Only now is it certain how much there is to copy.
        size = max(tensor.end for tensor in described.values())
        if os.fstat(file.fileno()).st_size != len(text) + size:
            raise WeightsError("damaged or incomplete: its size is not that of its tensors")
        memory, checksum = _copy(file, text, metadata["checksum"])
        if checksum != metadata["checksum"]:
            raise WeightsError("damaged: its checksum is wrong; make it anew")
        tensors = {
            key: np.ndarray(tensor.shape, DTYPES[tensor.dtype], memory, tensor.offset)
            for key, tensor in described.items()
        }
        return _build(metadata, layers, tensors)


def _count_classes(header: Mapping[str, Any]) -> int:
    match header.get("fc.bias_s32", header.get("fc.bias")):
        case {"shape": [int(classes)]} if classes > 0:
            return classes
    raise WeightsError("not an INT8 ResNet-50 of minires: fc.bias_s32 counts no classes")


def _tensor_shapes(layers: Sequence[Layer]) -> dict[str, tuple[str, Shape]]:
    """Name the tensors of a network, each with its type and shape."""
    shapes: dict[str, tuple[str, Shape]] = {}
    for layer in layers:
        for field, dtype in _fields(layer).items():
            inner = (layer.kernel**2 * layer.in_c,) if field in ("w_s8", "weight") else ()
            shapes[f"{layer.name}.{field}"] = dtype, (layer.out_c, *inner)
    return shapes


def _fields(layer: Layer) -> dict[str, str]:
    """Name the tensors of a layer, each with its type."""
    if layer.op not in ("conv", "linear"):
        return {}
    return KEPT if layer.kept else TENSORS


def _check_tensors(
    header: Mapping[str, Any], wanted: Mapping[str, tuple[str, Shape]]
) -> dict[str, _Tensor]:
    """Find out where the tensors lie, if they are those of the network and lie within the file."""
    for key in sorted(header.keys() ^ wanted.keys()):
        kind = "missing" if key in wanted else "unexpected"
        raise WeightsError(f"not an INT8 ResNet-50 of minires: {short(key)} is {kind}")
    tensors = {}
    for key, (dtype, shape) in wanted.items():
        size = np.dtype(DTYPES[dtype]).itemsize * math.prod(shape)
        match header[key]:
            case {"dtype": str(told), "shape": list(sides), "data_offsets": [int(start), int(end)]}:
                if (told, sides) == (dtype, list(shape)) and start >= 0 and end - start == size:
                    tensors[key] = _Tensor(dtype, shape, start, end)
        if key not in tensors:
            raise WeightsError(f"{key} is {short(header[key])}; wanted {dtype} {shape}")
    return tensors


def _copy(file: io.BufferedReader, header: bytes, told: str) -> tuple[mmap.mmap | bytes, str]:
    """Copy a file's tensors to where nobody else can write, and compute the checksum of all.

    The copy is a file without a name, which is mapped: what the engine lays out anew need not be
    in memory twice. To map the file itself would be to trust whoever can shorten it meanwhile: the
    process would end, without an error to catch.
    """
    checksum = zlib.crc32(header.replace(_sealed_with(told), _sealed_with(UNSEALED), 1))
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        with suppress(OSError), tempfile.TemporaryFile() as copy:  # its folder may have no room
            running = checksum
            while piece := file.read(PIECE):
                running = zlib.crc32(piece, running)
                copy.write(piece)
            copy.flush()
            memory = mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)
            return memory, f"{running:08x}"
        file.seek(len(header))
    values = file.read()
    return values, f"{zlib.crc32(values, checksum):08x}"


def _build(
    metadata: Mapping[str, str], layers: list[Layer], tensors: Mapping[str, Array]
) -> ResNet50:
    meta = read_meta(read_json(metadata["meta"]), layers[-1].out_c)
    edges = [*quantized_edges(layers), "maxpool"]
    qparams = read_qparams(read_json(metadata["qparams"]), edges)
    if qparams["maxpool"] != qparams["conv1"]:
        raise WeightsError("maxpool does not have the scale and zero point of conv1")
    for key, values in tensors.items():
        if key.endswith("w_scale") and not (np.all(values > 0) and np.all(np.isfinite(values))):
            raise WeightsError(f"{key} has a scale that is not a positive number")
        if key.endswith((".weight", ".bias")) and not np.all(np.isfinite(values)):
            raise WeightsError(f"{key} holds NaN or infinity")
    layers = [replace(layer, qparams=qparams.get(layer.name)) for layer in layers]
    return ResNet50(layers, _params(layers, qparams, tensors), "int8", meta)


def _params(
    layers: list[Layer], qparams: Mapping[str, QParams], tensors: Mapping[str, Array]
) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for layer in layers:
        inputs = [qparams[name] for name in layer.inputs]
        if layer.op in ("conv", "linear"):
            fields = {field: tensors[f"{layer.name}.{field}"] for field in _fields(layer)}
            residual = inputs[1] if len(inputs) > 1 else None
            made = KeptParams if layer.kept else Int8Params
            params[layer.name] = made(inputs[0], **fields, residual_qparams=residual)
        elif layer.op == "avgpool":
            params[layer.name] = inputs[0]
    return params
