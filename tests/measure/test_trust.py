"""The guard of all measurements, tested with numbers that are made up."""

from collections.abc import Iterator

import numpy as np
import pytest

from minires.measure import trust
from minires.measure.trust import (
    TRIES,
    doubt_others,
    doubt_pair,
    doubt_share,
    doubt_spread,
    mark,
    measure_until_steady,
    percent,
    spread_of,
    time_steadily,
    verdict,
)


def test_the_spread_is_of_the_quartiles() -> None:
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread_of([7.0] * 9) == 0
    assert spread_of([1.0] * 9 + [100.0]) == 0  # one run that was interrupted changes nothing


def test_runs_that_differ_are_doubted() -> None:
    assert doubt_spread("a kernel", 0.15) == []
    assert doubt_spread("a kernel", 0.4) == ["runs of a kernel differ by 40%"]
    assert doubt_spread("a kernel", float("nan"))


def test_two_measures_that_disagree_are_doubted() -> None:
    assert doubt_pair("the peak", 100.0, 110.0) == []
    assert doubt_pair("the peak", 110.0, 100.0) == []
    assert doubt_pair("the peak", 100.0, 150.0) == [
        "two measures of the peak disagree, 100 and 150"
    ]
    assert doubt_pair("the peak", 150.0, 100.0)
    for nonsense in (0.0, -1.0, float("nan")):
        assert doubt_pair("the peak", nonsense, 100.0)
        assert doubt_pair("the peak", 100.0, nonsense)


def test_more_than_all_is_doubted() -> None:
    assert doubt_share("conv1", 1.0) == doubt_share("conv1", 1.04) == []
    assert doubt_share("conv1", 608.54) == ["conv1 seems faster than its limit"]
    assert doubt_share("conv1", float("nan"))


def test_a_measurement_without_the_cores_is_doubted() -> None:
    assert doubt_others("fma", 0.1) == doubt_others("fma", -0.01) == []
    assert doubt_others("fma", 0.5) == ["others had 50% of the cores' time during fma"]
    assert doubt_others("fma", float("nan"))


@pytest.mark.parametrize(
    ("noises", "kept", "runs"),
    [
        ([0], 0, 1),  # steady at once: measured once
        ([2, 1, 0, 0], 2, 3),
        ([2, 0, 1], 1, 2),
        ([3, 1, 2], 1, TRIES),  # never steady: the best of a few
        ([1, 1, 1, 0], 2, TRIES),  # and of equals the last
    ],
)
def test_what_is_in_doubt_is_measured_again_but_not_forever(
    noises: list[int], kept: int, runs: int
) -> None:
    measured = []

    def measure() -> int:
        measured.append(len(measured))
        return measured[-1]

    def doubts_about(found: int) -> list[str]:
        return ["noise"] * noises[found]

    found, doubts = measure_until_steady(measure, doubts_about)
    assert (found, len(doubts), len(measured)) == (kept, noises[kept], runs)


def test_a_measurement_may_add_to_what_it_has() -> None:
    """As the peak does: of all rounds the best one counts, however many there were."""
    rounds: Iterator[float] = iter([9.0, 3.0, 5.0])
    seen: list[float] = []

    def measure() -> float:
        seen.append(next(rounds))
        return min(seen)

    found, doubts = measure_until_steady(measure, lambda _: ["noise"] * (len(seen) < 3))
    assert (found, doubts) == (3.0, [])


def test_a_function_is_timed_until_its_runs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that is made up: first it takes 1 and 3 seconds in turns, then always 2."""
    passed = iter([1.0, 3.0] * 5 + [2.0] * 10)
    now = [0.0]

    def run() -> None:
        now[0] += next(passed)

    monkeypatch.setattr(trust.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trust.time, "thread_time", lambda: now[0])
    assert time_steadily("a layer", run, runs=10) == (2.0, [])
    assert next(passed, None) is None
    # Runs that agree because all of them had half of the core.
    passed = iter([2.0] * 10 * TRIES)
    monkeypatch.setattr(trust.time, "thread_time", lambda: now[0] / 2)
    others = ["others had 50% of the cores' time during a layer"]
    assert time_steadily("a layer", run, runs=10) == (2.0, others)


def test_a_figure_in_doubt_is_marked() -> None:
    assert mark("1.5", []) == "1.5"
    assert mark("1.5", ["noise"]) == "1.5?"
    assert percent(0.5) == "50%"
    assert percent(0.5, ["noise"]) == "50%?"
    assert percent(608.54) == percent(np.inf) == percent(np.nan) == "?"


def test_the_verdict_is_one_line_and_says_why() -> None:
    assert verdict([]).startswith("Steady")
    one = verdict(["runs of fma differ by 40%"])
    assert one.startswith("NOT STEADY: runs of fma differ by 40%. Do not rely")
    assert "(other doubts: 2)" in verdict(["a", "b", "c"])
    assert "\n" not in verdict(["a", "b", "c"])
