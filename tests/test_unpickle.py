"""Pickles that are made to crash, to fill memory or to take forever, each in both of the formats.

They are read in a process of their own, with limits on its memory and time: where one of them still
ends it, the next process goes on with those that are left.
"""

import importlib.util
import io
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.checkpoint import read_checkpoint
from minires.torch_files import LEGACY_MAGIC
from minires.unpickle import INERT, Fields, unpickle

with_limits = pytest.mark.skipif(
    importlib.util.find_spec("resource") is None, reason="there are no limits for a process here"
)

READ_EACH = """
import resource, signal, sys
from minires.checkpoint import read_checkpoint
from minires.errors import WeightsError

pages = int(open("/proc/self/statm").read().split()[0]) if sys.platform == "linux" else 0
if pages:
    most = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sys.argv[1:]:
    signal.setitimer(signal.ITIMER_PROF, 10)  # seconds of this process, however busy the machine
    try:
        read_checkpoint(path)
        print("it was read", flush=True)
    except WeightsError as error:
        print(repr(str(error).removeprefix(f"{path}: ")), flush=True)
"""


def many(count: int, opcodes: bytes) -> bytes:
    return opcodes * count


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def call(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + arguments + b"tR"


def storage(key: str, count: int) -> bytes:
    about = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return b"(" + about + b"J" + struct.pack("<i", count) + b"tQ"


def rebuild(offset: bytes, size: bytes, stride: bytes) -> bytes:
    return call("torch._utils", "_rebuild_tensor_v2", storage("0", 0) + offset + size + stride)


NESTED = b")" + many(200_000, b"\x85")  # a tuple in a tuple in a tuple
DOUBLED = b")" + many(100, b"q\x00h\x00\x86")  # a pair of a pair of a pair: 2**100 are written out
LARGE = b"\x8a\xff" + b"\x7f" * 255  # a number of 2,039 bits
MANY_LARGE = b"(" + LARGE + b"q\x01" + many(100_000, b"h\x01") + b"t"
COLLIDING = b"".join(
    b"\x8a\x0a" + (number * (2**61 - 1)).to_bytes(10, "little") + b"N"
    for number in range(1, 60_000)
)
ORDERED_DICT = call("collections", "OrderedDict", b"")

FIELDS = call("argparse", "Namespace", b"")
LONG_LIST = b"(" + 5_000 * b"N" + b"t"
LONG_FIELDS = b"}(" + b"".join(text(str(number)) + b"N" for number in range(5_000)) + b"u"

# Each with what the sentence says.
PICKLES: dict[str, tuple[bytes, str]] = {
    "nested, a key": (b"}" + NESTED + b"K\x01s", "wanted text"),
    "nested, a key among others": (b"}(" + NESTED + b"K\x01u", "wanted text"),
    "nested, a key of an OrderedDict": (
        call("collections", "OrderedDict", b"](" + NESTED + b"K\x01\x86e"),
        "wanted text",
    ),
    "nested, in a set": (b"\x8f(" + NESTED + b"\x90", "EMPTY_SET"),
    "nested, in a frozenset": (b"(" + NESTED + b"\x91", "FROZENSET"),
    "nested, a storage": (NESTED + b"Q", "no storage"),
    "nested, a storage's type": (
        b"(" + text("storage") + NESTED + text("0") + text("cpu") + b"K\x00tQ",
        "no storage",
    ),
    "nested, a name": (NESTED + NESTED + b"\x93", "would call"),
    "nested, a tensor": (b"}" + text("a") + NESTED + b"s", "is a tuple"),
    "nested, an offset": (rebuild(NESTED, b")", b")"), "no tensor"),
    "nested, a size": (rebuild(b"K\x00", NESTED, NESTED), "no tensor"),
    "nested, a state": (ORDERED_DICT + NESTED + b"b" + text("a") + NESTED + b"s", "is a tuple"),
    "nested lists": (many(100_000, b"]") + many(99_999, b"a"), "holds a list"),
    "doubled, a key": (b"}" + DOUBLED + b"K\x01s", "wanted text"),
    "doubled, in a frozenset": (b"(" + DOUBLED + b"\x91", "FROZENSET"),
    "doubled, a storage": (DOUBLED + b"Q", "no storage"),
    "doubled, an offset": (rebuild(DOUBLED, b")", b")"), "no tensor"),
    "doubled, a size": (rebuild(b"K\x00", DOUBLED, DOUBLED), "no tensor"),
    "doubled, a tensor": (b"}" + text("a") + DOUBLED + b"s", "is a tuple"),
    "a memo of 4 GB": (b"K\x01r\x00\x00\x00\x10", "holds a int"),
    "a memo of 8 GB, in text": (b"K\x01p500000000\n", "instruction PUT"),
    "a memo that was not made": (b"j\x00\x00\x00\x10", "damaged"),
    "text of 4 GB": (b"X\xf0\xff\xff\xff", "damaged"),
    "text without end": (b"\x8d" + bytes([0, 0, 0, 0, 0, 0, 0, 64]), "damaged"),
    "bytes of 4 GB": (b"B\xf0\xff\xff\xff", "damaged"),
    "a bytearray without end": (b"\x96" + bytes([0, 0, 0, 0, 0, 0, 0, 64]), "damaged"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7f", "damaged"),
    "a number in text": (b"I" + b"9" * 10_000 + b"\n", "damaged"),
    "a frame without end": (b"\x95" + bytes([0, 0, 0, 0, 0, 0, 0, 64]) + b"N", "holds a NoneType"),
    "a name without end": (b"c" + b"a" * 1_000_000 + b"\nb\n", "would call"),
    "too many instructions": (many(600_000, b"N"), "more than 500000"),
    "keys that collide": (b"}(" + COLLIDING + b"u", "wanted text"),
    "a size whose product takes hours": (rebuild(b"K\x00", MANY_LARGE, b"h\x01"), "no tensor"),
    "many dimensions": (rebuild(b"K\x00", MANY_LARGE + b"q\x02", b"h\x02"), "no tensor"),
    "numbers as large as can be": (rebuild(LARGE, LARGE + b"\x85", LARGE + b"\x85"), "no tensor"),
    "many storages": (
        b"(" + b"".join(storage(str(number), 250_000) for number in range(3000)) + b"l",
        "damaged",
    ),
    "a storage of a long name": (storage("a" * 1_000_000, 1), "damaged"),
    "an empty stack": (b"\x85", "empty stack"),
    "no MARK": (b"t", "damaged"),
    "items of nothing": (b"NNNs", "no dictionary"),
    "items of a tuple": (b")NNs", "no dictionary"),
    "an item without a value": (b"}(Nu", "damaged"),
    "appended to nothing": (b"NNa", "no list"),
    "a call of text": (text("a") + b")R", "no function"),
    "a call of a tensor's type": (b"ctorch\nFloatStorage\n)R", "no function"),
    "a call without arguments": (b"ccollections\nOrderedDict\nNR", "no function"),
    "an extension": (b"\x82\x01", "instruction EXT1"),
    "an object": (b"ccollections\nOrderedDict\n)\x81", "instruction NEWOBJ"),
    "an instance": (b"(icollections\nOrderedDict\n", "instruction INST"),
    "a doubled top": (b"N2", "instruction DUP"),
    "a state of a function": (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "no dictionary"),
    "a list that is copied": (
        LONG_LIST + b"q\x01" + 101 * call("argparse", "Namespace", b"h\x01"),
        "copies more than 500000",
    ),
    "fields that are copied": (LONG_FIELDS + b"q\x01" + 101 * (FIELDS + b"h\x01b"), "copies more"),
    "a dictionary that is copied": (
        b"]("
        + 5_000 * (text("a") + b"N\x86")
        + b"eq\x01"
        + 101 * call("collections", "OrderedDict", b"h\x01"),
        "copies more",
    ),
    "a model that holds itself": (
        FIELDS + b"q\x01}(" + text("a") + b"h\x01" + text("b") + b"h\x01ub",
        "more parts",
    ),
    "a model of itself": (FIELDS + b"q\x01}" + text("_modules") + b"h\x01sb", "more parts"),
    "a part of a long name": (
        FIELDS + b"}" + text("a" * 1_000_000) + FIELDS + b"sb",
        "more parts",
    ),
    "an attribute of a class": (b"ctorch.nn.modules.conv\nConv2d\n}b", "no dictionary"),
    "an object of a function": (b"ctorch._utils\n_rebuild_tensor_v2\n)\x81", "instruction NEWOBJ"),
    "an object of a storage": (b"ctorch\nFloatStorage\n)\x81", "instruction NEWOBJ"),
    "a neighbour of what is known": (b"ctorch.nn.modules.conv\n_ConvNd\n", "would call"),
    "a module that is known": (b"ctorch\nload\n", "would call"),
    "what looks like TorchScript": (b"ctorch\n__torch__.a\n", "would call"),
    "an unknown instruction": (b"\xff", "damaged"),
    "no end": (b"N" * 10, "damaged"),
}
NO_END = {"no end"}


def whole(name: str) -> bytes:
    return b"\x80\x02" + PICKLES[name][0] + (b"" if name in NO_END else b".")


def in_zip(name: str, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", whole(name))
        archive.writestr("any/data/0", b"")
        archive.writestr("any/data/many", bytes(1_000_000))


def legacy_start() -> bytes:
    machine = {"little_endian": True}
    return b"".join(pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, 1001, machine))


def in_legacy(name: str, path: Path) -> None:
    """Write it where the tensors are described; there is room for storages."""
    keys = b"" if name in NO_END else pickle.dumps([], protocol=2) + bytes(1_000_000)
    path.write_bytes(legacy_start() + whole(name) + keys)


def first_in_legacy(name: str, path: Path) -> None:
    path.write_bytes(whole(name) + (b"" if name in NO_END else bytes(1_000_000)))


def overlapping(path: Path) -> None:
    """Write 2,000 members that are all the same 1 MB of the file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02}.")
        archive.writestr("any/data/0", bytes(1_000_000))
        first = archive.getinfo("any/data/0")
        for number in range(1, 2000):
            member = zipfile.ZipInfo(f"any/data/{number}")
            member.header_offset = first.header_offset
            member.compress_size = member.file_size = first.file_size
            member.CRC = first.CRC
            archive.filelist.append(member)


def many_members(path: Path) -> None:
    """Write an archive that lists one member 300,000 times, of which zipfile makes 200 MB."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02}.")
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    members = 300_000 * whole[start:end]
    size = struct.pack("<I", len(members))
    path.write_bytes(whole[:start] + members + whole[end : end + 12] + size + whole[end + 16 :])


def large_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02" + b"X\xff\xff\xff\x00" + bytes(2**24) + b".")


def retyped(path: Path) -> None:
    """Describe one storage twice, as values of two types: each would take its size anew."""
    other = storage("0", 0).replace(b"FloatStorage", b"DoubleStorage")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02(" + storage("0", 0) + other + b"l.")
        archive.writestr("any/data/0", b"")


WRITERS = {"zip": in_zip, "legacy": in_legacy, "first of legacy": first_in_legacy}
NESTED_KEYS = {"nested": NESTED, "doubled": DOUBLED}
ARCHIVES = {
    "overlapping": (overlapping, "members overlap"),
    "many members": (many_members, "list of members"),
    "a large pickle": (large_pickle, "more than 16777216 bytes"),
    "one storage of two types": (retyped, "not 0 of float64"),
}


def outcomes(paths: list[Path]) -> dict[Path, str]:
    """Read each file in a child process: the sentence, or how the process ended."""
    told: dict[Path, str] = {}
    while len(told) < len(paths):
        left = paths[len(told) :]
        child = subprocess.run(
            [sys.executable, "-c", READ_EACH, *map(str, left)],
            capture_output=True,
            text=True,
            timeout=500,
        )
        lines = child.stdout.splitlines()
        told |= zip(left, lines, strict=False)
        if len(lines) < len(left):
            told[left[len(lines)]] = f"ended with status {child.returncode}: {child.stderr[-300:]}"
    return told


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for format_name, write in WRITERS.items():
        for name in PICKLES:
            paths[f"{format_name}, {name}"] = folder / f"{len(paths)}.pth"
            write(name, paths[f"{format_name}, {name}"])
    for name in NESTED_KEYS:
        paths[f"keys, {name}"] = folder / f"{len(paths)}.pth"
        path = paths[f"keys, {name}"]
        path.write_bytes(legacy_start() + b"\x80\x02}.\x80\x02](" + NESTED_KEYS[name] + b"e.")
    for name, (make, _) in ARCHIVES.items():
        paths[name] = folder / f"{len(paths)}.pth"
        make(paths[name])
    told = outcomes(list(paths.values()))
    return {name: told[path] for name, path in paths.items()}


def check(sentence: str, *words: str) -> None:
    """Look for one sentence of these words, of which one is enough."""
    assert sentence.startswith(("'", '"')), sentence
    assert "\\n" not in sentence
    assert len(sentence) < 500
    assert any(word in sentence for word in words), sentence


@with_limits
@pytest.mark.parametrize("format_name", WRITERS)
@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused(
    name: str, format_name: str, sentences: dict[str, str]
) -> None:
    words = [PICKLES[name][1]]
    if format_name != "zip":  # what is harmless by itself is not what has to stand there
        words += ["do not belong together", "not one of PyTorch's", "damaged", "incomplete"]
    check(sentences[f"{format_name}, {name}"], *words)


@with_limits
@pytest.mark.parametrize("name", NESTED_KEYS)
def test_hostile_names_of_storages(name: str, sentences: dict[str, str]) -> None:
    check(sentences[f"keys, {name}"], "do not belong together")


@with_limits
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_lies(name: str, sentences: dict[str, str]) -> None:
    check(sentences[name], ARCHIVES[name][1])


# What is known but not made


@pytest.mark.parametrize(
    "made",
    [
        call("argparse", "Namespace", b"K\x01"),
        b"cargparse\nNamespace\n)\x81",
        call("numpy._core.multiarray", "scalar", call("numpy", "dtype", text("f8"))),
        call("builtins", "set", b"](K\x01K\x02e"),
        b"c__torch__.torchvision.models.resnet\nBottleneck\n)\x81",
    ],
)
def test_an_object_is_its_fields(made: bytes) -> None:
    def nothing(*_: Any) -> Any:
        raise AssertionError("there is no storage")

    whole = b"\x80\x02" + made + b"}(" + text("a") + b"K\x07" + text("update") + b"K\x08ub."
    found = unpickle(io.BytesIO(whole), nothing)
    assert type(found) is Fields
    assert found == {"a": 7, "update": 8}
    assert callable(found.update)
    assert not vars(found)


def test_whatever_is_known_makes_fields_alone() -> None:
    names = {(module, name) for module in INERT for name in INERT[module]}
    assert len(names) > 25
    dangerous = {"eval", "exec", "open", "getattr", "system", "load", "partial", "_reconstructor"}
    assert not dangerous & {name for _, name in names}
    for module, name in names:
        pickle_of_it = io.BytesIO(b"\x80\x02" + call(module, name, b"") + b".")
        made = unpickle(pickle_of_it, lambda *_: np.zeros(0))
        assert type(made) is Fields


# What Python's pickle writes, as torch.save has it


class Tensor:
    """Pickled as torch does it: a call of a function of torch's, about a storage outside."""

    def __init__(self, values: np.ndarray[Any, Any], key: str) -> None:
        self.values = values
        self.key = key

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        stride = tuple(step // self.values.itemsize for step in self.values.strides)
        arguments = (Storage(self), 0, self.values.shape, stride, False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class Storage:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        tensor = value.tensor
        kind = sys.modules["torch"].FloatStorage
        return ("storage", kind, tensor.key, "cpu", tensor.values.size)


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of torch's names, in which pickle finds what it is about to name."""

    def _rebuild_tensor_v2() -> None:
        pass

    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    _rebuild_tensor_v2.__module__ = "torch._utils"
    storage = type("FloatStorage", (), {"__module__": "torch"})
    for name, attributes in {
        "torch": {"FloatStorage": storage},
        "torch._utils": {"_rebuild_tensor_v2": _rebuild_tensor_v2},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("torch_names")
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_training_checkpoint_of_any_protocol(protocol: int, tmp_path: Path) -> None:
    tensors = {f"layer.{number}": np.full((2, 3), number, np.float32).T for number in range(300)}
    state = OrderedDict((name, Tensor(tensors[name], name)) for name in tensors)
    state._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})  # type: ignore[attr-defined]
    history = {"lr": 0.1, "betas": (0.9, 0.999), "params": list(range(300)), "foreach": None}
    state_of_optimizer = {number: {"step": 70_000, "large": 2**40, "on": True} for number in (0, 1)}
    checkpoint = {
        "epoch": 90,
        "best": -0.5,
        "model": state,
        "optimizer": {"state": state_of_optimizer, "param_groups": [history]},
        "ema": state["layer.7"],
        "ü": "ß",
    }
    file = io.BytesIO()
    Pickler(file, protocol).dump(checkpoint)
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("any/data.pkl", file.getvalue())
        for name, values in tensors.items():
            archive.writestr(f"any/data/{name}", values.tobytes("A"))
    found = read_checkpoint(tmp_path / "weights.pth")
    assert list(found) == list(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(found[name], values, strict=True)

    file.seek(0)
    made = unpickle(file, lambda dtype, key, count: np.zeros(count, dtype))
    assert made["optimizer"] == checkpoint["optimizer"]
    assert made["epoch"] == 90
    assert made["best"] == -0.5
    assert made["ü"] == "ß"
