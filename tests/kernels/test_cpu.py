"""What Linux tells of the caches, and what is assumed where it does not."""

from pathlib import Path

import pytest

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
