"""The CPU: the sizes of its caches, and how many of its cores the kernels use."""

import ctypes
import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minires.errors import MiniresError, check_whole, short

_chosen: int | None = None

CORES = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")  # names this process's control groups, one a line
# The files that hold a quota and its period, in the two versions of control groups.
QUOTA_V2 = ("cpu.max",)
QUOTA_V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us")

# Features of ARM by LLVM's names. Where Linux tells: AT_HWCAP is 16 and AT_HWCAP2 is 26, and the
# bits are those of its asm/hwcap.h. And what macOS calls them.
HWCAPS = {"dotprod": (16, 20), "i8mm": (26, 13), "bf16": (26, 14)}
FEATURES = {"dotprod": "DotProd", "i8mm": "I8MM", "bf16": "BF16"}
MACOS_HAS = "hw.optional.arm.FEAT_"


class Cache(NamedTuple):
    """One level of the caches, as the first core has it."""

    level: str
    size: int  # bytes
    sharers: int  # threads that share it


ASSUMED = [Cache("L1 (size assumed)", 2**15, 1), Cache("L2 (size assumed)", 2**18, 1)]


def _sysctl(name: str) -> bytes:
    """Ask macOS what it knows by a name; nothing where it does not know, and on other systems."""
    if sys.platform != "darwin":
        return b""
    value = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(256)
    place = value, ctypes.byref(size)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), *place, None, ctypes.c_size_t(0))
    return b"" if failed else value.raw[: size.value]


def sysctl(name: str) -> int:
    """Ask macOS for a number; it is 0 where nothing is known."""
    return int.from_bytes(_sysctl(name), "little")


def sysctl_text(name: str) -> str:
    """Ask macOS for a text; it is empty where nothing is known."""
    return _sysctl(name).rstrip(b"\0").decode(errors="replace")


def _getauxval() -> Callable[[int], int] | None:
    """Find the function by which Linux tells of a CPU's features; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    ask: Any = getattr(ctypes.CDLL(None), "getauxval", None)
    if ask:
        ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    found: Callable[[int], int] | None = ask
    return found


def arm_features() -> set[str]:
    """Ask the system of a 64-bit ARM for the features that multiply, by LLVM's names."""
    found = {"neon"}  # every one has it
    if sys.platform == "darwin":
        found |= {name for name, theirs in FEATURES.items() if sysctl(f"{MACOS_HAS}{theirs}")}
    elif ask := _getauxval():
        found |= {name for name, (table, bit) in HWCAPS.items() if ask(table) >> bit & 1}
    return found


@functools.cache
def caches() -> list[Cache]:
    """Ask the system for the sizes of the caches; if it does not tell them, assume common ones."""
    return _caches_of_linux() or _caches_of_macos() or ASSUMED


def _caches_of_macos() -> list[Cache]:
    """Ask for the caches of the fast cores, which macOS counts as level 0, or of all."""
    found = []
    for level, name in (("L1", "l1dcachesize"), ("L2", "l2cachesize"), ("L3", "l3cachesize")):
        fast = sysctl(f"hw.perflevel0.{name}")
        size = fast or sysctl(f"hw.{name}")
        sharers = sysctl(f"hw.perflevel0.cpusper{level.lower()}") if fast else 0
        if size:
            found.append(Cache(level, size, max(1, sharers)))
    return found


def _caches_of_linux() -> list[Cache]:
    found = []
    for cache in sorted((CORES / "cpu0" / "cache").glob("index*")):
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
    return found


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

    Examples
    --------
    >>> minires.set_num_threads(1)
    >>> minires.get_num_threads()
    1
    """
    global _chosen
    wanted = check_whole("count", count)
    if wanted > _most():
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

    Examples
    --------
    >>> minires.get_num_threads() >= 1
    True
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    default = max(1, int(wanted)) if wanted.isdecimal() else _default()
    return _chosen or min(default, _most())
