"""Read a file of weights without torch: PyTorch's two formats, and safetensors.

PyTorch saves a pickle, and a pickle is a program: loading one calls whatever it names. So
``minires/unpickle.py`` runs it on a machine that can make tensors and nothing else. No number in a
file is believed: neither how long it is said to be nor where a tensor is said to lie.
"""

import io
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import safe_open

from minires.errors import MiniresError, WeightsError, short
from minires.layers import Array, FloatParams, Layer, Shape
from minires.reference import fold_batchnorm
from minires.unpickle import MOST_BYTES, NO_BFLOAT16, unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in torch.save's older format
MOST_FILE = 2**30  # bytes; a ResNet-50 in float64, with its optimizer's state, has 600 MB
MOST_HEADER = 2**23  # bytes of a .safetensors file's header; a ResNet-50's has 30 KB
MOST_DIRECTORY = 2**22  # bytes of a zip archive's list of members; a ResNet-50's has 25 KB
SAFETENSORS_TYPES = (  # those that NumPy has
    *("F64", "F32", "F16"),
    *("I64", "I32", "I16", "I8"),
    *("U64", "U32", "U16", "U8", "BOOL"),
)
MOST_NAMED = 5  # of each kind of problem in one error
BATCHNORM = ("weight", "bias", "running_mean", "running_var")  # gamma, beta, mean, var


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read all tensors of a file; its first bytes tell the format, not its name.

    Parameters
    ----------
    path : path-like
        What ``torch.save`` wrote, in the zip format or the one before it, or a safetensors file.
        The state_dict may be the entry "state_dict" or "model" of a dictionary.

    Returns
    -------
    dict of str to ndarray
        Under the file's own names, with its shapes and types. Arrays may share memory, and may be
        read-only.

    Raises
    ------
    WeightsError
        For a file that is missing, damaged, of another kind, or that asks for code.
    """
    with naming(path), opened(path) as file:
        return _tensors(_reader(file)(file))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read what a safetensors file says beside its tensors.

    Parameters
    ----------
    path : path-like
        A file that `read_checkpoint` takes.

    Returns
    -------
    dict of str to str
        Empty where there is none, as in PyTorch's formats.

    Raises
    ------
    WeightsError
        For a file that is missing, damaged or of another kind.
    """
    with naming(path), opened(path) as file:
        if _reader(file) is not _read_safetensors:
            return {}
        with safe_open(path, "numpy") as checked:
            return checked.metadata() or {}


def check_state_dict(state: Mapping[str, Array], shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Check that a state_dict has just the tensors that a network needs.

    Parameters
    ----------
    state : mapping of str to ndarray
        As `read_checkpoint` returns it: float32 or float16. ``num_batches_tracked`` counts
        training steps, and may be there or not.
    shapes : mapping of str to tuple of int
        What is needed.

    Returns
    -------
    dict of str to ndarray
        Contiguous float32, under the names in `shapes` and in their order.

    Raises
    ------
    WeightsError
        For tensors that are missing, unexpected, of a wrong shape or type, or not finite, and
        for a negative variance: naming the first few of each kind, and counting the others.
    """
    found = {k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")}
    common = {key: found[key] for key in shapes if key in found}
    floats = {k: v for k, v in common.items() if v.dtype in (np.float32, np.float16)}
    problems = {
        "missing": [key for key in shapes if key not in found],
        "unexpected": [key for key in found if key not in shapes],
        "of a wrong shape": [
            f"{key} {value.shape}, wanted {shapes[key]}"
            for key, value in common.items()
            if value.shape != shapes[key]
        ],
        "neither float32 nor float16": [
            f"{key} {value.dtype}" for key, value in common.items() if key not in floats
        ],
        "holding NaN or infinity": [k for k, v in floats.items() if not np.isfinite(v).all()],
        "empty": [key for key, value in floats.items() if not value.size],
        "below 0": [k for k, v in floats.items() if k.endswith("running_var") and (v < 0).any()],
    }
    if any(problems.values()):
        told = (f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names)
        raise WeightsError(f"not the weights of this network ({'; '.join(told)})")
    return {k: np.ascontiguousarray(v, np.float32) for k, v in floats.items()}


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


def _shorten(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(map(short, names[:MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make whatever goes wrong with a file a WeightsError that begins with its name."""
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
    if not (os.path.isdir(path) or stat.S_ISREG(os.stat(path).st_mode)):
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
        return _read_zip
    if start.startswith(pickle.PROTO):
        return _read_legacy
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
    header, _ = read_header(file)
    header.pop("__metadata__", None)
    for key, described in header.items():  # told here: to safetensors a newer type is damage
        dtype = described.get("dtype")
        if dtype == "BF16":
            raise WeightsError(NO_BFLOAT16)
        if dtype not in SAFETENSORS_TYPES:
            raise WeightsError(
                f"{short(key)} has the type {short(dtype)}, which is not read; save it as F32"
            )
    with safe_open(file.name, "numpy") as checked:
        return {key: checked.get_tensor(key) for key in header}


class _Directory(io.FileIO):
    """An archive of which no more than its list of members can be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a part, where it is small enough to be one of the list."""
        if size is not None and size > MOST_DIRECTORY:
            raise WeightsError(f"refused: its list of members has more than {MOST_DIRECTORY} bytes")
        return super().read(-1 if size is None else size) or b""


def _read_zip(file: io.BufferedReader) -> object:
    """Read the format of PyTorch 1.6 and later: the pickle is a member, and so is each storage."""
    with _Directory(file.name) as directory:
        zipfile.ZipFile(directory).close()  # which makes an object for each member
    with zipfile.ZipFile(file) as archive:
        # All members lie in one folder, whose name is arbitrary.
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        _check_members(members, os.fstat(file.fileno()).st_size)
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise WeightsError("saved on a big-endian machine, which is not supported")
        storages: dict[str, Array] = {}  # tensors may share one

        def read_storage(dtype: str, key: str, count: int) -> Array:
            if f"data/{key}" not in members:
                raise WeightsError(f"damaged: storage {key!r:.80} is missing")
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(members[f"data/{key}"]), dtype)
            found = storages[key]
            if found.size != count or found.dtype != dtype:
                raise WeightsError(
                    f"damaged: storage {key!r:.80} has {found.size} values of {found.dtype}, "
                    f"not {count} of {np.dtype(dtype)}"
                )
            return found

        return unpickle(io.BytesIO(archive.read(members["data.pkl"])), read_storage)


def _check_members(members: Mapping[str, zipfile.ZipInfo], archive_size: int) -> None:
    """Refuse an archive that is not PyTorch's, or would become larger than it is."""
    if "constants.pkl" in members:
        raise WeightsError("a TorchScript program; wanted what torch.save wrote of a state_dict")
    if "data.pkl" not in members:
        raise WeightsError("a zip archive, but not one of PyTorch's; wanted data.pkl in it")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise WeightsError("compressed, which PyTorch does not; a few bytes could fill memory")
    if sum(info.file_size for info in members.values()) > archive_size:
        raise WeightsError("damaged: its members overlap, and are larger than the whole")
    if members["data.pkl"].file_size > MOST_BYTES:
        raise WeightsError(f"refused: its pickle has more than {MOST_BYTES} bytes")


def _read_legacy(file: io.BufferedReader) -> object:
    """Read the format before that: five pickles, then the storages that the fourth refers to."""
    storages: dict[str, Array] = {}
    room = os.fstat(file.fileno()).st_size  # for storages, in bytes

    def make_storage(dtype: str, key: str, count: int) -> Array:
        nonlocal room
        if key not in storages:
            room -= count * np.dtype(dtype).itemsize
            if room < 0:
                raise WeightsError(f"damaged: storage {key!r:.80} is said to have {count} values")
            storages[key] = np.zeros(count, dtype)  # filled below
        return storages[key]

    if unpickle(file, make_storage) != LEGACY_MAGIC:
        raise WeightsError("a pickle, but not one of PyTorch's; wanted what torch.save wrote")
    _, machine, state, keys = [unpickle(file, make_storage) for _ in range(4)]
    if not machine["little_endian"]:
        raise WeightsError("saved on a big-endian machine, which is not supported")
    # Text first: the hash of what is nested without end would end the process.
    if not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise WeightsError("damaged: its tensors and its storages do not belong together")
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        values = storages[key].data
        if count != len(values) or file.readinto(values) != values.nbytes:
            raise WeightsError("incomplete: the file ends before its tensors do; fetch it again")
    return state


def _tensors(state: object) -> dict[str, Array]:
    """Check that what was read is a dictionary of tensors, or holds one."""
    if isinstance(state, dict):
        state = next((state[k] for k in ("state_dict", "model") if k in state), state)
    if not isinstance(state, dict):
        raise WeightsError(f"holds a {type(state).__name__}; wanted a dictionary of tensors")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, np.ndarray)):
            raise WeightsError(f"its {key!r:.80} is a {type(value).__name__}; wanted tensors only")
    return dict(state)
