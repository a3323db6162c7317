"""Where minires keeps what it downloads, computes or compiles once."""

import contextlib
import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Find minires's cache: MINIRES_CACHE, or where the platform has such; it may not exist."""
    cache = os.environ.get("MINIRES_CACHE") or platformdirs.user_cache_dir("minires", False)
    return Path(os.path.expanduser(cache))  # which leaves ~ where there is no home


def remove_oldest(folder: Path, pattern: str, count: int) -> None:
    """Keep as many files of a kind; those go that were written to, or touched, the longest ago."""
    ages = {}
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be first
            ages[path] = path.stat().st_mtime
    for path in sorted(ages, key=ages.__getitem__)[:-count]:
        with contextlib.suppress(OSError):
            path.unlink()
