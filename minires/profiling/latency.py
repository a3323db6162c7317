"""Latency of the whole way from a file's bytes to a label, and throughput by batch."""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minires import plots
from minires.layers import Array
from minires.model import ResNet50
from minires.profiling.machine import describe_machine
from minires.profiling.text import format_columns
from minires.profiling.waterfall import PREPROCESSING, time_preprocessing
from minires.reference import softmax_ref

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "maximum": 100}


class Latency(NamedTuple):
    """What single images took."""

    title: str
    seconds: dict[str, Array]  # of each run, by part: decode to softmax, and the whole
    throughput: list[tuple[int, float, float]]  # batch, images a second, its spread


def measure_latency(
    model: ResNet50, data: bytes, runs: int = 200, batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
) -> Latency:
    """Bring an image from bytes to a label over and over; then time batches of it.

    Parameters
    ----------
    model : ResNet50
        Any precision, either backend.
    data : bytes
        An image file's.
    runs : int
        How many images, one after the other.
    batches : sequence of int
        Batch sizes for the throughput of the network alone.

    Returns
    -------
    Latency
        Parts are decode, resize, normalize, inference and softmax.
    """
    preset = model.meta["preset"]
    names = (*PREPROCESSING, "inference", "softmax", "whole")
    times = np.empty((runs + 3, len(names)))
    for row in times:
        started = time.perf_counter()
        x, before = time_preprocessing(data, preset)
        ready = time.perf_counter()
        logits = model(x)
        computed = time.perf_counter()
        softmax_ref(logits).argsort()
        ended = time.perf_counter()
        row[:] = (*before.values(), computed - ready, ended - computed, ended - started)
    seconds = dict(zip(names, times[3:].T, strict=True))  # the first ones lay out the buffers
    throughput = []
    for batch in batches:
        xs = np.repeat(x, batch, axis=0)
        model(xs)
        rates: list[float] = []
        while len(rates) < 5 or (sum(batch / rate for rate in rates) < 0.5 and len(rates) < 50):
            started = time.perf_counter()
            model(xs)
            rates.append(batch / (time.perf_counter() - started))
        low, middle, high = np.percentile(rates, [25, 50, 75])
        throughput.append((batch, float(middle), float((high - low) / middle)))
    title = (
        f"{model.precision}, {model.backend}, {' x '.join(map(str, x.shape))}, {runs} images, on "
        f"{describe_machine()}"
    )
    return Latency(title, seconds, throughput)


def format_latency(latency: Latency) -> str:
    """Lay out percentiles and throughput as two tables.

    Parameters
    ----------
    latency : Latency
        From `measure_latency`.

    Returns
    -------
    str
        Percentiles are of each part by itself, so they do not add up.
    """
    rows = [
        [part, *(f"{1e3 * np.percentile(s, p):.2f}" for p in PERCENTILES.values())]
        for part, s in latency.seconds.items()
    ]
    table = format_columns(["milliseconds", *PERCENTILES], rows)
    batches = format_columns(
        ["batch", "images/s", "spread"],
        [
            [str(batch), f"{rate:.1f}", f"{spread:.0%}"]
            for batch, rate, spread in latency.throughput
        ],
    )
    return f"{latency.title}\n{table}\n\nthe network alone\n{batches}"


def plot_latency(latencies: Sequence[Latency], path: str | os.PathLike[str]) -> None:
    """Draw how long images take, and throughput by batch, of one precision or several.

    Parameters
    ----------
    latencies : sequence of Latency
        From `measure_latency`.
    path : path-like
        The picture's file: its suffix chooses the format. Needs matplotlib.
    """
    title = "\n".join(latency.title for latency in latencies)
    with plots.figure(path, title, height=3.9, columns=2) as (left, right):
        for latency in latencies:
            precision = latency.title.partition(",")[0]
            color = plots.COLORS.get(precision, "tab:gray")
            for part, style in [("whole", "-"), ("inference", "--")]:
                ordered = np.sort(1e3 * latency.seconds[part])
                shares = np.arange(1, len(ordered) + 1) / len(ordered)
                left.step(ordered, shares, style, color=color, label=f"{precision}, {part}")
            batches, rates, _ = zip(*latency.throughput, strict=True)
            right.plot(range(len(batches)), rates, "o-", color=color, label=precision)
            right.set_xticks(range(len(batches)), batches)
        left.set(xlabel="milliseconds from bytes to label", ylabel="share of images done by then")
        left.set(ylim=(0, 1.02), xlim=(0, None))
        left.legend(loc="lower right")
        right.set(xlabel="batch", ylabel="images a second, the network alone", ylim=(0, None))
        right.legend(loc="lower right")
