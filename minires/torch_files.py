"""Read what ``torch.save`` wrote, without torch: a zip archive, or the format before it.

PyTorch saves a pickle, and a pickle is a program: loading one calls whatever it names. So
``minires/unpickle.py`` runs it on a machine that can make tensors and nothing else.
"""

import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from minires.errors import WeightsError
from minires.layers import Array
from minires.unpickle import BFLOAT16, MOST_BYTES, in_memory, unpickle, widen

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in the older format
MOST_DIRECTORY = 2**22  # bytes of a zip archive's list of members; a ResNet-50's has 25 KB


class _Directory(io.FileIO):
    """An archive of which no more than its list of members can be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a part, where it is small enough to be one of the list."""
        if size is not None and size > MOST_DIRECTORY:
            raise WeightsError(f"refused: its list of members has more than {MOST_DIRECTORY} bytes")
        return super().read(-1 if size is None else size) or b""


def read_zip(file: io.BufferedReader) -> object:
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
                content = archive.read(members[f"data/{key}"])
                wide = dtype == BFLOAT16
                storages[key] = widen(content) if wide else np.frombuffer(content, dtype)
            found = storages[key]
            wanted = in_memory(dtype)
            if found.size != count or found.dtype != wanted:
                raise WeightsError(
                    f"damaged: storage {key!r:.80} has {found.size} values of {found.dtype}, "
                    f"not {count} of {wanted}"
                )
            return found

        return unpickle(io.BytesIO(archive.read(members["data.pkl"])), read_storage)


def _check_members(members: Mapping[str, zipfile.ZipInfo], archive_size: int) -> None:
    """Refuse an archive that is not PyTorch's, or would become larger than it is."""
    if "data.pkl" not in members:
        raise WeightsError("a zip archive, but not one of PyTorch's; wanted data.pkl in it")
    # TorchScript compresses its program, which is not read.
    read = [info for name, info in members.items() if not name.startswith("code/")]
    if any(info.compress_type != zipfile.ZIP_STORED for info in read):
        raise WeightsError("compressed, which PyTorch does not; a few bytes could fill memory")
    if sum(info.file_size for info in read) > archive_size:
        raise WeightsError("damaged: its members overlap, and are larger than the whole")
    if members["data.pkl"].file_size > MOST_BYTES:
        raise WeightsError(f"refused: its pickle has more than {MOST_BYTES} bytes")


def read_legacy(file: io.BufferedReader) -> object:
    """Read the format before that: five pickles, then the storages that the fourth refers to."""
    storages: dict[str, Array] = {}
    types: dict[str, np.dtype[Any]] = {}  # as the file has them
    room = os.fstat(file.fileno()).st_size  # for storages, in bytes

    def make_storage(dtype: str, key: str, count: int) -> Array:
        nonlocal room
        if key not in storages:
            stored = np.dtype("<u2") if dtype == BFLOAT16 else np.dtype(dtype)
            room -= count * stored.itemsize
            if room < 0:
                raise WeightsError(f"damaged: storage {key!r:.80} is said to have {count} values")
            storages[key] = np.zeros(count, in_memory(dtype))  # filled below
            types[key] = stored
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
        values = storages[key]
        wide = types[key].itemsize != values.itemsize  # bfloat16
        target = np.zeros(count if count == len(values) else 0, types[key]) if wide else values
        if count != len(values) or file.readinto(target.data) != target.nbytes:
            raise WeightsError("incomplete: the file ends before its tensors do; fetch it again")
        if wide:
            values[:] = widen(target.tobytes())
    return state
