"""Where a GPU's time goes, cause by cause: from the peaks' ratio down to the network's.

INT8's peak on tensor cores is many times FP32's on CUDA cores, and the network keeps a part of it.
Here a network's time in each precision is taken apart into causes that add up to it. Read the table
from above: each cause is added to those above it, and the last column has the ratio of the sums. So
you see which cause brings it down.
"""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.kernels.cuda import driver
from minires.kernels.cuda.engine import most_images
from minires.layers import Array
from minires.measure import plots
from minires.measure.gpu import describe_gpu, time_on_gpu, warm_up
from minires.measure.machine import Roofs
from minires.measure.profiler import Profile
from minires.measure.rows import Row
from minires.measure.text import format_columns
from minires.measure.trust import doubt_spread, mark, measure_until_steady, spread_of, verdict
from minires.model import ResNet50

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A network's time is the sum of these.
COMPUTING = "computing, at the measured peak"
MOVING = "waiting for the memory, at its measured best"
UNEVEN = "multiprocessors with a block less than others"
KERNELS = "the rest of the kernels that multiply"
OTHERS = "steps that do not multiply"
BETWEEN = "between the steps"
CAUSES = (COMPUTING, MOVING, UNEVEN, KERNELS, OTHERS, BETWEEN)


class Step(NamedTuple):
    """A step of a network on the GPU."""

    seconds: float
    computing: float  # seconds at the peak; 0 where nothing is multiplied
    moving: float  # seconds that its bytes take at the memory's best
    blocks: int


class Waterfall(NamedTuple):
    """Where the time went."""

    title: str
    causes: dict[str, dict[str, float]]  # seconds by precision and cause
    doubts: list[str]  # reasons to doubt these figures; see `minires.measure.trust`

    def plot(self, path: str | os.PathLike[str] | None = None, dark: bool = False) -> "Figure":
        """Draw each precision's time by cause, and what is left of the ratio; needs matplotlib."""
        first = next(iter(self.causes))
        colors = dict(zip(CAUSES, plots.SEVERAL, strict=False))
        title = f"Where the GPU's time goes: {self.title}"
        height = 2.4 + 0.4 * len(CAUSES)
        with plots.drawing(path, title, 12, height, 2, dark) as (drawn, (left, right)):
            for precision, causes in self.causes.items():
                whole = sum(causes.values())
                at = 0.0
                for cause, seconds in causes.items():
                    share = 100 * seconds / whole
                    begin = at if share > 0 else 0.0  # less than nothing: on the other side of zero
                    left.barh(precision, share, left=begin, color=colors[cause])
                    at = max(at, begin + share)
                left.annotate(f"{1e3 * whole:.2f} ms", (at, precision), xytext=(3, 0), va="center",
                              textcoords="offset points")  # fmt: skip
            left.set_xlabel("% of the network's time, by cause")
            left.margins(x=0.15)
            left.invert_yaxis()
            left.grid(axis="y", visible=False)
            for precision, ratios in _ratios(self).items():
                right.plot(ratios, range(len(CAUSES)), "o-", color=plots.COLORS.get(precision))
                right.annotate(precision, (ratios[0], 0), xytext=(0, 6), ha="center",
                               textcoords="offset points")  # fmt: skip
            right.set_yticks(range(len(CAUSES)), CAUSES)
            right.set_xlim(left=0)
            right.margins(y=0.12)
            right.invert_yaxis()
            right.set_xlabel(f"times as fast as {first}, with all causes down to this one")
            plots.explain(drawn, colors.items())
        return drawn

    def _repr_html_(self) -> str:
        """Show it in a notebook: the picture, and the figures behind a fold."""
        return plots.page(self.plot, format_waterfall(self))


class _Times(NamedTuple):
    """One measurement of a network, in seconds."""

    whole: list[float]  # of its graph
    steps: Array  # (steps,), the medians

    @property
    def doubts(self) -> list[str]:
        return doubt_spread("the network", spread_of(self.whole))


def check_images(x: Array) -> None:
    """Refuse more images than go through together: their time is that of several graphs."""
    most = most_images(*x.shape[2:])
    if len(x) > most:
        raise MiniresError(
            f"{len(x)} images of this size go through the GPU in parts, and several precisions are "
            f"compared in one; take at most {most} images, or one precision"
        )


def measure_waterfall(
    models: Mapping[str, ResNet50],
    profiles: Mapping[str, Profile],
    roofs: Mapping[str, Roofs],
    x: Array,
    rounds: int = 30,
) -> Waterfall:
    """Time networks, by precision, on the GPU: whole, and step by step.

    The profiles, of runs on x, tell what each step computes and moves.
    """
    causes: dict[str, dict[str, float]] = {}
    doubts: list[str] = []
    for precision, model in models.items():
        engine: Any = model._engine
        program = engine.program(x.shape)
        with driver.errors("a waterfall"):
            times, found = measure_until_steady(
                functools.partial(_measure_times, engine, program, rounds),
                lambda times: times.doubts,
            )
        rows = profiles[precision].rows("step", roofs=roofs[precision])
        blocks = [math.prod(launch.grid) for launch in program.launches]
        steps = [
            _step(row, seconds, count, profiles[precision].runs)
            for row, seconds, count in zip(rows, times.steps, blocks, strict=True)
        ]
        whole = float(np.median(times.whole))
        causes[precision] = causes_of(steps, whole, engine.gpu.processors)
        doubts += [*found, *roofs[precision].doubts]
    name = next(iter(models.values())).meta["name"]
    title = f"{name}, {' x '.join(map(str, x.shape))}, on {describe_gpu(engine.gpu)}"
    return Waterfall(title, causes, list(dict.fromkeys(doubts)))


def _measure_times(engine: Any, program: Any, rounds: int) -> _Times:
    """Replay a network's graph, and the one with an event between the steps, in turns."""

    def replay() -> None:
        engine.replay(program)

    warm_up(engine.stream, replay)
    whole, steps = [], []
    for _ in range(rounds):
        whole += time_on_gpu(engine.stream, replay)
        steps.append(np.diff(engine.run_apart(program), axis=1)[:, 0])
    return _Times(whole, np.median(steps, axis=0))


def _step(row: Row, seconds: float, blocks: int, runs: int) -> Step:
    """Put together what is known of a step; a row's figures are sums over all runs."""
    least = {roof: time / runs for roof, time in row.least.items()}
    computing = least.pop("compute")
    return Step(float(seconds), computing, max(least.values()), blocks)


def causes_of(steps: Sequence[Step], whole: float, processors: int) -> dict[str, float]:
    """Take a network's time apart; `whole` is the time of its graph, in seconds.

    The blocks of a launch are dealt to the multiprocessors. If some get one more than others, those
    wait at the end: they work for blocks / processors of the time that the others take.
    """
    found = dict.fromkeys(CAUSES, 0.0)
    for step in steps:
        if not step.computing:
            found[OTHERS] += step.seconds
            continue
        computing = min(step.computing, step.seconds)
        moving = min(max(step.moving - computing, 0.0), step.seconds - computing)
        left = step.seconds - computing - moving
        each = step.blocks / processors
        uneven = min(left, step.seconds * (1 - each / math.ceil(each)))
        found[COMPUTING] += computing
        found[MOVING] += moving
        found[UNEVEN] += uneven
        found[KERNELS] += left - uneven
    found[BETWEEN] = whole - sum(step.seconds for step in steps)
    return found


def _ratios(fall: Waterfall) -> dict[str, list[float]]:
    """By precision: the first one's time over its own, each of the causes added up so far."""
    added = {p: np.cumsum([causes[cause] for cause in CAUSES]) for p, causes in fall.causes.items()}
    first, *others = added
    return {precision: (added[first] / added[precision]).tolist() for precision in others}


def format_waterfall(fall: Waterfall) -> str:
    """Lay the causes out, in milliseconds, with the ratio of what has been added up so far."""
    so_far = _ratios(fall)
    first = next(iter(fall.causes))
    rows = []
    for i, cause in enumerate(CAUSES):
        times = [f"{1e3 * causes[cause]:.3f}" for causes in fall.causes.values()]
        ratios = [f"{of_precision[i]:.2f}x" for of_precision in so_far.values()]
        rows.append([cause, *(mark(text, fall.doubts) for text in [*times, *ratios])])
    whole = [f"{1e3 * sum(causes.values()):.3f}" for causes in fall.causes.values()]
    whole = [mark(text, fall.doubts) for text in whole]
    rows.append(["whole", *whole, *rows[-1][len(whole) + 1 :]])
    lines = [fall.title, *([verdict(fall.doubts)] if fall.doubts else [])]
    heads = [f"{first}/{precision} so far" for precision in so_far]
    lines.append(format_columns(["milliseconds", *fall.causes, *heads], rows))
    lines.append(
        "The first three are computed from peaks, bytes and blocks, and the rest is what is left.\n"
        "Between the steps: the whole's graph has no events in it, so this may be negative."
    )
    return "\n".join(lines)
