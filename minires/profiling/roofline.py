"""Rooflines: of this machine, with every layer on it; and what published figures come to.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (2009), doi:10.1145/1498765.1498785: attainable = min(peak, intensity * bandwidth).
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires import plots
from minires.errors import MiniresError
from minires.layers import Array
from minires.model import ResNet50, resnet50_layers
from minires.profiling.machine import measure_roofs
from minires.profiling.profiler import Profile, Row, profile_in_turns
from minires.profiling.text import format_columns
from minires.summary import summarize
from minires.trust import (
    doubt_share,
    doubt_spread,
    measure_until_steady,
    percent,
    spread_of,
    verdict,
)

GOP = 2 * sum(row.macs for row in summarize(resnet50_layers())) / 1e9  # of one image of 224 x 224
FORM = (
    "each [[machine]] wants name, bandwidth_gb_s, tdp_w, kind and peak_tops, or cores, clock_ghz "
    "and ops_per_cycle"
)
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # bytes of a value


class Claim(NamedTuple):
    """What somebody says of ResNet-50 on a machine."""

    images_per_second: float
    parts: int
    precision: str
    kind: str
    source: str
    upper_limit: bool = False  # it was less than that


class Machine(NamedTuple):
    """A machine as its papers have it."""

    name: str
    peaks: dict[str, float]  # 10^12 operations a second, by precision, of one part
    bandwidth: float  # 10^9 bytes a second
    watts: float
    dollars: float | None
    kind: str
    note: str
    claims: list[Claim]


def read_machines(path: str | os.PathLike[str] | None = None) -> list[Machine]:
    """Read machines from a TOML file.

    Parameters
    ----------
    path : path-like, optional
        In the form of ``profiling/machines.toml``, which is read unless given.

    Returns
    -------
    list of Machine
        In the file's order.

    Raises
    ------
    MiniresError
        Where a machine lacks what it needs, named.
    """
    path = Path(path or Path(__file__).with_name("machines.toml"))
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["machine"]
        return [_machine(entry) for entry in entries]
    except OSError as error:
        raise MiniresError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MiniresError(f"{path} is not TOML: {error}") from error
    except KeyError as error:
        raise MiniresError(f"{path}: {error} is missing; {FORM}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise MiniresError(f"{path}: {error}; {FORM}") from error


def _machine(entry: dict[str, Any]) -> Machine:
    peaks, kind = entry.get("peak_tops"), entry["kind"]
    if peaks is None:
        each = entry["cores"] * entry["clock_ghz"] / 1e3
        peaks = {p: ops * each for p, ops in entry["ops_per_cycle"].items()}
        kind = f"peak by arithmetic from cores, clock and operations a cycle; {kind}"
    claims = [Claim(**claim) for claim in entry.get("claims", [])]
    positive = [entry["bandwidth_gb_s"], entry["tdp_w"], entry.get("price_usd", 1), *peaks.values()]
    if not all(isinstance(n, int | float) and n > 0 for n in positive):
        raise ValueError(f"{entry['name']} has a figure that is no number above 0")
    for precision in [*peaks, *(claim.precision for claim in claims)]:
        if precision not in WIDTHS or precision not in peaks:
            raise ValueError(f"{entry['name']} has no peak in {precision}, or none is known by it")
    return Machine(
        entry["name"], peaks, entry["bandwidth_gb_s"], entry["tdp_w"], entry.get("price_usd"),
        kind, entry.get("note", ""), claims,
    )  # fmt: skip


def image_bytes(precision: str) -> float:
    """Count what an image moves where each activation goes through the memory once each way.

    Weights are not in it: a large batch shares them.
    """
    rows = {row.name: row for row in summarize(resnet50_layers())}
    layers = resnet50_layers()
    read = [np.prod(rows[name].output_shape) for layer in layers for name in layer.inputs]
    written = [np.prod(rows[layer.name].output_shape) for layer in layers]
    return WIDTHS[precision] * float(sum(read) + sum(written))


def throughput_bounds(machine: Machine, precision: str) -> tuple[float, float]:
    """Bound the images a second of one part: by its peak, and by its memory.

    Parameters
    ----------
    machine : Machine
        From `read_machines`.
    precision : str
        One that it has a peak for.

    Returns
    -------
    by_peak : float
        All multiply-adds at the peak.
    by_memory : float
        All activations through the memory; a cache that holds them lifts this bound.
    """
    return (
        machine.peaks[precision] * 1e3 / GOP,
        machine.bandwidth * 1e9 / image_bytes(precision),
    )


def format_machines(machines: list[Machine]) -> str:
    """Lay out what each machine could do, and what is said of it.

    Parameters
    ----------
    machines : list of Machine
        From `read_machines`.

    Returns
    -------
    str
        A table, and the sources beneath it.
    """
    head = ["machine", "precision", "parts", "TOP/s", "by peak", "by memory", "claimed", "of peak",
            "/W", "/1000 $"]  # fmt: skip
    rows, notes = [], []
    for machine in machines:
        sources: list[str] = []
        for precision, peak in machine.peaks.items():
            claims: list[Claim | None] = [c for c in machine.claims if c.precision == precision]
            for claim in claims or [None]:
                parts = claim.parts if claim else 1
                bound, memory = (parts * b for b in throughput_bounds(machine, precision))
                # Where nobody says how many, it can be no more than the bound.
                said = claim.images_per_second if claim else bound
                mark = "" if claim and not claim.upper_limit else "<"
                cells = [f"{mark}{said:.0f}", f"{mark}{said / bound:.0%}"] if claim else ["", ""]
                cost = parts * (machine.dollars or 0) / 1000
                cells += [f"{mark}{said / parts / machine.watts:.1f}"]
                cells += [f"{mark}{said / cost:.0f}" if cost else ""]
                if claim:
                    sources.append(f"  {cells[0]}: {claim.kind}; {claim.source}")
                rows.append([
                    machine.name, precision, str(parts), f"{parts * peak:.1f}", f"{bound:.0f}",
                    f"{memory:.0f}", *cells,
                ])  # fmt: skip
        notes.append(f"{machine.name}: {machine.kind}.")
        notes += [f"  {machine.note}"] if machine.note else []
        notes += dict.fromkeys(sources)
    legend = (
        f"by peak: images/s if all {GOP:.2f} GOP of ResNet-50 v1.5 (224 x 224) ran at the peak.\n"
        "by memory: if every activation went through the memory, once each way, and weights\n"
        "cost nothing. Claims are images/s of ResNet-50 by all parts together, mostly without\n"
        "saying of which one: v1 has 6% fewer operations. /W: by the parts' TDP alone, and a\n"
        "GPU needs a host besides. /1000 $: by their list price then. Unclaimed: < by the peak."
    )
    return "\n".join([format_columns(head, rows), legend, "", *notes])


def measure_layers(
    models: Mapping[str, ResNet50], x: Array, runs: int = 10
) -> dict[str, list[Row]]:
    """Time every step of networks on this machine.

    Parameters
    ----------
    models : mapping
        Networks, by precision.
    x : ndarray
        What they are run on.
    runs : int
        How often each runs, in turns.

    Returns
    -------
    dict
        By precision, the rows of the steps that multiply: of one run, with the median's time.
    """
    found: dict[str, list[Row]] = {}
    profiles, doubts = _profiles(models, x, runs)
    for precision in models:
        roofs = measure_roofs(precision)
        roofs = roofs._replace(doubts=(*roofs.doubts, *doubts))
        rows = [of_run[precision].rows(roofs=roofs) for of_run in profiles]
        medians = [
            float(np.median([row.seconds for row in same])) for same in zip(*rows, strict=True)
        ]
        found[precision] = [
            row._replace(seconds=seconds)
            for row, seconds in zip(rows[0], medians, strict=True)
            if row.macs
        ]
    return found


def _profiles(
    models: Mapping[str, ResNet50], x: Array, runs: int
) -> tuple[list[dict[str, Profile]], list[str]]:
    """Profile each run by itself, and all of them again where they differ too much."""

    def measure() -> list[dict[str, Profile]]:
        return [profile_in_turns(models, x, 1) for _ in range(runs)]

    def doubts_about(profiles: list[dict[str, Profile]]) -> list[str]:
        found: list[str] = []
        for precision in models:
            times = [of_run[precision].seconds for of_run in profiles]
            found += doubt_spread(f"the network in {precision}", spread_of(times))
        return found

    return measure_until_steady(measure, doubts_about)


def format_layers(layers: Mapping[str, list[Row]], title: str) -> str:
    """Lay out how close each layer comes to its roof.

    Parameters
    ----------
    layers : mapping
        From `measure_layers`.
    title : str
        What was measured, on what.

    Returns
    -------
    str
        A line a layer, with three columns a precision.
    """
    head = ["layer", *(f"{p} {c}" for p in layers for c in ("op/byte", "GOP/s", "of roof"))]
    rows = []
    doubts: list[str] = []
    for of_layer in zip(*layers.values(), strict=True):
        cells = [of_layer[0].name]
        for row in of_layer:
            doubted = row.roofs.doubts if row.roofs else ()
            share = percent(row.of_roof, doubted)
            cells += [f"{row.intensity:.1f}", f"{row.gops:.1f}", f"{share} {row.bound}"]
            doubts += [*doubted, *doubt_share(row.name, row.of_roof)]
        rows.append(cells)
    table = f"{title}\n{format_columns(head, rows)}"
    doubts = list(dict.fromkeys(doubts))  # each once
    return f"{table}\n{verdict(doubts)}" if doubts else table


def plot_layers(layers: Mapping[str, list[Row]], path: str | os.PathLike[str], title: str) -> None:
    """Draw this machine's roofline, each layer a point on it; needs matplotlib.

    Parameters
    ----------
    layers : mapping
        From `measure_layers`.
    path : path-like
        The picture's file: its suffix chooses the format.
    title : str
        What was measured, on what.
    """
    with plots.figure(path, title, width=9, height=5.5) as axes:
        intensity = np.geomspace(0.25, 1024, 200)
        tallest, lowest = 0.0, min(row.gops for rows in layers.values() for row in rows)
        for precision, rows in layers.items():
            color, roofs = plots.COLORS.get(precision), measure_roofs(precision)
            tallest = max(tallest, roofs.peak)
            axes.axhline(roofs.peak, color=color, linewidth=1.5)
            axes.annotate(
                f"{precision} peak, {roofs.peak:.0f} GOP/s", (1000, roofs.peak * 1.06),
                color=color, ha="right",
            )  # fmt: skip
            places = [r.intensity for r in rows], [r.gops for r in rows]
            label = f"{precision}, {len(rows)} layers"
            axes.scatter(*places, s=18, color=color, label=label, alpha=0.8, linewidths=0)
        for level in measure_roofs("fp32").memory[1:]:
            reach = level.all * intensity
            inside = reach <= tallest
            if not inside.any():
                continue
            axes.plot(intensity[inside], reach[inside], color="0.6", linewidth=1)
            axes.annotate(
                f"{level.level}, {level.all:.0f} GB/s", (intensity[inside][0], reach[inside][0]),
                color="0.4", xytext=(8, -6), textcoords="offset points",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=(0.2, 1500), ylim=(min(1, lowest), 2 * tallest),
                 xlabel="operations a byte (each operand read once, each result written once)",
                 ylabel="10⁹ operations a second")  # fmt: skip
        axes.legend(loc="lower right")


def plot_machines(machines: list[Machine], path: str | os.PathLike[str]) -> None:
    """Draw what machines could do and what is claimed of them, as bars; needs matplotlib.

    Parameters
    ----------
    machines : list of Machine
        From `read_machines`.
    path : path-like
        The picture's file: its suffix chooses the format.
    """
    bars = [
        (f"{claim.parts} x {machine.name}, {claim.precision} ({claim.source.partition(',')[0]})",
         claim.parts * throughput_bounds(machine, claim.precision)[0], claim.images_per_second)
        for machine in machines for claim in machine.claims if not claim.upper_limit
    ] or [
        (f"{machine.name}, {precision}", throughput_bounds(machine, precision)[0], 0.0)
        for machine in machines for precision in machine.peaks
    ]  # fmt: skip
    title = "ResNet-50: what the peak allows, and what is claimed (sources: minires roofline)"
    with plots.figure(path, title, width=9, height=1.2 + 0.35 * len(bars)) as axes:
        places = range(len(bars))
        axes.barh(places, [bound for _, bound, _ in bars], color="0.85", label="bound by the peak")
        axes.barh(places, [said for _, _, said in bars], 0.45, color="tab:orange", label="claimed")
        axes.set_yticks(places, [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.set_xlabel("images a second")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
