"""The caches of this CPU: their sizes decide how much is computed in one go."""

import functools
from pathlib import Path
from typing import NamedTuple


class Cache(NamedTuple):
    """A level of the caches, as the first core sees it."""

    level: str
    size: int  # bytes
    sharers: int  # threads that share it


@functools.cache
def caches() -> list[Cache]:
    """Ask Linux for the sizes of the caches; where it does not tell, assume what is usual."""
    found = []
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size, shared = (
                (cache / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size", "shared_cpu_map")
            )
            sharers = max(1, bin(int(shared.replace(",", ""), 16)).count("1"))
            if kind != "Instruction":
                found.append(Cache(f"L{level}", int(size.removesuffix("K")) * 1024, sharers))
        except (OSError, ValueError):
            continue
    return found or [Cache("L1 (size assumed)", 2**15, 1), Cache("L2 (size assumed)", 2**18, 1)]


def room_in(level: int) -> int:
    """Tell how many bytes of a level of the caches, counted from 1, a core has to itself."""
    known = caches()
    cache = next((c for c in known if c.level.startswith(f"L{level}")), known[-1])
    return cache.size // cache.sharers
