"""Latency from a file's bytes to a label, and throughput by batch."""

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minires.images import load_image
from minires.layers import Array
from minires.measure import plots, session
from minires.measure.machine import describe_measurement
from minires.measure.text import format_columns
from minires.measure.trust import doubt_spread, mark, measure_until_steady, spread_of, verdict
from minires.model import ResNet50
from minires.preprocess import Preset, normalize, resize_and_crop
from minires.reference import softmax_ref

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "maximum": 100}
PREPROCESSING = ("decode", "resize", "normalize")


class Latency(NamedTuple):
    """The times of single images, and the throughput of batches."""

    title: str
    precision: str
    seconds: dict[str, Array]  # of each run, by part: decode to softmax, and the whole
    throughput: list[tuple[int, float, float]]  # batch, images a second, its spread

    @property
    def doubts(self) -> list[str]:
        """The reasons to doubt its figures; see `minires.measure.trust`."""
        found = doubt_spread(f"an image in {self.precision}", spread_of(self.seconds["whole"]))
        for batch, _, spread in self.throughput:
            found += doubt_spread(f"batches of {batch} in {self.precision}", spread)
        return found


def time_preprocessing(data: bytes, preset: Preset) -> tuple[Array, dict[str, float]]:
    """Turn an image file's bytes into the network's input, and time each step.

    You get the input, (1, 3, H, W) float32, and the seconds of decode, resize (with the crop) and
    normalize.
    """
    times = [time.perf_counter()]
    image = load_image(data)
    times.append(time.perf_counter())
    crop_u8 = resize_and_crop(image, preset)
    times.append(time.perf_counter())
    x = normalize(crop_u8, preset)[np.newaxis]
    times.append(time.perf_counter())
    return x, dict(zip(PREPROCESSING, np.diff(times).tolist(), strict=True))


def measure_latency(
    models: Mapping[str, ResNet50],
    data: bytes,
    runs: int = 200,
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
) -> list[Latency]:
    """Time the way from an image file's bytes to a label many times, then batches of the image.

    The networks, by precision, take turns of a tenth of the runs each. `batches` are for the
    throughput of the network alone, without preprocessing and softmax.
    """
    rows: dict[str, list[list[float]]] = {precision: [] for precision in models}
    turn = max(1, runs // 10)
    while (done := len(next(iter(rows.values())))) < runs:
        session.say(f"{min(done + turn, runs)} of {runs} images in each of {', '.join(models)}")
        for precision, model in models.items():
            _one_image(model, data)  # so that its weights are in the cache again
            left = min(turn, runs - len(rows[precision]))
            rows[precision] += [_one_image(model, data) for _ in range(left)]
    found = []
    for precision, model in models.items():
        names = (*PREPROCESSING, "inference", "softmax", "whole")
        seconds = dict(zip(names, np.array(rows[precision]).T, strict=True))
        x, _ = time_preprocessing(data, model.meta["preset"])
        name = f"{model.meta.get('name', 'ResNet-50')}, {precision}, {model.backend}"
        of_images = f"{' x '.join(map(str, x.shape))}, {runs} images"
        title = f"{name}, {of_images}, on {describe_measurement()}"
        session.say(f"batches of {', '.join(map(str, batches))} in {precision}")
        throughput = [(batch, *_throughput(model, x, batch)) for batch in batches]
        found.append(Latency(title, precision, seconds, throughput))
    return found


def _one_image(model: ResNet50, data: bytes) -> list[float]:
    started = time.perf_counter()
    x, before = time_preprocessing(data, model.meta["preset"])
    ready = time.perf_counter()
    logits = model(x)
    computed = time.perf_counter()
    softmax_ref(logits).argsort()
    ended = time.perf_counter()
    return [*before.values(), computed - ready, ended - computed, ended - started]


def _throughput(model: ResNet50, x: Array, batch: int) -> tuple[float, float]:
    """Return the images a second of a batch: the median, and how far the quartiles lie apart."""
    xs = np.repeat(x, batch, axis=0)
    model(xs)

    def measure() -> Array:
        times: list[float] = []
        while len(times) < 5 or (sum(times) < 0.5 and len(times) < 50):
            started = time.perf_counter()
            model(xs)
            times.append(time.perf_counter() - started)
        return batch / np.array(times)

    rates, _ = measure_until_steady(
        measure, lambda rates: doubt_spread("a batch", spread_of(rates))
    )
    return float(np.median(rates)), spread_of(rates)


def format_latency(latency: Latency) -> str:
    """Lay out percentiles and throughput as two tables."""
    # Each part has its own percentiles, so those of the parts do not add up to those of the whole.
    doubts = latency.doubts
    rows = []
    for part, seconds in latency.seconds.items():
        cells = [part]
        for percentile in PERCENTILES.values():
            # A percentile needs images beyond it: 50 images have no p99.
            if percentile < 100 and len(seconds) < 100 / (100 - percentile):
                cells.append("-")
            else:
                cells.append(mark(f"{1e3 * np.percentile(seconds, percentile):.2f}", doubts))
        rows.append(cells)
    table = format_columns(["milliseconds", *PERCENTILES], rows)
    batches = format_columns(
        ["batch", "images/s", "spread"],
        [
            [str(batch), mark(f"{rate:.1f}", doubt_spread("", spread)), f"{spread:.0%}"]
            for batch, rate, spread in latency.throughput
        ],
    )
    title = f"{latency.title}\n{verdict(doubts)}" if doubts else latency.title
    return f"{title}\n{table}\n\nthe network alone\n{batches}"


def plot_latency(
    latencies: Sequence[Latency], path: str | os.PathLike[str] | None = None, dark: bool = False
) -> "Figure":
    """Draw how long images take, and the throughput by batch; needs matplotlib."""
    # The precisions are in the legends, so titles that differ in nothing else are one.
    titles = [latency.title.replace(f", {latency.precision},", ",", 1) for latency in latencies]
    title = "\n".join(dict.fromkeys(titles))
    doubts = [doubt for latency in latencies for doubt in latency.doubts]
    size = 10, 4.2, 2, dark
    with plots.drawing(path, title, *size, doubts=doubts) as (drawn, (left, right)):
        for latency, marker in zip(latencies, itertools.cycle("os^Dv")):
            precision = latency.precision
            color = plots.COLORS.get(precision, plots.GREY)
            for part, style in [("whole", "-"), ("inference", "--")]:
                ordered = np.sort(1e3 * latency.seconds[part])
                shares = np.arange(1, len(ordered) + 1) / len(ordered)
                left.step(ordered, shares, style, color=color, label=f"{precision}, {part}")
            batches, rates, _ = zip(*latency.throughput, strict=True)
            line = f"{marker}-"
            right.plot(range(len(batches)), rates, line, color=color, label=precision)
            right.set_xticks(range(len(batches)), batches)
        left.set(xlabel="milliseconds from bytes to label", ylabel="share of images done by then")
        left.set(ylim=(0, 1.02), xlim=(0, None))
        right.set(xlabel="batch", ylabel="images a second, the network alone", ylim=(0, None))
        for axes in (left, right):  # above, where no line is
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return drawn
