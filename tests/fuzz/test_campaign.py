from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits on memory are Unix's")
from minires.errors import WeightsError
from tests.fuzz import campaign
from tests.fuzz.target import Target


def test_no_mutated_input_falls() -> None:
    """Some hundreds; python -m tests.fuzz.campaign goes on."""
    names = list(campaign.TARGETS)
    counts, fallen = campaign.run(names, seed=0, seconds=60, count=60)
    assert fallen == []
    for name in names:
        assert counts[name]["refused"] > 0
        assert counts[name]["read"] > 0  # what is always refused is not looked at any further


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (WeightsError("one sentence"), "refused"),
        (WeightsError("two\nlines"), "refused at length"),
        (WeightsError("a" * 10**6), "refused at length"),
        (KeyError("raw"), "raw KeyError"),
        (RecursionError(), "raw RecursionError"),
        (None, "read"),
    ],
)
def test_what_falls_is_told(
    error: Exception | None, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> None:
        assert path.read_bytes() == b"input"
        if error:
            raise error

    monkeypatch.setitem(campaign.TARGETS, "any", Target("any", lambda *_: b"input", read))
    assert campaign.judge("any", 0, 0, tmp_path)[0] == ended


def test_the_same_seed_makes_the_same_inputs(tmp_path: Path) -> None:
    made = []
    for number in (3, 3, 4):
        campaign.judge("metadata", 0, number, tmp_path)
        made.append((tmp_path / "input").read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_process_that_dies_is_told_and_the_others_go_on() -> None:
    counts, fallen = campaign.run(["no such target", "metadata"], seed=0, seconds=60, count=1)
    assert counts["no such target"] == {"died with 1": 1}
    assert counts["metadata"].total() == 1
    assert fallen == ["no such target 0: died with 1 "]
