"""Where minires keeps what it downloads, computes or compiles once."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Find minires's cache: MINIRES_CACHE, or where the platform has such; it may not exist."""
    cache = os.environ.get("MINIRES_CACHE") or platformdirs.user_cache_dir("minires", False)
    return Path(os.path.expanduser(cache))  # which leaves ~ where there is no home
