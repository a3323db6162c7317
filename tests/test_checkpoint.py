"""Files are made by hand here, opcode by opcode: torch is not needed, and any lie can be told."""

import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from minires.checkpoint import (
    MOST_FILE,
    check_state_dict,
    files_of,
    read_checkpoint,
    read_metadata,
)
from minires.errors import WeightsError
from minires.torch_files import LEGACY_MAGIC
from tests.seeded_weights import torchvision_shapes

Array = npt.NDArray[Any]
Storages = Mapping[str, Array]


@dataclass
class Global:
    """Something that a pickle names."""

    module: str
    name: str


@dataclass
class Call:
    """What a pickle gets from calling something."""

    function: Any
    arguments: tuple[Any, ...]


@dataclass
class Build:
    """Something whose state a pickle sets."""

    thing: Any
    state: Any


@dataclass
class Persistent:
    """Something that lies outside the pickle."""

    pid: Any


def opcodes(value: Any) -> bytes:
    match value:
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + pickle.REDUCE
        case Build(thing, state):
            return opcodes(thing) + opcodes(state) + pickle.BUILD
        case Persistent(pid):
            return opcodes(pid) + pickle.BINPERSID
        case bytes():
            return pickle.SHORT_BINBYTES + bytes([len(value)]) + value
        case tuple():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
        case dict():
            items = b"".join(opcodes(key) + opcodes(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    return pickle.dumps(value, protocol=2)[2:-1]  # less the beginning and the end


def pickled(value: Any) -> bytes:
    return pickle.PROTO + b"\x02" + opcodes(value) + pickle.STOP


KINDS = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
ORDERED_DICT = Call(Global("collections", "OrderedDict"), ())


def tensor(
    offset: Any,
    size: Any,
    stride: Any,
    *,
    key: Any = "0",
    count: Any = 6,
    kind: str = "FloatStorage",
) -> Call:
    storage = Persistent(("storage", Global("torch", kind), key, "cpu", count))
    arguments = (storage, offset, size, stride, False, ORDERED_DICT)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def tensors(arrays: Mapping[str, Array]) -> tuple[dict[str, Call], Storages]:
    """Describe arrays as torch does, each in a storage of its own."""
    kinds = {np.dtype(dtype): kind for kind, dtype in KINDS.items()}
    state, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        key, item = str(number), array.itemsize
        size, stride = array.shape, tuple(step // item for step in array.strides)
        kind = kinds[array.dtype]
        state[name] = tensor(0, size, stride, key=key, count=array.size, kind=kind)
        storages[key] = array
    return state, storages


def write_zip(path: Path, state: Any, storages: Storages, byteorder: bytes = b"little") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any name/data.pkl", pickled(state))
        archive.writestr("any name/byteorder", byteorder)
        for key, storage in storages.items():
            archive.writestr(f"any name/data/{key}", storage.tobytes())
        archive.writestr("any name/version", b"3\n")


def write_legacy(path: Path, state: Any, storages: Storages, little_endian: bool = True) -> None:
    machine = {"protocol_version": 1001, "little_endian": little_endian}
    with path.open("wb") as file:
        for part in (LEGACY_MAGIC, 1001, machine, state):
            file.write(pickled(part))
        file.write(pickle.dumps(sorted(storages), protocol=2))
        for _, storage in sorted(storages.items()):
            file.write(storage.size.to_bytes(8, "little") + storage.tobytes())


def write_arrays(path: Path, arrays: Mapping[str, Array], format_name: str) -> None:
    if format_name == "safetensors":
        save_file(dict(arrays), path)
    else:
        WRITERS[format_name](path, *tensors(arrays))


WRITERS: dict[str, Callable[..., None]] = {"zip": write_zip, "legacy": write_legacy}
FORMATS = [*WRITERS, "safetensors"]
SIX = {"0": np.arange(6, dtype=np.float32)}

by_pytorch = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
in_any_format = pytest.mark.parametrize("format_name", FORMATS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.any"


def refusal(path: Path, *words: str) -> str:
    """Return the one sentence with which a file is refused."""
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) <= len(str(path)) + 300
    for word in words:
        assert word in text
    return text


def assert_same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    assert list(found) == list(wanted)
    for key, array in wanted.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array, strict=True)


@in_any_format
def test_all_types_and_shapes_come_back(format_name: str, file: Path) -> None:
    arrays: dict[str, Array] = {
        f"{dtype.__name__} {shape}": np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for dtype in KINDS.values()
        for shape in [(2, 3), (5,), (), (4, 1, 2), (0, 3)]
    }
    write_arrays(file, arrays, format_name)
    found = read_checkpoint(file)
    assert_same({key: found[key] for key in arrays}, arrays)  # safetensors has an order of its own
    assert len(found) == len(arrays)
    assert read_metadata(file) == {}


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_itself_is_understood(legacy: bool, file: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()
    state["0.weight"] = state["0.weight"].permute(1, 0, 3, 2)
    state["parameter"] = torch.nn.Parameter(torch.arange(4.0))
    state["view"] = state["parameter"].detach()[2:]
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    assert_same(read_checkpoint(file), {k: v.detach().numpy() for k, v in state.items()})


@by_pytorch
def test_tensors_may_share_a_storage(write: Callable[..., None], file: Path) -> None:
    parameter = Global("torch._utils", "_rebuild_parameter")
    state = {
        "all": tensor(0, (2, 3), (3, 1)),
        "transposed": tensor(0, (3, 2), (1, 3)),
        "end": tensor(4, (2,), (1,)),
        "last": tensor(5, (), ()),
        "spread": tensor(2, (3,), (0,)),
        "parameter": Call(parameter, (tensor(1, (2,), (2,)), True, ORDERED_DICT)),
    }
    write(file, state, SIX)
    values = SIX["0"]
    found = read_checkpoint(file)
    assert all(np.shares_memory(found["all"], found[key]) for key in state)
    assert_same(
        found,
        {
            "all": values.reshape(2, 3),
            "transposed": values.reshape(2, 3).T,
            "end": values[4:],
            "last": values[5].reshape(()),
            "spread": values[[2, 2, 2]],
            "parameter": values[1:4:2],
        },
    )


@by_pytorch
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_state_dict_may_be_wrapped(wrapper: str, write: Callable[..., None], file: Path) -> None:
    write(file, {"epoch": 90, wrapper: {"a": tensor(0, (6,), (1,))}}, SIX)
    assert_same(read_checkpoint(file), {"a": SIX["0"]})


# 1, -2, the largest, infinity, and the least above 0, as the upper halves of float32
BFLOAT16 = np.array([0x3F80, 0xC000, 0x7F7F, 0x7F80, 0x0001, 0x8000], np.uint16)
WIDENED = np.array([1, -2, 3.3895313892515355e38, np.inf, 2.0**-133, -0.0], np.float32)


@in_any_format
def test_bfloat16_becomes_float32(format_name: str, file: Path) -> None:
    if format_name == "safetensors":
        safetensors_of("BF16", BFLOAT16.nbytes, [2, 3], BFLOAT16.tobytes())(file)
    else:
        state = {"a": tensor(0, (2, 3), (3, 1), kind="BFloat16Storage")}
        WRITERS[format_name](file, state, {"0": BFLOAT16})
    assert_same(read_checkpoint(file), {"a": WIDENED.reshape(2, 3)})
    assert np.signbit(read_checkpoint(file)["a"][1, 2])


def test_a_folder_is_no_file_but_names_one(tmp_path: Path) -> None:
    for name in ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"a folder; .*, such as model\.s.*\.index\.json$"):
        read_checkpoint(tmp_path)


def test_an_index_names_the_files(file: Path) -> None:
    save_file({"a": np.ones(2)}, file.parent / "a-00001-of-00002.safetensors")
    write_zip(file.parent / "b.bin", *tensors({"b": np.zeros(3)}))
    index_of("a-00001-of-00002.safetensors", "b.bin", "b.bin")(file)
    assert_same(read_checkpoint(file), {"a": np.ones(2), "b": np.zeros(3)})
    assert read_metadata(file) == {}
    names = ["weights.any", "a-00001-of-00002.safetensors", "b.bin"]
    assert [Path(path).name for path in files_of(file)] == names
    assert files_of(file.parent / "b.bin") == [str(file.parent / "b.bin")]
    refusal(file.parent / names[1], "one of several parts", "index, a.safetensors.index.json")
    whole = (file.parent / names[1]).rename(file.parent / "a-00001-of-00001.safetensors")
    assert list(read_checkpoint(whole)) == ["a"]


@by_pytorch
def test_metadata_of_a_state_dict_is_dropped(write: Callable[..., None], file: Path) -> None:
    lies = {"_metadata": {"": {"version": 1}}, "items": 1, "__class__": 2}
    write(file, Build(ORDERED_DICT, lies), {})
    found = read_checkpoint(file)
    assert found == {}
    assert callable(found.items)


@in_any_format
def test_memory_holds_one_copy(format_name: str, file: Path) -> None:
    array = np.ones(2**20, np.float32)
    write_arrays(file, {"a": array, "b": array + 1}, format_name)
    tracemalloc.start()
    state = check_state_dict(read_checkpoint(file), {"a": (2**20,), "b": (2**20,)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(state) == 2
    # The check for NaN makes a boolean for each value of one array.
    assert 2 * array.nbytes <= peak <= 2.3 * array.nbytes


HOSTILE: dict[str, Callable[[Any], Any]] = {
    "at the top": lambda attack: attack,
    "as a value": lambda attack: {"a": attack},
    "deep inside": lambda attack: {"a": {"b": (1, {"c": (attack,)})}},
    "as an argument": lambda attack: Call(Global("collections", "OrderedDict"), (attack,)),
    "as a state": lambda attack: Build(ORDERED_DICT, {"_metadata": attack}),
    "as a storage": lambda attack: Persistent(("storage", attack, "0", "cpu", 6)),
    "as a size": lambda attack: tensor(0, (attack,), (1,)),
}


def attacks(marker: Path) -> list[Call]:
    """Return calls that leave `marker` behind where they are carried out."""
    command, text = f"echo > {marker}", f"open({str(marker)!r}, 'w').close()"
    system = Global("os", "system")
    return [
        Call(system, (command,)),
        Call(Global("builtins", "eval"), (text,)),
        Call(Global("builtins", "exec"), (text,)),
        Call(Call(Global("functools", "partial"), (system, command)), ()),
        Call(Call(Global("builtins", "getattr"), (Global("os", ""), "system")), (command,)),
    ]


@by_pytorch
@pytest.mark.parametrize("place", HOSTILE)
def test_no_code_is_run(place: str, write: Callable[..., None], file: Path) -> None:
    marker = file.parent / "it_ran"
    for attack in attacks(marker):
        write(file, HOSTILE[place](attack), SIX)
        refusal(file, "refused", "would call")
        assert not marker.exists()


def test_these_attacks_would_run_elsewhere(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    for attack in attacks(marker)[:4]:
        pickle.loads(pickled({"a": attack}))
        assert marker.exists()
        marker.unlink()


@by_pytorch
def test_a_pickle_cannot_change_the_reader(write: Callable[..., None], file: Path) -> None:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    harm = dict.fromkeys(("__code__", "__defaults__", "__setstate__", "dtype", "x"), 0)
    for thing in (
        rebuild,
        Global("collections", "OrderedDict"),
        Global("torch", "FloatStorage"),
        tensor(0, (6,), (1,)),
        tensor(0, (6,), (1,)).arguments[0],
    ):
        for state in (harm, (None, harm), (1, (6,), "f4", False, b"")):
            write(file, {"a": Build(thing, state)}, SIX)
            refusal(file)
    write(file, {"a": tensor(0, (6,), (1,))}, SIX)
    assert_same(read_checkpoint(file), {"a": SIX["0"]})


@by_pytorch
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (6, (), ()),
        (0, (2, 3), (4, 1)),
        (0, (2, 3), (3, 2)),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (-2, -3), (1, 1)),
        (0, (2, 3), (1,)),
        (0, (2,), (3, 1)),
        (0, (7,), (0,)),
        (0, (2**62, 2**62), (0, 0)),
        (2**62, (1,), (1,)),
        (0, (2,), (2**62,)),
        (0, (2, 2), (2**63, 2**63)),
        (2**64 - 5, (2,), (1,)),
        (0, (2,), (2**64 - 1,)),
        (7, (0,), (1,)),
        (0.0, (2,), (1,)),
        (0, (2.0,), (1,)),
        (0, ("2",), (1,)),
        ("0", (2,), (1,)),
        (0, 2, 1),
        (None, None, None),
        (0, (1,) * 99, (1,) * 99),
    ],
)
def test_a_tensor_must_lie_in_its_storage(
    offset: Any, size: Any, stride: Any, write: Callable[..., None], file: Path
) -> None:
    write(file, {"a": tensor(offset, size, stride)}, SIX)
    refusal(file, "damaged")


@by_pytorch
@pytest.mark.parametrize(
    "pid",
    [
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", 7),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", 5),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", -1),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**62),
        ("storage", Global("torch", "DoubleStorage"), "0", "cpu", 6),
        ("storage", Global("torch", "FloatStorage"), "1", "cpu", 6),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("1", 0, 2)),
        ("storage", Global("torch", "FloatStorage"), "0", "cpu"),
        ("storage", "object", "0", "cpu", 6),
        ("storage", Global("torch._utils", "_rebuild_tensor_v2"), "0", "cpu", 6),
        ("module", Global("torch", "FloatStorage"), "0", "cpu", 6),
        "storage",
        None,
    ],
)
def test_a_storage_must_be_as_described(pid: Any, write: Callable[..., None], file: Path) -> None:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    state = {"a": Call(rebuild, (Persistent(pid), 0, (2,), (1,), False, ORDERED_DICT))}
    write(file, state, SIX)
    refusal(file)


@by_pytorch
def test_a_tensor_needs_a_storage(write: Callable[..., None], file: Path) -> None:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    for nothing in ("123456", (1, 2, 3), ORDERED_DICT, None):
        write(file, {"a": Call(rebuild, (nothing, 0, (2,), (1,)))}, SIX)
        refusal(file, "damaged")


@in_any_format
def test_every_truncation_is_noticed(format_name: str, file: Path) -> None:
    write_arrays(file, {"a": np.ones((2, 3), np.float32), "b": np.arange(4)}, format_name)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        refusal(file)
    file.write_bytes(whole)
    assert len(read_checkpoint(file)) == 2


def test_a_changed_byte_is_noticed_in_the_zip_format(file: Path) -> None:
    write_zip(file, *tensors({"a": np.full(64, 1.5, np.float32)}))
    whole = file.read_bytes()
    middle = whole.index(b"\xc0\x3f") + 40
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    refusal(file, "damaged")


def not_pytorch_zip(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def compressed_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("any/data.pkl", pickled({}))


def index_of(*names: str) -> Callable[[Path], object]:
    """Return what writes an index that names these files."""
    told = {"weight_map": dict(zip(map(str, range(len(names))), names, strict=True))}
    return lambda path: path.write_text(json.dumps(told))


def safetensors_of(
    dtype: str, size: int, shape: Sequence[int] = (8,), values: bytes = b""
) -> Callable[[Path], object]:
    """Return what writes a tensor of a type that NumPy may not have."""
    sides = list(shape)
    header = f'{{"a":{{"dtype":"{dtype}","shape":{sides},"data_offsets":[0,{size}]}}}}'.encode()
    start = len(header).to_bytes(8, "little") + header
    return lambda path: path.write_bytes(start + values.ljust(size, b"\0"))


def safetensors_header(header: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(len(header).to_bytes(8, "little") + header)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "a folder; give"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "text": (lambda path: path.write_text("<html>not found</html>"), "not a .pth"),
    "JPEG": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(99)), "not a .pth"),
    "npz": (not_pytorch_zip, "not one of PyTorch's"),
    "other pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not one of PyTorch's"),
    "compressed": (compressed_zip, "compressed"),
    "big-endian": (lambda path: write_zip(path, {}, {}, b"big"), "big-endian"),
    "big-endian, legacy": (lambda path: write_legacy(path, {}, {}, False), "big-endian"),
    "list": (lambda path: write_zip(path, (1, 2), {}), "holds a tuple"),
    "numbers": (lambda path: write_zip(path, {"epoch": 3}, {}), "'epoch' is a int"),
    "numbered": (lambda path: write_zip(path, {7: tensor(0, (6,), (1,))}, SIX), "its 7 is"),
    "JSON": (lambda path: path.write_text("{}"), "JSON, but not the index"),
    "an index of folders": (index_of("../a"), "files in other folders"),
    "an index of a folder": (index_of(".."), "a folder; give"),
    "an index of too many": (index_of(*map(str, range(65))), "too many files"),
    "an index of itself": (index_of("weights.any"), "an index that an index names"),
    "an index of what is missing": (index_of("b.safetensors"), "b.safetensors: cannot be read"),
    "bfloat16 of another size": (
        lambda path: write_zip(path, {"a": tensor(0, (6,), (1,), kind="BFloat16Storage")}, SIX),
        "has 12 values of float32, not 6",
    ),
    "float8": (safetensors_of("F8_E4M3", 8), "a has the type F8_E4M3"),
    "float4": (safetensors_of("F4", 4), "a has the type F4, which is not read; save it as F32"),
    "float6": (safetensors_of("F6_E2M3", 6), "a has the type F6_E2M3, which is not read"),
    "a type of a million letters": (safetensors_of("F" * 10**6, 7), "has the type FFF"),
    "no type": (safetensors_of('","b":"', 7), "has the type"),
    "a header that is a list": (safetensors_header(b'{"a":[1]}'), "does not describe tensors"),
    "a header that is nested": (safetensors_header(b'{"a":' * 10**5), "damaged"),
    "a header that is cut": (safetensors_header(b'{"a":{"dtype":"F32"'), "damaged"),
    "a long name": (
        safetensors_header(
            b'{"%s":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}' % (b"a" * 10**6)
        ),
        "damaged",
    ),
    "larger than any": (
        lambda path: (path.touch(), os.truncate(path, MOST_FILE + 1)),
        "has more than",
    ),
    "complex": (safetensors_of("C64", 64), "a has the type C64"),
    "a type that nobody knows": (safetensors_of("F7", 7), "F7"),
    "large header": (
        lambda path: path.write_bytes((2**24).to_bytes(8, "little") + b"{" + bytes(2**24)),
        "its header has more than 8388608 bytes",
    ),
    "storage left over": (lambda path: write_legacy(path, {}, SIX), "do not belong together"),
    "unknown class": (
        lambda path: write_zip(path, Call(Global("torch.nn", "Conv2d"), ()), {}),
        "'torch.nn.Conv2d'",
    ),
    "unknown class with a long name": (
        lambda path: write_zip(path, Global("a" * 9999, "b"), {}),
        "refused",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_file_is_refused_in_one_sentence(kind: str, file: Path) -> None:
    make, word = UNUSABLE[kind]
    make(file)
    refusal(file, word)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    refusal(file, "a pipe or a device")
    with pytest.raises(WeightsError, match="a pipe or a device"):
        read_metadata(file)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "large header"])
def test_metadata_of_an_unusable_file(kind: str, file: Path) -> None:
    UNUSABLE[kind][0](file)
    with pytest.raises(WeightsError, match=UNUSABLE[kind][1]):
        read_metadata(file)


def test_metadata_comes_back(file: Path) -> None:
    save_file({"a": np.ones(2)}, file, {"format": "minires", "note": "ä"})
    assert read_metadata(file) == {"format": "minires", "note": "ä"}
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        read_metadata(file)


SHAPES = {"conv.weight": (2, 1, 3, 3), "bn.bias": (2,), "fc.weight": (4, 2)}


def fitting(dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
    values = np.random.RandomState(0)
    return {key: values.standard_normal(shape).astype(dtype) for key, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_fitting_state_dict_passes(dtype: npt.DTypeLike) -> None:
    state = fitting(dtype)
    state["fc.weight"] = np.asfortranarray(state["fc.weight"])
    state["bn.num_batches_tracked"] = np.array(7)
    checked = check_state_dict(dict(reversed(state.items())), SHAPES)
    assert_same(checked, {key: state[key].astype(np.float32) for key in SHAPES})
    assert all(array.flags.c_contiguous for array in checked.values())


def test_float32_is_not_copied() -> None:
    state = fitting()
    checked = check_state_dict(state, SHAPES)
    assert all(np.shares_memory(checked[key], state[key]) for key in SHAPES)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("bn.bias", None, r"\(missing: bn\.bias\)"),
        ("bn.running_var", np.ones(2, np.float32), r"\(unexpected: bn\.running_var\)"),
        ("bn.bias", np.ones((2, 1), np.float32), r"wrong shape: bn\.bias \(2, 1\), .*\(2,\)\)"),
        ("bn.bias", np.array([1, 1e39]), r"\(holding NaN or infinity: bn\.bias\)"),
        ("bn.bias", np.ones(2, np.int8), r"\(not of floats: bn\.bias int8\)"),
        ("bn.bias", np.array([1, np.nan], np.float32), r"\(holding NaN or infinity: bn\.bias\)"),
        ("bn.bias", np.array([-np.inf, 1], np.float16), r"\(holding NaN or infinity: bn\.bias\)"),
    ],
)  # fmt: skip
def test_one_wrong_tensor_is_named(key: str, value: Array | None, told: str) -> None:
    state = {k: v for k, v in (fitting() | {key: value}).items() if v is not None}
    with pytest.raises(WeightsError, match=told):
        check_state_dict(state, SHAPES)


def test_all_that_is_wrong_is_named_at_once() -> None:
    shapes = dict.fromkeys(("missing", "shape", "type", "nan", "shape_and_nan", "fine"), (2,))
    nan = np.array([np.nan, 0, 0], np.float32)
    state: dict[str, Array] = {
        "shape": np.ones(3, np.float32),
        "type": np.ones(2, np.int64),
        "nan": nan[:2],
        "shape_and_nan": nan,
        "fine": np.ones(2, np.float32),
        "more": np.ones(1, np.float32),
    }
    with pytest.raises(WeightsError) as caught:
        check_state_dict(state, shapes)
    assert str(caught.value) == (
        "not the weights of this network (missing: missing; unexpected: more; "
        "of a wrong shape: shape (3,), wanted (2,), shape_and_nan (3,), wanted (2,); "
        "not of floats: type int64; holding NaN or infinity: nan, shape_and_nan)"
    )


def test_a_network_without_classes_is_refused() -> None:
    state = {**fitting(), "fc.weight": np.zeros((0, 2), np.float32)}
    with pytest.raises(WeightsError, match=r"\(empty: fc\.weight\)"):
        check_state_dict(state, {**SHAPES, "fc.weight": (0, 2)})


def test_long_names_are_cut() -> None:
    state = fitting() | {"a" * 1_000_000: np.ones(1, np.float32), "b\nc": np.ones(1, np.float32)}
    with pytest.raises(WeightsError, match=r"unexpected: a{120}, 'b\\nc'\)") as caught:
        check_state_dict(state, SHAPES)
    assert len(str(caught.value)) < 300


def test_long_lists_are_cut() -> None:
    with pytest.raises(WeightsError, match=r"missing: 0, 1, 2, 3, 4 and 17 more\)"):
        check_state_dict({}, {str(number): () for number in range(22)})
    with pytest.raises(WeightsError, match=r"missing: 0, 1, 2, 3, 4\)"):
        check_state_dict({}, {str(number): () for number in range(5)})


@in_any_format
def test_real_weights(format_name: str, real_state_dict: dict[str, Array], file: Path) -> None:
    write_arrays(file, real_state_dict, format_name)
    checked = check_state_dict(read_checkpoint(file), torchvision_shapes())
    file.unlink()  # it has 100 MB
    assert_same(checked, {key: real_state_dict[key] for key in torchvision_shapes()})
