"""What a system tells of the caches; how many threads there are, and who decides that."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import minires
from minires.errors import MiniresError
from minires.kernels import cpu as module
from minires.kernels.cpu import Cache, arm_features, caches, cpu_quota, room_in


def test_sizes_are_those_of_some_cpu() -> None:
    found = caches()
    assert [cache.size for cache in found] == sorted(cache.size for cache in found)
    assert all(cache.sharers >= 1 for cache in found)
    assert 2**16 <= room_in(2) <= 2**26


def test_a_core_has_its_share_of_a_cache_that_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Cache("L1", 2**15, 1), Cache("L2", 2**21, 4), Cache("L3", 2**25, 8)]
    monkeypatch.setattr(module, "caches", lambda: known)
    assert room_in(2) == 2**19


def test_where_nothing_is_told_the_usual_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    caches.cache_clear()
    try:
        assert [cache.level for cache in caches()] == ["L1 (size assumed)", "L2 (size assumed)"]
        assert room_in(2) == 2**18
    finally:
        caches.cache_clear()


# What other systems tell, simulated: an Apple M1, and Linux on ARM

M1: dict[str, int | str] = {
    "hw.perflevel0.l1dcachesize": 131072,
    "hw.perflevel0.l2cachesize": 12582912,
    "hw.perflevel0.cpusperl2": 4,
    "hw.l1dcachesize": 65536,  # of the slow cores
    "hw.l2cachesize": 4194304,
    "machdep.cpu.brand_string": "Apple M1",
    "hw.optional.arm.FEAT_DotProd": 1,
    "hw.optional.arm.FEAT_I8MM": 0,
}


@pytest.fixture
def on_m1(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process believe that it runs on macOS, on an M1."""

    def sysctlbyname(name: bytes, value: Any, size: Any, *_: Any) -> int:
        if name.decode() not in M1:
            return -1
        known = M1[name.decode()]
        if isinstance(known, str):
            content = known.encode() + b"\0"
        else:  # some numbers have 32 bits, others 64
            content = known.to_bytes(8 if known > 2**16 else 4, "little")
        size._obj.value = len(content)
        ctypes.memmove(value, content, len(content))
        return 0

    library = SimpleNamespace(sysctlbyname=sysctlbyname)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.setattr(Path, "glob", lambda *_: [])
    caches.cache_clear()
    yield
    caches.cache_clear()


@pytest.mark.usefixtures("on_m1")
def test_macos_tells_of_its_fast_cores() -> None:
    assert caches() == [Cache("L1", 131072, 1), Cache("L2", 12582912, 4)]
    assert room_in(2) == 3 * 2**20
    assert arm_features() == {"neon", "dotprod"}
    assert module.sysctl("hw.l3cachesize") == 0
    assert module.sysctl_text("machdep.cpu.brand_string") == "Apple M1"
    assert module.sysctl_text("hw.model") == ""


@pytest.mark.parametrize(
    ("capabilities", "more", "expected"),
    [
        (0, 0, set()),
        (1 << 20, 0, {"dotprod"}),
        (1 << 20, 1 << 13, {"dotprod", "i8mm"}),
        (1 << 20 | 1 << 13, 1 << 20 | 1 << 14, {"dotprod", "bf16"}),
    ],
)
def test_linux_tells_of_arms_features(
    capabilities: int, more: int, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {16: capabilities, 26: more}
    library = SimpleNamespace(getauxval=lambda table: tables[table])
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert arm_features() == {"neon"} | expected


def test_where_no_feature_is_told_there_is_neon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert arm_features() == {"neon"}
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: SimpleNamespace())  # a C library without
    assert arm_features() == {"neon"}


# A quota, in trees of control groups as they are in containers and elsewhere

GROUPS = {  # what the kernel says of this process, the files there are, and the cores that gives
    "no groups": ("", {}, None),
    "v2, no limit": ("0::/", {"cpu.max": "max 100000"}, None),
    "v2 in a container": ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    "v2 in a service": (
        "0::/system/web",
        {"system/web/cpu.max": "300000 100000", "system/cpu.max": "200000 100000"},
        2,
    ),
    "v1 in a container": (
        "7:cpu,cpuacct:/docker/1a2b\n3:memory:/docker/1a2b",
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    "v1, no limit": ("", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "v1 of another": (
        "3:memory:/a", {"cpu/a/cpu.cfs_quota_us": "1", "cpu/a/cpu.cfs_period_us": "1"}, None,
    ),
    "damaged": ("0\n::::\n0::/", {"cpu.max": "x y"}, None),
    "empty": ("0::/", {"cpu.max": ""}, None),
    "no period": ("0::/", {"cpu.max": "5 0"}, None),
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], float | None]:
    def make(kind: str) -> float | None:
        groups, files, cores = GROUPS[kind]
        (tmp_path / "groups").write_text(groups, "ascii")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n", "ascii")
        monkeypatch.setattr(module, "CGROUP", tmp_path)
        monkeypatch.setattr(module, "OWN_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(module, "_quota", cpu_quota)  # whatever was read before
        return cores

    return make


@pytest.mark.parametrize("kind", GROUPS)
def test_a_quota_is_read(kind: str, tree: Callable[[str], float | None]) -> None:
    expected = tree(kind)
    assert cpu_quota() == expected


def test_a_quota_is_as_many_threads_unless_told(
    tree: Callable[[str], float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_most", lambda: 64)
    tree("v2 in a container")
    assert minires.get_num_threads() == 2  # 1.5, rounded up
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert minires.get_num_threads() == 9
    minires.set_num_threads(33)
    assert minires.get_num_threads() == 33


MOST = module._most()


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_chosen", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_all_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_quota", lambda: None)
    assert minires.get_num_threads() == MOST


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("1,2", 1), ("9999", MOST), ("no", MOST)])
def test_the_environment_is_heeded(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert minires.get_num_threads() == count


def test_what_is_set_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    minires.set_num_threads(MOST)
    assert minires.get_num_threads() == MOST


def test_where_the_system_tells_of_no_affinity_all_cores_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on macOS and Windows, which have neither quotas nor /sys."""
    monkeypatch.delattr(module.os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 12)
    monkeypatch.setattr(module, "_quota", lambda: None)
    assert minires.get_num_threads() == 12
    monkeypatch.setattr(module.os, "cpu_count", lambda: None)
    assert minires.get_num_threads() == 1


def test_numpys_numbers_count() -> None:
    minires.set_num_threads(np.int64(1))  # type: ignore[arg-type]
    assert minires.get_num_threads() == 1


@pytest.mark.parametrize("count", [0, -1, 2.0, "1", True])
def test_what_counts_no_threads_is_refused(count: object) -> None:
    with pytest.raises(MiniresError, match="wanted a whole number of at least 1"):
        minires.set_num_threads(count)  # type: ignore[arg-type]


def test_more_threads_than_can_be_had_are_refused() -> None:
    with pytest.raises(MiniresError, match=f"threads cannot be had; wanted 1 to {MOST}"):
        minires.set_num_threads(MOST + 1)
