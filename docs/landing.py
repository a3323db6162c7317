"""Draw what the landing page shows: how fast INT8 is, and where its 4x goes, in a recorded run."""

from typing import Any

import book
import matplotlib
from matplotlib.figure import Figure
from recorded import runs

from minires.measure.plots import BLUE, ORANGE
from minires.measure.trust import mark

LEAST = 0.02  # of INT8's time: smaller parts are one bar together


def waterfall() -> str:
    """Lay out the waterfall of the recorded run whose gain is nearest to 4, as Markdown."""
    return page(min(runs("waterfall", "peaks"), key=lambda run: abs(gain(run) - 4)))


def gain(run: Any) -> float:
    """Tell how many times as fast as FP32 INT8 is."""
    whole = run.waterfall.whole
    return float(whole.fp32 / whole.int8)


def page(run: Any) -> str:
    """Lay out a run's figures: a sentence, the picture, and where it comes from."""
    fall = run.waterfall
    # The bars are the whole network's. What is in doubt of its causes is chapter 14's to tell.
    doubts = [doubt for doubt in fall.doubts if "network" in doubt]
    fp32_ms, int8_ms = 1e3 * fall.whole.fp32, 1e3 * fall.whole.int8
    fp32, quarter, int8, ratio = (
        mark(f"{figure:.1f}", doubts) for figure in (fp32_ms, fp32_ms / 4, int8_ms, gain(run))
    )
    sentence = (
        f"**INT8 is {ratio} times as fast as FP32** on the machine below: a photograph of 224 x "
        f"224 pixels takes {int8} ms in place of {fp32}. A quarter would be {quarter} ms. "
        f"{instruction(run)}"
    )
    if doubts:
        sentence += " (A ? marks a figure in doubt.)"
    alt = (
        f"A waterfall of times: FP32 takes {fp32} ms, a quarter of that is {quarter} ms. What the "
        f"parts of the network take beyond their quarter leads from there to INT8's {int8} ms."
    )
    why = f" These figures are in doubt: {doubts[0]}." if doubts else ""
    apart = "[Chapter 14](chapters/14_waterfall) goes through such a run part by part."
    caption = f"Recorded on {run}.{why} {apart}"
    with matplotlib.rc_context(book.STYLE):
        drawn = book.to_svg(draw(fall))
    return f"{sentence}\n\n{book.picture(drawn, {'alt': alt, 'caption': caption})}"


def instruction(run: Any) -> str:
    """Say whether this machine has the instruction that a quarter takes."""
    names = {peak.name for peak in run.peaks}
    has = "one" if names & {"vpdpbusd", "tdpbusd", "sdot", "usdot", "usmmla"} else "none"
    return (
        "To come near that, a CPU needs an instruction that multiplies bytes and adds them up: "
        f"`vpdpbusd` (VNNI) on x86, or `sdot` on ARM. This CPU has {has}."
    )


def draw(fall: Any) -> Figure:
    """Draw FP32's time, a quarter of it, what each part takes beyond that, and INT8's time."""
    whole, quarter = fall.whole, fall.whole.fp32 / 4
    large = [part for part in fall.parts if abs(part.excess) >= LEAST * whole.int8]
    rest = whole.int8 - quarter - sum(part.excess for part in large)
    steps = [(part.name, part.excess) for part in large] + [("all else", rest)]
    bars = [("FP32", 0.0, whole.fp32, BLUE), ("a quarter", 0.0, quarter, BLUE)]
    at = quarter
    for name, seconds in steps:
        bars.append((name, at, seconds, ORANGE))
        at += seconds
    bars.append(("INT8", 0.0, whole.int8, BLUE))
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for i, (name, start, seconds, color) in enumerate(bars):
        axes.barh(name, 1e3 * seconds, left=1e3 * start, color=color)
        sign = "+" if 2 <= i < len(bars) - 1 else ""
        end = 1e3 * max(start, start + seconds)
        beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{1e3 * seconds:{sign}.1f}", (end, i), **beside)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds")
    return figure
