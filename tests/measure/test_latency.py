"""Latency is of the whole way, and its parts are parts of it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from minires.measure.latency import (
    PREPROCESSING,
    Latency,
    format_latency,
    measure_latency,
    plot_latency,
    time_preprocessing,
)
from minires.model import ResNet50
from minires.preprocess import preprocess
from tests.comparing import assert_same
from tests.measure.conftest import PRESET


def test_the_parts_make_the_whole(
    models: Mapping[str, ResNet50], photograph: bytes, tmp_path: Path
) -> None:
    of_fp32, latency = measure_latency(models, photograph, runs=12, batches=(1, 3))
    assert (of_fp32.precision, latency.precision) == ("fp32", "int8")
    parts = ["decode", "resize", "normalize", "inference", "softmax"]
    assert list(latency.seconds) == [*parts, "whole"]
    added = sum(latency.seconds[part] for part in parts)
    assert added.shape == (12,)
    assert (added <= latency.seconds["whole"]).all()
    # What lies between the parts is a few calls; the best run is one that nobody interrupted.
    assert (added / latency.seconds["whole"]).max() > 0.9
    assert [batch for batch, *_ in latency.throughput] == [1, 3]
    text = format_latency(latency)
    assert text.startswith("seeded, int8, numba, 1 x 3 x 32 x 32, 12 images, on ")
    lines = [line.replace("?", "").split() for line in text.splitlines()]  # marks of a busy machine
    assert ["milliseconds", "p50", "p90", "p99", "maximum"] in lines
    (whole,) = (line[1:] for line in lines if line[:1] == ["whole"])
    assert float(whole[3]) == pytest.approx(1e3 * latency.seconds["whole"].max(), abs=0.006)
    assert whole[2] == "-"  # of twelve images there is no 99th percentile
    assert float(whole[0]) <= float(whole[1]) <= float(whole[3])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot_latency([latency, latency], tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 10_000
    assert np.isfinite(added).all()


def test_what_is_in_doubt_is_marked() -> None:
    parts = ("decode", "resize", "normalize", "inference", "softmax", "whole")
    steady = Latency("title", "int8", {part: np.full(12, 0.25) for part in parts}, [(1, 4.0, 0.1)])
    text = format_latency(steady)
    assert "250.00 " in text
    assert "?" not in text
    assert "NOT STEADY" not in text
    text = format_latency(steady._replace(throughput=[(1, 4.0, 0.1), (2, 5.0, 0.9)]))
    assert text.splitlines()[1].startswith("NOT STEADY: runs of batches of 2 in int8 differ by 90%")
    assert "5.0?" in text
    assert "4.0?" not in text
    uneven = steady.seconds | {"whole": np.array([0.25, 0.75] * 6)}
    assert "runs of an image in int8 differ" in format_latency(steady._replace(seconds=uneven))


def test_preprocessing_is_what_preprocess_does(photograph: bytes) -> None:
    x, seconds = time_preprocessing(photograph, PRESET)
    assert_same(x, preprocess(photograph, PRESET))
    assert tuple(seconds) == PREPROCESSING
    assert min(seconds.values()) > 0
