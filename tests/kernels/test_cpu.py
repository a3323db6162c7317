"""What Linux tells of the caches; how many threads there are, and who decides that."""

from pathlib import Path

import pytest

import minires
from minires.errors import MiniresError
from minires.kernels import cpu as module
from minires.kernels.cpu import Cache, caches, room_in


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


MOST = module._most()


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_chosen", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_all_unless_told() -> None:
    assert minires.get_num_threads() == MOST


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("1,2", 1), ("9999", MOST), ("no", MOST)])
def test_the_environment_is_heeded(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert minires.get_num_threads() == count


def test_what_is_set_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    minires.set_num_threads(MOST)
    assert minires.get_num_threads() == MOST


@pytest.mark.parametrize("count", [0, -1, 2.0, "1", MOST + 1])
def test_what_cannot_be_had_is_refused(count: object) -> None:
    with pytest.raises(MiniresError, match=f"threads cannot be had; wanted 1 to {MOST}"):
        minires.set_num_threads(count)  # type: ignore[arg-type]
