"""Read a file of weights without torch: PyTorch's two formats, and safetensors.

PyTorch saves a pickle, and a pickle is a program: loading one calls whatever it names. The
unpickler here knows the few names that a dictionary of tensors needs. It hands them out as strings,
as methods and as one class, none of which a pickle can change, and it believes no offset or stride.
"""

import functools
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from minires.errors import WeightsError
from minires.layers import Array, FloatParams, Layer, Shape
from minires.reference import fold_batchnorm

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in torch.save's older format
STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
NO_BFLOAT16 = "holds bfloat16, which NumPy lacks; save it as float32"
MOST_NAMED = 5  # of each kind of problem in one error
BATCHNORM = ("weight", "bias", "running_mean", "running_var")  # gamma, beta, mean, var

MakeStorage = Callable[[str, str, int], Array]  # type, key and number of values, to (values,)


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
    with _naming(path), open(path, "rb") as file:
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
    with _naming(path), open(path, "rb") as file:
        if _reader(file) is not _read_safetensors:
            return {}
        with safe_open(path, "numpy") as opened:
            return opened.metadata() or {}


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
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make whatever goes wrong with a file a WeightsError that begins with its name."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # zipfile and pickle let nearly anything out for a damaged file
        if isinstance(error, OSError) and error.strerror:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
        raise WeightsError(
            f"{path}: damaged or incomplete ({str(error) or repr(error)}); fetch it again"
        ) from error


def _reader(file: io.BufferedReader) -> Callable[[io.BufferedReader], object]:
    """Choose by the first bytes, and go back to the start."""
    start = file.read(9)
    file.seek(0)
    if start[8:] == b"{":  # JSON, after its length in 8 bytes, which may look like a pickle's
        return _read_safetensors
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    if start.startswith(pickle.PROTO):
        return _read_legacy
    raise WeightsError(f"{'not' if start else 'empty, not'} a .pth or .safetensors file")


def _read_safetensors(file: io.BufferedReader) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    with safe_open(file.name, "numpy") as opened:
        for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
            if opened.get_slice(key).get_dtype() == "BF16":
                raise WeightsError(NO_BFLOAT16)
            try:
                tensors[key] = opened.get_tensor(key)
            except TypeError as error:
                raise WeightsError(f"{key} has a type that NumPy lacks ({error})") from error
    return tensors


def _read_zip(file: io.BufferedReader) -> object:
    """Read the format of PyTorch 1.6 and later: the pickle is a member, and so is each storage."""
    with zipfile.ZipFile(file) as archive:
        # All members lie in one folder, whose name is arbitrary.
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in members:
            raise WeightsError("a zip archive, but not one of PyTorch's; wanted data.pkl in it")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise WeightsError("compressed, which PyTorch does not; a few bytes could fill memory")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise WeightsError("saved on a big-endian machine, which is not supported")

        @functools.cache  # tensors may share one
        def read_storage(dtype: str, key: str, count: int) -> Array:
            storage = np.frombuffer(archive.read(members[f"data/{key}"]), dtype)
            if storage.size != count:
                raise WeightsError(f"damaged: storage {key} has {storage.size} values, not {count}")
            return storage

        return _Unpickler(io.BytesIO(archive.read(members["data.pkl"])), read_storage).load()


def _read_legacy(file: io.BufferedReader) -> object:
    """Read the format before that: five pickles, then the storages that the fourth refers to."""
    storages: dict[str, Array] = {}
    file_size = os.fstat(file.fileno()).st_size

    def make_storage(dtype: str, key: str, count: int) -> Array:
        if count * np.dtype(dtype).itemsize > file_size:
            raise WeightsError(f"damaged: storage {key} is said to have {count} values")
        return storages.setdefault(key, np.zeros(count, dtype))  # filled below

    def load() -> Any:
        return _Unpickler(file, make_storage).load()

    if load() != LEGACY_MAGIC:
        raise WeightsError("a pickle, but not one of PyTorch's; wanted what torch.save wrote")
    _, machine, state, keys = load(), load(), load(), load()
    if not machine["little_endian"]:
        raise WeightsError("saved on a big-endian machine, which is not supported")
    if set(keys) != set(storages):
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


class _StateDict(dict[Any, Any]):
    """What stands for an OrderedDict; its further state, ``_metadata``, is dropped."""

    def __setstate__(self, _: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Load a dictionary of tensors, and refuse to call anything else.

    Parameters
    ----------
    file : binary file
        At the pickle's start.
    make_storage : callable
        Returns the storage that a tensor lies in.
    """

    def __init__(self, file: BinaryIO, make_storage: MakeStorage) -> None:
        super().__init__(file, encoding="utf-8")
        self.make_storage = make_storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for one of the few names that are known."""
        match module, name:
            case "collections", "OrderedDict":
                return _StateDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self.rebuild_tensor
            case "torch._utils", "_rebuild_parameter":
                return self.rebuild_parameter
            case "torch", "BFloat16Storage":
                raise WeightsError(NO_BFLOAT16)
            case "torch", _ if name in STORAGES:
                return STORAGES[name]
        asked = f"{module}.{name}"
        raise WeightsError(f"refused, because loading it would call {asked!r:.80}; wanted tensors")

    def persistent_load(self, pid: Any) -> Array:
        """Return the storage that the pickle refers to; a view is None, in the older format."""
        match pid:
            case "storage", str(dtype), str(key), str(), int(count), *view:
                if dtype in STORAGES.values() and count >= 0 and not any(view):
                    return self.make_storage(dtype, key, count)
        raise WeightsError(f"damaged: no storage is described by {pid!r:.80}")

    def rebuild_tensor(
        self, storage: Array, offset: int, size: Shape, stride: Shape, *_: object
    ) -> Array:
        """Return a view of a storage, once it is certain that it lies within."""
        described = f"offset {offset!r:.20}, shape {size!r:.80} and strides {stride!r:.80}"
        if (
            not isinstance(storage, np.ndarray)
            or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
            or len(size) != len(stride)
        ):
            raise WeightsError(f"damaged: no tensor has {described}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # A stride of 0 makes much of little, hence the second condition.
        if (0 not in size and last >= storage.size) or math.prod(size) > storage.size:
            raise WeightsError(f"damaged: its storage of {storage.size} values has no {described}")
        item = storage.itemsize
        strides = [step * item for step in stride]
        return np.ndarray(size, storage.dtype, storage.data, offset * item, strides)

    def rebuild_parameter(self, tensor: Array, *_: object) -> Array:
        """Return a parameter's values."""
        return tensor
