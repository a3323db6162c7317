"""Write a file so that it appears whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from minires.errors import MiniresError, short

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".minires-"  # names of unfinished files begin so; short, because names may not be long


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside its place, and move it there when all of it is on the disk.

    A link is followed. An existing file is replaced, and its mode is kept. For a place that holds
    no ordinary file, or cannot be written to, it raises `MiniresError` and changes nothing.
    """
    with _partial(path) as (file, target):
        file.write(content)
        file.flush()
        with suppress(FileNotFoundError):
            os.chmod(file.name, stat.S_IMODE(target.stat().st_mode))
        if fcntl is None:
            file.close()
        os.replace(file.name, target)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise `MiniresError` if a file's folder is missing: call it before long work."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise MiniresError(f"{path}: its folder is not there; make it first")


def check_writable(path: str | os.PathLike[str], size: int) -> None:
    """Raise `MiniresError` unless a file of that size can be written there.

    Call it before long work. It writes such a file, because nothing else tells quotas and limits.
    """
    with _partial(path) as (file, _):
        file.write(bytes(size))
        file.flush()


@contextmanager
def _partial(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file beside the one that it will replace, and remove it at the end if it is there.

    A process that is killed leaves the file behind. So the file is locked while it is in use, and
    the next process that writes into the same folder removes such files that nobody has locked.
    """
    try:
        target = Path(os.path.realpath(path))
    except (TypeError, ValueError) as error:  # no path, or one that the system cannot have
        raise MiniresError(f"{short(path)} is no path; wanted that of a file to write") from error
    try:
        if not target.parent.is_dir():
            raise MiniresError(f"{path}: its folder is not there; make it first")
        with suppress(FileNotFoundError):  # other errors, as of a name that is too long, are raised
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
        with suppress(OSError):  # some network disks have no locks
            _lock(file)
        if os.path.exists(file.name):  # else another process removed it before it was locked
            return file
        file.close()


def _remove_leftovers(folder: Path) -> None:
    """Remove unfinished files that no process is writing."""
    for entry in os.scandir(folder):
        if entry.name.startswith(PARTIAL) and entry.is_file(follow_symlinks=False):
            with suppress(OSError):
                if fcntl is not None:
                    with open(entry.path, "rb") as file:
                        _lock(file)
                        os.unlink(entry.path)
                else:  # Windows refuses to remove what a process has open
                    os.unlink(entry.path)


def _lock(file: BinaryIO) -> None:
    """Take a file's lock, which ends with the process; OSError if another process has it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
