"""Mutated files of PyTorch: both of its formats, and the pickle in them alone.

Most are odd only in ways that a training script's may be: in their values, types and order, in what
is around the tensors, and in how these lie in their storages. Some of them are damaged then.
"""

import functools
import io
import pickletools
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from minires.checkpoint import naming
from minires.unpickle import unpickle
from tests.fuzz import small
from tests.fuzz.mutate import ODD, mutate_bytes
from tests.fuzz.target import Target
from tests.test_checkpoint import (
    KINDS,
    ORDERED_DICT,
    Build,
    Call,
    Global,
    pickled,
    tensor,
    write_legacy,
    write_zip,
)

KIND_OF = {np.dtype(dtype): kind for kind, dtype in KINDS.items()}
TYPES = [np.float16, np.float16, np.float16, np.float64, np.int64]
FACTORS = [1, 1, 1, 1, 1, 0, -1, 1e-38, 1e30]
# Instructions that torch writes, and others.
INSTRUCTIONS = [
    *(bytes([code]) for code in b"N]}()012tRbQsuae\x85\x86\x87\x88\x89\x93\x94\x81.l"),
    b"q\0", b"h\0", b"h\7", b"K\0", b"M\xff\xff", b"J\xff\xff\xff\xff", b"X\1\0\0\0a",
    b"\x8a\x09" + b"\xff" * 8 + b"\0", b"G\x7f\xf8" + bytes(6), b"\x95" + b"\xff" * 8,
    b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
]  # fmt: skip


def describe(random: Random, hostile: float) -> tuple[Any, dict[str, Any]]:
    """Describe a state_dict as torch does, and with a chance a tensor that cannot be."""
    arrays = dict(small.state_dict())
    for name in random.sample(list(arrays), random.randrange(3)):
        arrays[name] = arrays[name] * np.float32(random.choice(FACTORS))
        if random.random() < 0.3:
            with np.errstate(all="ignore"):
                arrays[name] = arrays[name].astype(random.choice(TYPES))
    pieces = [array.astype(np.float32).ravel() for array in arrays.values()]
    joined = random.random() < 0.7  # all in one storage, as views of a flat parameter are
    storages = {"all": np.concatenate(pieces)} if joined else {}
    tensors: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, array in arrays.items():
        strides = tuple(step // array.itemsize for step in array.strides)
        key, kind = ("all", "FloatStorage") if joined else (name, KIND_OF[array.dtype])
        storages.setdefault(key, array.ravel())
        count = storages[key].size
        tensors[name] = {"offset": offset * joined, "size": array.shape, "stride": strides,
                         "key": key, "count": count, "kind": kind}  # fmt: skip
        offset += array.size
    if random.random() < hostile:
        damage(random, tensors)
    return wrap(random, {name: tensor(**told) for name, told in tensors.items()}), storages


def damage(random: Random, tensors: dict[str, dict[str, Any]]) -> None:
    """Describe a tensor by a wrong value, or leave one out."""
    name = random.choice(list(tensors))
    told = tensors[name]
    field = random.choice([*told, None])
    if field is None:
        del tensors[name]
    elif field in ("size", "stride") and random.random() < 0.8:
        sides = list(told[field])
        sides[random.randrange(len(sides))] = random.choice([*ODD, 2, 3])
        told[field] = tuple(sides)
    else:
        told[field] = random.choice([*KINDS, "BFloat16Storage"] if field == "kind" else ODD)


def wrap(random: Random, state: dict[str, Any]) -> Any:
    """Put around the tensors what training scripts do."""
    if random.random() < 0.3:
        name = random.choice(list(state))
        parameter = Global("torch._utils", "_rebuild_parameter")
        state[name] = Call(parameter, (state[name], True, ORDERED_DICT))
    if random.random() < 0.3:
        state["bn1.num_batches_tracked"] = random.choice(list(state.values()))
    items = list(state.items())
    if random.random() < 0.3:
        random.shuffle(items)
    wrapped: Any = dict(items)
    if random.random() < 0.3:
        wrapped = Call(ORDERED_DICT.function, (tuple(items),))
    if random.random() < 0.3:
        wrapped = Build(wrapped, {"_metadata": {}})
    if random.random() < 0.5:
        name = random.choice(["state_dict", "model", "model", "other"])
        wrapped = {"epoch": 3, name: wrapped, "history": (1, 0.5, None)}
    return wrapped


def make_zip(random: Random, scratch: Path) -> bytes:
    """Change what is told of the tensors, members of the archive, or its bytes."""
    path = scratch / "made"
    write_zip(path, *describe(random, 0.3))
    content = path.read_bytes()
    chance = random.random()
    if chance < 0.15:
        return mutate_bytes(random, content)
    if chance < 0.5:
        return content
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            inner = old.read(name)
            is_pickle = name.endswith("data.pkl")
            hit = random.random() < (0.3 if is_pickle else 0.1)
            mutate = mutate_pickle if is_pickle else mutate_bytes if chance < 0.6 else mutate_values
            new.writestr(name, mutate(random, inner) if hit else inner)
    return written.getvalue()


def mutate_values(random: Random, content: bytes) -> bytes:
    """Write other bytes in place of some, as many."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 2, 10])):
        at = random.randrange(len(changed))
        changed[at] = random.randrange(256)
    return bytes(changed)


def make_legacy(random: Random, scratch: Path) -> bytes:
    """Change what is told of the tensors, or the file's bytes."""
    path = scratch / "made"
    write_legacy(path, *describe(random, 0.3))
    content = path.read_bytes()
    chance = random.random()
    if chance < 0.5:
        return content
    if chance < 0.7:
        values = len(content) // 4
        return content[:-values] + mutate_values(random, content[-values:])
    return mutate_bytes(random, content)


@functools.cache
def base_pickle(number: int) -> bytes:
    """Make one of the pickles that mutants are made of."""
    return pickled(describe(Random(number), 0)[0])


@functools.lru_cache(maxsize=64)
def instructions_of(content: bytes) -> list[bytes]:
    """Take a pickle apart."""
    starts = [at for _, _, at in pickletools.genops(content)]
    pairs = zip(starts, [*starts[1:], len(content)], strict=True)
    return [content[start:end] for start, end in pairs]


def mutate_pickle(random: Random, content: bytes) -> bytes:
    """Remove, repeat, swap and insert instructions, or change bytes."""
    if random.random() < 0.3:
        return mutate_bytes(random, content)
    parts = list(instructions_of(content))
    for _ in range(random.choice([1, 1, 1, 1, 4])):
        at, other = random.randrange(len(parts)), random.randrange(len(parts))
        match random.randrange(7):
            case 0:
                parts[at:other] = [] if abs(at - other) < 9 else parts[at:other]
            case 1:
                parts[at:at] = parts[other : other + random.choice([1, 2, 30])]
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts.insert(at, random.choice(INSTRUCTIONS))
            case 4:
                parts[at] = random.choice(INSTRUCTIONS)
            case _:  # by one of the same kind, so that the stack stays as high
                parts[at] = random.choice([part for part in parts if part[:1] == parts[at][:1]])
    return b"".join(parts)


def make_pickle(random: Random, scratch: Path) -> bytes:
    """Change a pickle."""
    return mutate_pickle(random, base_pickle(random.randrange(20)))


def read_pickle(path: Path) -> object:
    """Run a pickle whose storages are all there, of the size that it says."""

    def make_storage(dtype: str, key: str, count: int) -> Any:
        return np.zeros(min(count, 1000), dtype)

    with naming(path), path.open("rb") as file:
        return unpickle(file, make_storage)


TARGETS = [
    Target("zip", make_zip, small.run),
    Target("legacy", make_legacy, small.run),
    Target("pickle", make_pickle, read_pickle),
]
