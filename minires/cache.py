"""The cache, where minires keeps files that it downloads, computes or compiles only once."""

import contextlib
import hashlib
import os
from pathlib import Path

import platformdirs

NOTE = ".verified"  # the ending of files that note a checksum
MOST_NOTES = 64


def cache_dir() -> Path:
    """Return minires's cache: MINIRES_CACHE, or the platform's own place; it may not exist."""
    cache = os.environ.get("MINIRES_CACHE") or platformdirs.user_cache_dir("minires", False)
    return Path(os.path.expanduser(cache))  # Path.expanduser would fail if there is no home


def remove_oldest(folder: Path, pattern: str, count: int) -> None:
    """Keep `count` files of a kind, and remove those that were written or touched longest ago."""
    ages = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be first
            ages[path] = path.stat().st_mtime
    for path in sorted(ages, key=ages.__getitem__)[:-count]:
        with contextlib.suppress(OSError):
            path.unlink()


def sha256_of(path: Path) -> str:
    """Compute a file's checksum, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noted_sha256(path: Path) -> str:
    """Compute a file's checksum, or take it from a note if the file has not changed since.

    The checksum takes a while, so a note in the cache keeps it. The note belongs to the file's
    path: for a copy the checksum is computed again.
    """
    status = path.stat()
    place = os.fsencode(path.resolve())
    seen = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    note = cache_dir() / f"{hashlib.sha256(place).hexdigest()[:16]}{NOTE}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known, _, checksum = note.read_text(encoding="utf-8").rpartition(" ")
        if known == seen and len(checksum) == 64:  # a damaged note may be shorter
            return checksum
    checksum = sha256_of(path)
    with contextlib.suppress(OSError):  # without a note it is computed again
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{seen} {checksum}", encoding="utf-8")
        remove_oldest(note.parent, f"*{NOTE}", MOST_NOTES)
    return checksum
