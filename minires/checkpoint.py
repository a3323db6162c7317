"""Read a file of weights without torch: PyTorch's two formats, and safetensors.

The first bytes tell the format: ``minires/torch_files.py`` reads PyTorch's, and this file
safetensors. ``minires/layouts.py`` then finds the tensors in what was read. No number in a file is
believed: neither how long it is said to be nor where a tensor is said to lie.
"""

import io
import json
import os
import pickle
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import safe_open

from minires.errors import MiniresError, WeightsError, check_is, short, some
from minires.layers import Array, FloatParams, Layer, Shape
from minires.layouts import recognize, unwrap
from minires.reference import fold_batchnorm
from minires.torch_files import read_legacy, read_zip
from minires.unpickle import widen

MOST_FILE = 2**30  # bytes; a ResNet-50 in float64, with its optimizer's state, has 600 MB
MOST_HEADER = 2**23  # bytes of a .safetensors file's header; a ResNet-50's has 30 KB
MOST_SHARDS = 64
WEIGHT_FILES = (".index.json", ".safetensors", ".pth", ".pt", ".bin")  # the likeliest first
SHARD = re.compile(r"(.+)-\d{5}-of-(?!00001)\d{5}(\.\w+)")  # Hugging Face's names
BF16 = "BF16"
SAFETENSORS_TYPES = (
    *("F64", "F32", "F16", BF16),
    *("I64", "I32", "I16", "I8"),
    *("U64", "U32", "U16", "U8", "BOOL"),
)
MOST_NAMED = 5  # of each kind of problem in one error
FLOATS = (np.float32, np.float16, np.float64)
BATCHNORM = ("weight", "bias", "running_mean", "running_var")  # gamma, beta, mean, var


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read all tensors of a file; its first bytes tell the format, not its name.

    The file is what ``torch.save`` wrote, in the zip format or the one before it, a safetensors
    file, or the index file of several. The state_dict may be an entry of a dictionary, such as
    "state_dict" or "model"; or the file holds the whole model, made of torch's own layers, or a
    TorchScript program.

    Tensors keep the file's names, shapes and types, but bfloat16 becomes float32. Arrays may share
    memory, and may be read-only. `WeightsError` tells of a file that is missing, damaged, of
    another kind, or that asks for code.
    """
    return read_all(path)[0]


def read_all(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read all tensors of a file as `read_checkpoint`, and what it says of its classes."""
    with naming(path), opened(path) as file:
        if shard := SHARD.fullmatch(os.path.basename(path)):
            index = f"{shard[1]}{shard[2]}.index.json"
            raise WeightsError(f"one of several parts of a network; give their index, {index}")
        return unwrap(_reader(file)(file))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read what a safetensors file says beside its tensors: nothing in PyTorch's formats."""
    with naming(path), opened(path) as file:
        if _reader(file) is not _read_safetensors:
            return {}
        with safe_open(path, "numpy") as checked:
            return checked.metadata() or {}


def check_state_dict(state: Mapping[str, Array], shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Check that a state_dict has just the tensors that a network needs, and make them float32.

    They are contiguous, and come in the order of `shapes`. ``num_batches_tracked`` counts training
    steps, and may be there or not. `WeightsError` names the first few tensors of each problem, and
    counts the others.
    """
    check_is("the state_dict", state, Mapping, "tensors by their names")
    for key, value in state.items():
        check_is(f"the tensor {short(key)}", value, np.ndarray, "a NumPy array")
    found = {k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")}
    common = {key: found[key] for key in shapes if key in found}
    floats = {k: _to_float32(v) for k, v in common.items() if v.dtype in FLOATS}
    problems = {
        "missing": [key for key in shapes if key not in found],
        "unexpected": [key for key in found if key not in shapes],
        "of a wrong shape": [
            f"{key} {value.shape}, wanted {shapes[key]}"
            for key, value in common.items()
            if value.shape != shapes[key]
        ],
        "not of floats": [
            f"{key} {value.dtype}" for key, value in common.items() if key not in floats
        ],
        "holding NaN or infinity": [k for k, v in floats.items() if not np.isfinite(v).all()],
        "empty": [key for key, value in floats.items() if not value.size],
        "below 0": [k for k, v in floats.items() if k.endswith("running_var") and (v < 0).any()],
    }
    if any(problems.values()):
        told = (
            f"{kind}: {some([short(name) for name in names], MOST_NAMED)}"
            for kind, names in problems.items()
            if names
        )
        why = recognize(found, shapes) or "; ".join(told)
        raise WeightsError(f"not the weights of this network ({why})")
    return {k: np.ascontiguousarray(v) for k, v in floats.items()}


def _to_float32(values: Array) -> Array:
    with np.errstate(over="ignore"):  # what overflows is infinite, and is told as such
        return values.astype(np.float32, copy=False)


def count_classes(state: Mapping[str, Array]) -> int:
    """Tell how many classes a state_dict's network has: 1000 if nothing tells."""
    check_is("the state_dict", state, Mapping, "tensors by their names")
    bias = state.get("fc.bias")
    return len(bias) if isinstance(bias, np.ndarray) and bias.ndim == 1 and len(bias) else 1000


def state_dict_shapes(layers: Iterable[Layer]) -> dict[str, Shape]:
    """Name every tensor of torchvision's state_dict that the fused layers need, with its shape."""
    shapes: dict[str, Shape] = {}
    for layer in layers:
        if layer.op == "conv":
            shapes[f"{layer.name}.weight"] = (layer.out_c, layer.in_c, layer.kernel, layer.kernel)
            shapes |= {f"{layer.bn}.{field}": (layer.out_c,) for field in BATCHNORM}
        elif layer.op == "linear":
            shapes[f"{layer.name}.weight"] = (layer.out_c, layer.in_c)
            shapes[f"{layer.name}.bias"] = (layer.out_c,)
    return shapes


def fp32_params(layers: Iterable[Layer], state: Mapping[str, Array]) -> dict[str, Any]:
    """Fold BatchNorms into their convolutions and lay the weights out as GEMM reads them.

    The parameters are read-only and share no memory with the state_dict, which the caller may go
    on changing. A BatchNorm that is a layer of its own keeps its four vectors.
    """
    params: dict[str, Any] = {}
    for layer in layers:
        if layer.op == "conv":
            weight = state[f"{layer.name}.weight"].transpose(0, 2, 3, 1)  # OIHW to OHWI
            bias = np.zeros(layer.out_c, np.float32)
            if layer.bn:
                weight, bias = fold_batchnorm(weight, *_batchnorm(state, layer.bn))
            else:
                weight = weight.copy()
            params[layer.name] = FloatParams(weight.reshape(layer.out_c, -1), bias)  # (N, K)
        elif layer.op == "linear":
            params[layer.name] = FloatParams(state["fc.weight"].copy(), state["fc.bias"].copy())
        elif layer.op == "batchnorm":
            params[layer.name] = _batchnorm(state, layer.name)
    return {name: lock(p) for name, p in params.items()}


def _batchnorm(state: Mapping[str, Array], name: str) -> tuple[Array, ...]:
    return tuple(state[f"{name}.{field}"].copy() for field in BATCHNORM)


def lock(p: Any) -> Any:
    """Make the arrays of a layer's parameters read-only, where they are nobody else's."""
    for part in p if isinstance(p, tuple) else ():
        if isinstance(part, np.ndarray):
            part.flags.writeable = False
    return p


def read_only(p: Any) -> Any:
    """Make sure that nobody can write into a layer's parameters: copy the arrays that one can."""
    if isinstance(p, tuple):
        parts = [read_only(part) for part in p]
        return type(p)(*parts) if hasattr(p, "_fields") else tuple(parts)
    if isinstance(p, np.ndarray) and p.flags.writeable:
        p = p.copy()
        p.flags.writeable = False
    return p


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make whatever goes wrong with a file a WeightsError that begins with its name."""
    if not isinstance(path, str | os.PathLike):  # a number would be an open file's, such as stdout
        raise WeightsError(f"a file of weights is {short(path)}; wanted a path")
    try:
        yield
    except MiniresError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # zipfile and pickle let nearly anything out for a damaged file
        if isinstance(error, OSError) and error.strerror:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
        raise WeightsError(
            f"{path}: damaged or incomplete ({short(str(error) or repr(error))}); fetch it again"
        ) from error


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file, if it is one: opening a pipe may wait for ever, and nobody can go back in it."""
    if os.path.isdir(path):
        inside = sorted(os.listdir(path))
        found = [name for end in WEIGHT_FILES for name in inside if name.endswith(end)]
        such = f", such as {short(found[0])}" if found else ""
        raise WeightsError(f"a folder; give the file in it that has the weights{such}")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise WeightsError("a pipe or a device; wanted a file, so save it first")
    if os.path.getsize(path) > MOST_FILE:
        raise WeightsError(f"refused: it has more than {MOST_FILE} bytes")
    return open(path, "rb")


def _reader(file: io.BufferedReader) -> Callable[[io.BufferedReader], object]:
    """Choose by the first bytes, and go back to the start."""
    start = file.read(9)
    file.seek(0)
    if start[8:] == b"{":  # JSON, after its length in 8 bytes, which may look like a pickle's
        if int.from_bytes(start[:8], "little") > MOST_HEADER:
            raise WeightsError(f"refused: its header has more than {MOST_HEADER} bytes")
        return _read_safetensors
    if start.startswith(b"PK\x03\x04"):
        return read_zip
    if start.startswith(pickle.PROTO):
        return read_legacy
    if start.startswith(b"{"):
        return _read_index
    raise WeightsError(f"{'not' if start else 'empty, not'} a .pth or .safetensors file")


def read_header(file: io.BufferedReader) -> tuple[dict[str, Any], bytes]:
    """Read a .safetensors file's header: its length in 8 bytes, then JSON; the text comes too."""
    length = file.read(8)
    text = file.read(min(int.from_bytes(length, "little"), MOST_HEADER))
    header = json.loads(text)
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        raise WeightsError("damaged: its header does not describe tensors")
    return header, length + text


def _read_safetensors(file: io.BufferedReader) -> dict[str, Array]:
    header, text = read_header(file)
    header.pop("__metadata__", None)
    start = len(text)
    for key, described in header.items():  # told here: to safetensors a newer type is damage
        dtype = described.get("dtype")
        if dtype not in SAFETENSORS_TYPES:
            raise WeightsError(
                f"{short(key)} has the type {short(dtype)}, which is not read; save it as F32"
            )
    with safe_open(file.name, "numpy") as checked:
        checked.keys()  # it has compared each tensor's place with the file's size
        ours = {key for key in header if header[key]["dtype"] == BF16}
        read = {key: checked.get_tensor(key) for key in header if key not in ours}
    for key in ours:
        first, end = header[key]["data_offsets"]
        file.seek(start + first)
        read[key] = widen(file.read(end - first)).reshape(header[key]["shape"])
    return {key: read[key] for key in header}


def _read_index(file: io.BufferedReader) -> dict[str, Array]:
    """Read the files that an index names, as Hugging Face's libraries cut large networks up."""
    tensors: dict[str, Array] = {}
    for path in _shards(file):
        with naming(path), opened(path) as shard:
            read = _reader(shard)
            if read is _read_index:
                raise WeightsError("refused: an index that an index names")
            tensors |= unwrap(read(shard))[0]
    return tensors


def _shards(file: io.BufferedReader) -> list[str]:
    """List the files that an index names; they lie beside it."""
    index = json.loads(file.read(MOST_HEADER))
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise WeightsError("JSON, but not the index of a network's files; wanted a weight_map")
    shards = sorted(set(names.values()))
    if len(shards) > MOST_SHARDS or any(os.path.basename(name) != name for name in shards):
        raise WeightsError("refused: its index names too many files, or files in other folders")
    paths = [os.path.join(os.path.dirname(file.name), name) for name in shards]
    if sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) > MOST_FILE:
        raise WeightsError(f"refused: its files have more than {MOST_FILE} bytes")
    return paths


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """List this file, and those that it names if it is an index."""
    with naming(path), opened(path) as file:
        more = _shards(file) if _reader(file) is _read_index else []
    return [os.fspath(path), *more]
