"""Where the 4x goes: from a quarter of FP32's time to INT8's, part by part.

By vector instructions INT8's peak is at most four times FP32's, so a part that keeps all of it
takes a quarter of its FP32 time. Each part's time beyond its quarter is a bar of the waterfall, and
the bars add up to T_int8 - T_fp32 / 4 exactly. A negative bar is a part that became more than four
times as fast: its data fits a cache only in INT8, or the CPU has AMX. An ablation measures why the
convolutions exceed their quarter: it times the same layers again without one cause.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.kernels.engine import Engine
from minires.kernels.operators import compile_network
from minires.layers import Array
from minires.measure import plots, session
from minires.measure.latency import PREPROCESSING, time_preprocessing
from minires.measure.machine import describe_measurement
from minires.measure.peak import doubt_gain, peak_of
from minires.measure.profiler import Profile, profile
from minires.measure.rows import SHORT
from minires.measure.text import format_columns
from minires.measure.trust import (
    doubt_pair,
    doubt_spread,
    mark,
    measure_until_steady,
    spread_of,
    verdict,
)
from minires.model import ResNet50
from minires.summary import summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REST = "rest, unexplained"  # the whole's time less the sum of its parts


class Part(NamedTuple):
    """A part of the network, with its seconds in both precisions."""

    name: str
    fp32: float
    int8: float

    @property
    def excess(self) -> float:
        """The part's bar: its INT8 time less a quarter of its FP32 time."""
        return self.int8 - self.fp32 / 4


COLORS = {
    "the whole network": plots.BLUE,
    "beyond a quarter": plots.ORANGE,
    "unexplained": plots.GREY,
    "before the network, in any precision": plots.GREEN,
    "a cause": plots.RED,
}
WHOLE, EXCESS, UNKNOWN, BEFORE, CAUSE = COLORS


class Waterfall(NamedTuple):
    """Where the 4x went."""

    title: str
    whole: Part
    spread: Part  # of the whole's times: third quartile less first
    parts: list[Part]  # they add up to the whole
    convolutions: Part  # as the ablation measures them, each layer by itself
    ablation: list[tuple[str, float]]  # causes, and seconds of the convolutions' excess by each
    preprocessing: dict[str, float]  # seconds of decode, resize and normalize
    others: dict[str, float]  # seconds of the whole in other precisions
    doubts: list[str]  # reasons to doubt these figures; see `minires.measure.trust`

    def plot(self, path: str | os.PathLike[str] | None = None, dark: bool = False) -> "Figure":
        """Draw the waterfall, and the causes behind it; needs matplotlib."""
        whole = self.whole
        quarter = self.whole.fp32 / 4
        steps = [("fp32 / 4", quarter, WHOLE)]
        steps += [(part.name, part.excess, EXCESS) for part in self.parts[:-1]]
        steps += [(REST, self.parts[-1].excess, UNKNOWN), ("int8", whole.int8, WHOLE)]
        steps += [(name, seconds, BEFORE) for name, seconds in self.preprocessing.items()]
        convs = [(n, s, UNKNOWN if n == "unexplained" else CAUSE) for n, s in self.ablation]
        title = f"Where the 4x goes: {self.title}"
        # One above the other, and no wider than a phone shows legibly.
        rows = len(steps), len(convs)
        height = 2.6 + 0.25 * sum(rows)
        size = 4.7, height, 1, dark, rows, self.doubts
        with plots.drawing(path, title, *size) as (drawn, (upper, lower)):
            _draw(upper, steps, self.doubts, totals=("fp32 / 4", "int8"))
            upper.set_xlabel("milliseconds of an image:\nexcess over a quarter of FP32's time")
            # A second scale of the same axis shows ratios: FP32's time over the time at that place.
            # It ends at INT8's, because preprocessing, further right, is not part of that ratio.
            last = whole.fp32 / whole.int8
            apart = 0.12 * upper.get_xlim()[1]  # so that the numbers do not overlap
            ticks = [round(last, 2)]
            for ratio in (1.5, 2, 3, 4):
                if 1e3 * whole.fp32 * (1 / ticks[-1] - 1 / ratio) > apart:
                    ticks.append(ratio)
            ratios = upper.secondary_xaxis("top")
            ratios.set_xticks([1e3 * whole.fp32 / r for r in ticks], [f"{r:g}x" for r in ticks])
            ratios.set_xlabel("FP32's time over this")
            _draw(lower, convs, self.doubts)
            lower.set_xlabel("milliseconds of the convolutions' excess,\nby ablation")
            plots.explain(drawn, COLORS.items())
        return drawn

    def _repr_html_(self) -> str:
        """Show it in a notebook: the picture, and the figures behind a fold."""
        return plots.page(self.plot, format_waterfall(self))


class _Times(NamedTuple):
    """One measurement of the networks, run by run, in seconds."""

    before: list[dict[str, float]]  # preprocessing, by its parts
    whole: dict[str, list[float]]  # the network, by precision
    parts: dict[str, list[dict[str, float]]]  # the network's parts, by precision and name

    @property
    def doubts(self) -> list[str]:
        """Runs that differ too much, and parts that do not add up to the whole."""
        found: list[str] = []
        for precision, times in self.whole.items():
            name = f"the network in {precision}"
            added = [sum(parts.values()) for parts in self.parts[precision]]
            found += doubt_spread(name, spread_of(times))
            found += doubt_pair(name, float(np.median(times)), float(np.median(added)))
        return found


def measure_waterfall(
    models: Mapping[str, ResNet50], data: bytes, group: str = "stage", rounds: int = 30
) -> Waterfall:
    """Time two precisions in turns, whole and by parts, and find the causes of the difference.

    `models` are compiled networks by precision: fp32, int8, and others to show beside these.
    `group` tells what makes a part, as for a profile. All figures are medians.
    """
    x, _ = time_preprocessing(data, models["fp32"].meta["preset"])
    session.say(f"the waterfall: {rounds} runs of the whole and of its parts")
    times, doubts = measure_until_steady(
        lambda: _measure_times(models, data, x, group, rounds), lambda times: times.doubts
    )
    quartiles = {p: np.percentile(seconds, [25, 50, 75]) for p, seconds in times.whole.items()}
    middle = {p: float(q[1]) for p, q in quartiles.items()}

    def median(precision: str, name: str) -> float:
        return float(np.median([parts[name] for parts in times.parts[precision]]))

    found = [Part(n, median("fp32", n), median("int8", n)) for n in times.parts["int8"][0]]
    rest = (middle[p] - sum(getattr(part, p) for part in found) for p in ("fp32", "int8"))
    wide = {p: float(q[2] - q[0]) for p, q in quartiles.items()}
    shape = " x ".join(map(str, x.shape))
    stages = found if group == "stage" else []
    (convolutions, causes), more = measure_until_steady(
        lambda: ablate(models, x, rounds), lambda pair: doubt_convolutions(stages, pair[0])
    )
    used, of_fp32 = peak_of("u8s8"), peak_of("f32")
    more += [*used.doubts, *of_fp32.doubts, *doubt_gain(used, of_fp32)]
    return Waterfall(
        f"{shape}, {models['int8'].meta['name']}, on {describe_measurement()}",
        Part("whole", middle["fp32"], middle["int8"]),
        Part("spread", wide["fp32"], wide["int8"]),
        [*found, Part(REST, *rest)],
        convolutions,
        causes,
        {name: float(np.median([b[name] for b in times.before])) for name in PREPROCESSING},
        {p: middle[p] for p in models if p not in ("fp32", "int8")},
        [*doubts, *more],
    )


def _measure_times(
    models: Mapping[str, ResNet50], data: bytes, x: Array, group: str, rounds: int
) -> _Times:
    preset = models["fp32"].meta["preset"]
    before: list[dict[str, float]] = []
    whole: dict[str, list[float]] = {precision: [] for precision in models}
    profiles: dict[str, list[Profile]] = {precision: [] for precision in models}
    for _ in range(rounds):
        before.append(time_preprocessing(data, preset)[1])
        for precision, model in models.items():
            model(x)  # brings its weights into the cache and wakes the threads, for both runs below
            started = time.perf_counter()
            model(x)
            whole[precision].append(time.perf_counter() - started)
            with profile(model) as prof:
                model(x)
            profiles[precision].append(prof)
    # Only now, because adding up between the runs would disturb them.
    parts = {
        precision: [{row.name: row.seconds for row in prof.rows(group)} for prof in runs]
        for precision, runs in profiles.items()
    }
    return _Times(before, whole, parts)


def doubt_convolutions(stages: Sequence[Part], alone: Part) -> list[str]:
    """Doubt convolutions that take another time by themselves than in the network's stages."""
    found: list[str] = []
    if not stages:  # the parts are others
        return found
    for precision in ("fp32", "int8"):
        # All steps of these stages are convolutions; an addition is the epilogue of one.
        inside = sum(getattr(s, precision) for s in stages if s.name.startswith(("conv", "layer")))
        name = f"the {precision} convolutions' milliseconds"
        found += doubt_pair(name, 1e3 * getattr(alone, precision), 1e3 * inside)
    return found


def ablate(
    models: Mapping[str, ResNet50], x: Array, rounds: int
) -> tuple[Part, list[tuple[str, float]]]:
    """Find the causes of the convolutions' excess by leaving one after another out.

    x is one image, (1, 3, H, W) float32. You get the convolutions' times in both precisions, and
    each cause's seconds of the excess. The causes add up to the excess.
    """
    if len(x) != 1:
        raise MiniresError(f"an ablation measures one image, not {len(x)}")
    convs = {}
    epilogue = {}
    edges = {}
    for precision in ("fp32", "int8"):
        session.say(f"the waterfall's causes: {precision} without its epilogue, without edges")
        engine = Engine(list(models[precision].layers), models[precision].params, precision)
        steps = [i for i, layer in enumerate(engine.layers) if layer.op == "conv"]
        shapes = [row.output_shape for row in summarize(engine.layers, *x.shape[2:])]
        M = np.array([np.prod(shapes[i][:3]) for i in steps])
        MR = engine.tiling.rows
        tiles = np.maximum(1, M // MR)  # full tiles only; a layer with less than one is left alone
        plain = compile_network(f"{precision}, plain store", engine.isa.name)
        times = np.empty((3, len(steps), rounds))
        clocks = []  # both clocks at the same moments: a tick's seconds are not known
        for r in range(rounds):
            for way in range(3):
                engine(x)  # puts true activations into the buffers, and the same data into caches
                clocks.append((time.perf_counter(), engine.ticks[-1]))
                program = engine.program(x.shape).steps.copy()
                if way == 2:
                    program["rows"][steps] = tiles
                    program["block"] = np.minimum(program["block"], program["rows"])
                for j, i in enumerate(steps):
                    times[way, j, r] = engine.time_step(program, i, plain if way == 1 else None)
        seconds, ticks = np.subtract(clocks[-1], clocks[0])
        normal, stored, inner = seconds / ticks * np.median(times, axis=2)
        convs[precision] = normal.sum()
        epilogue[precision] = (normal - stored).sum()
        edges[precision] = (normal - inner * M / (tiles * MR))[MR <= M].sum()
    used = peak_of("u8s8"), peak_of("f32")
    ratio = used[0].all_gops / used[1].all_gops
    bare_fp32 = convs["fp32"] - epilogue["fp32"] - edges["fp32"]
    name = f"instruction: {used[0].instruction.name} peaks at {ratio:.2f}x"
    causes = [
        # The peaks of the kernels' instructions do not differ by 4: computed, not left out.
        (name, bare_fp32 * (1 / ratio - 1 / 4)),
        # Compared with a plain store of the sums.
        ("epilogue", epilogue["int8"] - epilogue["fp32"] / 4),
        # Compared with full tiles only, in layers that have one.
        ("edges of tiles", edges["int8"] - edges["fp32"] / 4),
    ]
    whole = Part("convolutions", float(convs["fp32"]), float(convs["int8"]))
    causes.append(("unexplained", whole.excess - sum(seconds for _, seconds in causes)))
    return whole, [(cause, float(seconds)) for cause, seconds in causes]


def format_waterfall(fall: Waterfall) -> str:
    """Lay out the waterfall, its causes and the whole application as text, in milliseconds."""

    def ms(seconds: float) -> str:
        return mark(f"{1e3 * seconds:.3f}", fall.doubts)

    def row(part: Part) -> list[str]:
        long_enough = min(part.fp32, part.int8) > SHORT
        ratio = mark(f"{part.fp32 / part.int8:.2f}x", fall.doubts) if long_enough else ""
        return [part.name, ms(part.fp32), ms(part.fp32 / 4), ms(part.int8), ms(part.excess), ratio]

    whole, spread = fall.whole, fall.spread
    head = ["milliseconds", "fp32", "a quarter", "int8", "excess", "ratio"]
    lines = [fall.title, *([verdict(fall.doubts)] if fall.doubts else [])]
    lines.append(format_columns(head, [*map(row, fall.parts), row(whole)]))
    lines.append(
        "each a median, of a part or of the whole; spread of the whole, third quartile less first: "
        f"fp32 {ms(spread.fp32)}, int8 {ms(spread.int8)}"
    )
    lines += [
        f"{p}: {ms(t)}, {whole.fp32 / t:.2f}x as fast as fp32" for p, t in fall.others.items()
    ]
    convs = fall.convolutions
    lines += [
        "",
        "Why the convolutions do not take a quarter, by ablation: each layer by itself, they take",
        f"{ms(convs.fp32)} in fp32 and {ms(convs.int8)} in int8, {ms(convs.excess)} beyond it.",
    ]
    rows = [[cause, ms(seconds)] for cause, seconds in fall.ablation]
    lines.append(format_columns(["cause", "ms"], rows))
    before = sum(fall.preprocessing.values())
    lines += ["", "With what comes before the network, which no precision changes:"]
    lines.append("  " + ", ".join(f"{n} {ms(t)}" for n, t in fall.preprocessing.items()))
    decode = fall.preprocessing["decode"]
    network = whole.fp32 / whole.int8
    for name, time_before in [("decoding alone", decode), ("all of it", before)]:
        now, ideal = (
            (whole.fp32 + time_before) / (int8 + time_before)
            for int8 in (whole.int8, whole.fp32 / 4)
        )
        lines.append(
            f"  {name}: {network:.2f}x becomes {now:.2f}x, and a full 4x would become {ideal:.2f}x"
        )
    return "\n".join(lines)


def _draw(
    axes: Any,
    steps: list[tuple[str, float, str]],
    doubts: Sequence[str],
    totals: tuple[str, ...] = (),
) -> None:
    """Draw bars that each begin at the end of the bar before; totals begin at zero."""
    beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
    at = 0.0
    for i, (name, seconds, meaning) in enumerate(steps):
        start = 0.0 if name in totals else at
        end = start + seconds
        axes.barh(i, 1e3 * seconds, left=1e3 * start, color=COLORS[meaning])
        text = f"{1e3 * seconds:.2f}" if name in totals else f"{1e3 * seconds:+.2f}"
        axes.annotate(mark(text, doubts), (1e3 * max(start, end), i), **beside)
        at = end
    axes.set_yticks(range(len(steps)), [name.replace(": ", ":\n") for name, *_ in steps])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.2, y=0.02)
    low, high = axes.get_xlim()
    axes.set_xlim(min(0, low), high)
