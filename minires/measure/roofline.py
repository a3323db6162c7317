"""The roofline of this machine, with every layer on it.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (2009), doi:10.1145/1498765.1498785: attainable = min(peak, intensity * bandwidth).
"""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from minires.layers import Array
from minires.measure import plots
from minires.measure.machine import Roofs, measure_roofs
from minires.measure.profiler import Profile, profile_in_turns
from minires.measure.rows import Row
from minires.measure.text import format_columns
from minires.measure.trust import doubt_share, mark, percent, verdict
from minires.model import ResNet50

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")  # of the lines of the memory's levels


def measure_layers(
    models: Mapping[str, ResNet50],
    x: Array,
    roofs_of: Callable[[str], Roofs] | None = None,
    runs: int = 10,
) -> dict[str, list[Row]]:
    """Time every step of networks, by precision, on this machine; they run in turns.

    By precision, you get the rows of the steps that multiply. They are those of one run, but with
    the median of the times of all runs. `roofs_of` measures a precision's roofs: the CPU's unless
    given.
    """
    found: dict[str, list[Row]] = {}
    profiles = profile_in_turns(models, x, runs)
    doubts = [doubt for prof in profiles.values() for doubt in prof.doubts]
    for precision, prof in profiles.items():
        roofs = (roofs_of or measure_roofs)(precision)
        roofs = roofs._replace(doubts=(*roofs.doubts, *doubts))
        medians = _median_seconds(prof)
        found[precision] = [
            row._replace(
                calls=row.calls // runs,
                seconds=medians[row.name],
                macs=row.macs // runs,
                bytes=row.bytes // runs,
                weights=row.weights // runs,
            )
            for row in prof.rows(roofs=roofs)
            if row.macs
        ]
    return found


def _median_seconds(prof: Profile) -> dict[str, float]:
    """Take the median of each step's time, over all runs of a profile."""
    of_runs = np.reshape([event.ended - event.started for event in prof.events], (prof.runs, -1))
    steps: dict[str, Array] = {}  # (runs,); a large batch takes a step in several calls
    for event, seconds in zip(prof.events, of_runs.T, strict=False):
        steps[event.layer.name] = steps.get(event.layer.name, 0.0) + seconds
    return {name: float(np.median(seconds)) for name, seconds in steps.items()}


def format_layers(layers: Mapping[str, list[Row]], title: str) -> str:
    """Lay out how close layers come to their roofs: a line each, with three columns a precision."""
    head = ["layer", *(f"{p} {c}" for p in layers for c in ("op/byte", "GOP/s", "of roof"))]
    rows = []
    for of_layer in zip(*layers.values(), strict=True):
        cells = [of_layer[0].name]
        for row in of_layer:
            doubted = row.roofs.doubts if row.roofs else ()
            share = percent(row.of_roof, doubted)
            speed = mark(f"{row.gops:.1f}", doubted)
            cells += [f"{row.intensity:.1f}", speed, f"{share} {row.bound}"]
        rows.append(cells)
    table = f"{title}\n{format_columns(head, rows)}"
    doubts = _doubts_about(
        row for of_layer in zip(*layers.values(), strict=True) for row in of_layer
    )
    return f"{table}\n{verdict(doubts)}" if doubts else table


def _doubts_about(rows: Iterable[Row]) -> list[str]:
    """List the reasons to doubt the roofs of some rows, and rows above their roof, each once."""
    found: dict[str, None] = {}
    for row in rows:
        doubts = row.roofs.doubts if row.roofs else ()
        found |= dict.fromkeys([*doubts, *doubt_share(row.name, row.of_roof)])
    return list(found)


def plot_layers(
    layers: Mapping[str, list[Row]],
    path: str | os.PathLike[str] | None,
    title: str,
    dark: bool = False,
) -> "Figure":
    """Draw this machine's roofline, each layer a point on it; needs matplotlib."""
    every = [row for rows in layers.values() for row in rows]
    doubts = _doubts_about(every)
    with plots.drawing(path, title, 10, 5.5, dark=dark, doubts=doubts) as (drawn, axes):
        # All names are in the legend, because peaks and levels may lie close to each other.
        widest = max(1024, *(row.intensity for row in every))
        intensity = np.geomspace(0.25, widest, 200)
        tallest = 0.0
        speeds = [row.gops for row in every]
        for (precision, rows), marker in zip(layers.items(), itertools.cycle("os^Dv")):
            color = plots.COLORS.get(precision, plots.GREY)
            roofs = rows[0].roofs
            assert roofs, "measure_layers gives each row its roofs"
            tallest = max(tallest, roofs.peak)
            name = f"{precision} peak, {mark(f'{roofs.peak:.0f}', roofs.doubts)} GOP/s"
            axes.axhline(roofs.peak, color=color, linewidth=1.5, label=name)
            points = [r.intensity for r in rows], [r.gops for r in rows]
            label = f"{precision}, {len(rows)} layers"
            dots = {"s": 18, "color": color, "marker": marker, "alpha": 0.8, "linewidths": 0}
            axes.scatter(*points, label=label, zorder=4, **dots)
        assert roofs
        levels = roofs.memory[1:] or roofs.memory  # a GPU's has one level
        for level, style in zip(levels, itertools.cycle(STYLES)):
            reach = level.all * intensity
            inside = reach <= tallest
            if inside.any():
                name = f"{level.level}, {mark(f'{level.all:.0f}', roofs.doubts)} GB/s"
                line = {"color": plots.GREY, "linewidth": 1, "linestyle": style, "label": name}
                axes.plot(intensity[inside], reach[inside], **line)
        axes.set(xscale="log", xlim=(0.2, 1.5 * widest))
        # A peak that was measured too low would leave layers above it outside of the picture.
        axes.set(yscale="log", ylim=(min(1, *speeds), 2 * max(tallest, *speeds)))
        axes.set_xlabel("operations a byte (each operand read once, each result written once)")
        axes.set_ylabel("10⁹ operations a second")
        drawn.legend(loc="outside right upper")
    return drawn
