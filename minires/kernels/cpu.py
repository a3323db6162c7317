"""What the CPU has: the sizes of its caches, and how many of its cores the kernels use."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

from minires.errors import MiniresError

_chosen: int | None = None


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


def _most() -> int:
    """Count the cores that this process may use, unless NUMBA_NUM_THREADS says how many."""
    wanted = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(count: int) -> None:
    """Set how many threads the kernels use from now on.

    Parameters
    ----------
    count : int
        From 1 to the number of cores that this process may use, or to NUMBA_NUM_THREADS.

    Raises
    ------
    MiniresError
        For any other number.
    """
    global _chosen
    if not isinstance(count, int) or not 1 <= count <= _most():
        raise MiniresError(
            f"{count!r} threads cannot be had; wanted 1 to {_most()}, and NUMBA_NUM_THREADS "
            "allows more"
        )
    _chosen = count


def get_num_threads() -> int:
    """Tell how many threads the kernels use.

    Returns
    -------
    int
        What `set_num_threads` was last given; before that OMP_NUM_THREADS, if it is set, and at
        most as many as there are cores, or as NUMBA_NUM_THREADS says.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    default = max(1, int(wanted)) if wanted.isdecimal() else _most()
    return _chosen or min(default, _most())
