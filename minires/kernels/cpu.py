"""The CPU: the sizes of its caches, and how many of its cores the kernels use."""

import functools
import math
import operator
import os
from pathlib import Path
from typing import NamedTuple

from minires.errors import MiniresError, short

_chosen: int | None = None

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")  # names this process's control groups, one a line
# The files that hold a quota and its period, in the two versions of control groups.
QUOTA_V2 = ("cpu.max",)
QUOTA_V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


class Cache(NamedTuple):
    """One level of the caches, as the first core has it."""

    level: str
    size: int  # bytes
    sharers: int  # threads that share it


@functools.cache
def caches() -> list[Cache]:
    """Ask Linux for the sizes of the caches; if it does not tell them, assume common ones."""
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
    """Return how many bytes of a cache level, counted from 1, each core has to itself."""
    known = caches()
    cache = next((c for c in known if c.level.startswith(f"L{level}")), known[-1])
    return cache.size // cache.sharers


def _most() -> int:
    """Return NUMBA_NUM_THREADS, or if it is not set, the number of cores for this process."""
    wanted = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Return how many cores' time Linux gives this process, as in a container; None is no limit."""
    found = []
    # In a container its own group is the root. Elsewhere each folder on the way may have a limit.
    folders: list[tuple[Path, tuple[str, ...]]]
    folders = [(CGROUP, QUOTA_V2), (CGROUP / "cpu", QUOTA_V1)]
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        own = Path(path.lstrip("/"))
        if not controllers:
            folders += [(CGROUP / folder, QUOTA_V2) for folder in (own, *own.parents)]
        elif "cpu" in controllers.split(","):
            folders += [(CGROUP / "cpu" / folder, QUOTA_V1) for folder in (own, *own.parents)]
    for folder, files in folders:
        try:
            words = " ".join((folder / name).read_text(encoding="ascii") for name in files).split()
            quota, period = (int(word) for word in words)
        except (OSError, ValueError):  # not there; or "max", which is no limit
            continue
        if quota > 0 and period > 0:
            found.append(quota / period)
    return min(found, default=None)


_quota = functools.cache(cpu_quota)  # because each run of a network asks


def _default() -> int:
    """Count the threads that are of use: those beyond a quota would only wait for their turn."""
    quota = None if os.environ.get("NUMBA_NUM_THREADS", "").strip() else _quota()
    return _most() if quota is None else max(1, min(_most(), math.ceil(quota)))


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
    try:
        wanted = operator.index(count)  # NumPy's whole numbers, too
    except TypeError:
        wanted = 0
    if not 1 <= wanted <= _most():
        raise MiniresError(
            f"{short(count)} threads cannot be had; wanted 1 to {_most()}, and NUMBA_NUM_THREADS "
            "allows more"
        )
    _chosen = wanted


def get_num_threads() -> int:
    """Tell how many threads the kernels use.

    Returns
    -------
    int
        The number that `set_num_threads` was last given. If it was not called, OMP_NUM_THREADS,
        but at most the number of cores or NUMBA_NUM_THREADS. If none of these is set, at most as
        many as a container's quota of CPU time can keep busy.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    default = max(1, int(wanted)) if wanted.isdecimal() else _default()
    return _chosen or min(default, _most())
