"""Write a file so that it appears whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from minires.errors import MiniresError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".minires-"  # how files are called that are not whole yet; short, as no name may be long


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Put a file in its place when all of it is on the disk.

    Parameters
    ----------
    path : path-like
        Where to. A link is followed. What lay there is replaced, and its mode is kept.
    content : bytes
        All of the file.

    Raises
    ------
    MiniresError
        For a place that holds no ordinary file, or cannot be written to. Nothing has changed then.
    """
    with _partial(path) as (file, target):
        file.write(content)
        file.flush()
        with suppress(FileNotFoundError):
            os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))
        if fcntl is None:
            file.close()
        os.replace(file.name, target)


def check_writable(path: str | os.PathLike[str], size: int) -> None:
    """Raise `MiniresError` unless a file of that size can be written there.

    It is tried, because nothing else knows of quotas and limits: before what takes long.
    """
    with _partial(path) as (file, _):
        file.write(bytes(size))
        file.flush()


@contextmanager
def _partial(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file beside the one that it is to replace; what is left of it is removed.

    Whoever is killed leaves it. So it is locked for as long as it is in use, and the next to write
    into the same folder removes what nobody has locked.
    """
    target = Path(os.path.realpath(path))
    try:
        if not target.parent.is_dir():
            raise MiniresError(f"{path}: its folder is not there; make it first")
        with suppress(FileNotFoundError):  # any other error, of too long a name, is told by now
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise MiniresError(f"{path}: a folder, a device or a pipe; wanted a file's name")
        _remove_leftovers(target.parent)
        file = _open_locked(target.parent)
        try:
            with file:
                yield file, target
        finally:
            with suppress(FileNotFoundError):  # it has moved to its place
                os.unlink(file.name)
    except OSError as error:
        raise MiniresError(
            f"{path}: cannot be written ({error.strerror or error}); make room or name another file"
        ) from error


def _open_locked(folder: Path) -> BinaryIO:
    while True:
        file = open(folder / f"{PARTIAL}{secrets.token_hex(8)}", "xb")  # noqa: SIM115
        with suppress(OSError):  # some network's disks have no locks
            _lock(file)
        if os.path.exists(file.name):  # nobody took it for a leftover before it was locked
            return file
        file.close()


def _remove_leftovers(folder: Path) -> None:
    """Remove the files of this kind that no process is at work on."""
    for entry in os.scandir(folder):
        if entry.name.startswith(PARTIAL) and entry.is_file(follow_symlinks=False):
            with suppress(OSError), open(entry.path, "rb") as file:
                _lock(file)
                os.unlink(entry.path)


def _lock(file: BinaryIO) -> None:
    """Take a file's lock, which ends with the process; OSError where another one has it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
