"""Whether you can believe a measurement: all measurements here use these checks.

Other programs make a run slower, never faster, and they come and go. So a figure is in doubt for
four reasons: runs of the same thing differ too much, two ways to measure one thing disagree, a
share is larger than possible, or other programs had the cores meanwhile. A figure in doubt is
measured again, a few times at most. If it is in doubt even then, it gets a question mark, and one
line says why.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from minires.measure import session

WIDE = 0.15  # how far apart runs or two measures of one thing may lie, as a share of their median
HIGHEST = 1.05  # the largest possible share: 100%, and a little more because a clock may drift
TRIES = 3
MARK = "?"

Found = TypeVar("Found")


def spread_of(times: Sequence[float] | npt.NDArray[Any]) -> float:
    """Return how far apart the quartiles of some times lie, as a share of their median."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float((high - low) / middle)


# Each of these takes the measured thing's name, for the reader, and lists one reason or none.


def doubt_spread(name: str, spread: float) -> list[str]:
    """Doubt a figure whose runs lie too far apart; the spread is a share, not percent."""
    # Each comparison here is written so that NaN is in doubt.
    return [] if spread <= WIDE else [f"runs of {name} differ by {spread:.0%}"]


def doubt_pair(name: str, one: float, other: float) -> list[str]:
    """Doubt a figure if two ways of measuring it, both above 0, disagree."""
    ratio = one / other if other else np.inf
    if 1 / (1 + WIDE) <= ratio <= 1 + WIDE:
        return []
    return [f"two measures of {name} disagree, {one:.3g} and {other:.3g}"]


def doubt_share(name: str, share: float) -> list[str]:
    """Doubt a share that is above its limit, which is 1."""
    return [] if share <= HIGHEST else [f"{name} seems faster than its limit"]


def doubt_others(name: str, share: float) -> list[str]:
    """Doubt a figure if other programs had too large a share of the cores' time meanwhile."""
    return [] if share <= WIDE else [f"others had {share:.0%} of the cores' time during {name}"]


class Cores:
    """Watches how much of its time a thread that never rests has a core, in a with statement.

    Of several threads it watches all together; then the process must have no others.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._clock = time.thread_time if threads == 1 else time.process_time
        self._wanted = self._got = 0.0  # seconds

    def __enter__(self) -> "Cores":
        self._wanted -= self._threads * time.perf_counter()
        self._got -= self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._got += self._clock()
        self._wanted += self._threads * time.perf_counter()

    @property
    def others(self) -> float:
        """The share of the time that went to other programs."""
        return 1 - self._got / self._wanted if self._wanted else 0.0


def measure_until_steady(
    measure: Callable[[], Found],
    doubts_about: Callable[[Found], list[str]],
    tries: int | None = None,
) -> tuple[Found, list[str]]:
    """Measure, and measure again while something is in doubt.

    It measures at most `TRIES` times, unless you say how often; once in a hurry. You get the
    measurement with the fewest doubts, or the last of several such, and its doubts.
    """
    found = measure()
    doubts = doubts_about(found)
    for _ in range(session.rounds(tries or TRIES, 1) - 1):
        if not doubts:
            break
        session.say(f"once more, because {doubts[0]}")
        again = measure()
        more = doubts_about(again)
        if len(more) <= len(doubts):
            found, doubts = again, more
    return found, doubts


def time_steadily(name: str, run: Callable[[], object], runs: int = 100) -> tuple[float, list[str]]:
    """Time something short many times; return the median, in seconds, and the doubts.

    If the runs differ too much, or other programs had too much of this thread's core, it times as
    many again.
    """

    def measure() -> tuple[npt.NDArray[Any], float]:
        times = [time.perf_counter()]
        with Cores() as core:
            for _ in range(runs):
                run()
                times.append(time.perf_counter())
        return np.diff(times), core.others

    (times, _), doubts = measure_until_steady(
        measure, lambda of: [*doubt_spread(name, spread_of(of[0])), *doubt_others(name, of[1])]
    )
    return float(np.median(times)), doubts


def mark(text: str, doubts: Sequence[str]) -> str:
    """Put a question mark behind a figure that is in doubt."""
    return f"{text}{MARK}" if doubts else text


def percent(share: float, doubts: Sequence[str] = ()) -> str:
    """Write a share in percent, or a question mark alone for a share that is impossible."""
    return mark(f"{share:.0%}", doubts) if share <= HIGHEST else MARK


def verdict(doubts: Sequence[str]) -> str:
    """Say in one line whether you can believe the figures beside it, and if not, why."""
    if not doubts:
        return "Steady: runs of the same thing agree."
    more = f" (other doubts: {len(doubts) - 1})" if len(doubts) > 1 else ""
    return (
        f"NOT STEADY: {doubts[0]}{more}. Do not rely on figures marked {MARK}: most likely "
        "something else uses this machine."
    )
