"""Plots as pictures: nothing covers anything, colours can be told apart, on white and on black."""

import colorsys
import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.errors import MiniresError
from minires.ladder.climb import Ladder, Result, rungs
from minires.measure import plots, roofline
from minires.measure.latency import Latency, plot_latency
from minires.measure.machine import Roofs
from minires.measure.peak import Bandwidth
from minires.measure.profiler import profile
from minires.measure.rows import Row
from minires.measure.waterfall import Part, Waterfall
from minires.model import ResNet50, resnet50_layers
from minires.quantize.sensitivity import Gain, plot_sensitivity
from tests.seeded_weights import seeded_input

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
# The caches are as fast as each other, and two peaks are nearly equal.
LEVELS = [Bandwidth(name, 2**20, rate, rate, 2) for name, rate in
          [("L1", 100), ("L2", 51), ("L3", 50), ("memory", 9)]]  # fmt: skip
ROOFS = {"fp32": Roofs(100.0, LEVELS), "bf16": Roofs(104.0, LEVELS), "int8": Roofs(400.0, LEVELS)}
DOUBTS = ["others had 86% of the cores' time during fma", "runs of fma differ by 24%"]
TITLE = (
    "1 x 3 x 224 x 224, imagenet.safetensors, on Intel Xeon Platinum (AVX-512, VNNI, AMX), "
    "avx512bf16, 2 threads, 2026-11-27, minires 0.1.0, measured quickly"
)
PARTS = ("decode", "resize", "normalize", "inference", "softmax", "whole")


def fall(*names: str, doubts: list[str] = DOUBTS) -> Waterfall:
    parts = [Part(n, 0.01, 0.004) for n in names or [f"layer{i}" for i in range(5)]]
    parts += [Part("rest", 0.001, 0.0005)]
    whole = Part("whole", 0.051, 0.0205)
    causes = [("instruction: x peaks at 2.5x", 0.004), ("epilogue", 0.003), ("unexplained", -0.001)]
    before = {"decode": 0.002, "resize": 0.001, "normalize": 0.0001}
    return Waterfall(TITLE, whole, whole, parts, whole, causes, before, {}, doubts)


def draw_roofline(path: Path | None, dark: bool) -> Any:
    layers = {}
    for precision, roofs in ROOFS.items():
        doubted = roofs._replace(doubts=tuple(DOUBTS))
        # The second is far above its roof.
        layers[precision] = [
            Row(name, "conv", 1, 1e-3, macs, 10**5, 0, doubted)
            for name, macs in [("a", 10**7), ("b", 10**9)]
        ]
    return roofline.plot_layers(layers, path, TITLE, dark)


def draw_latency(path: Path | None, dark: bool) -> Any:
    latencies = [
        Latency(f"a network, {p}, numba, on a machine", p, dict.fromkeys(PARTS, np.ones(9)),
                [(1, 2.0, 0.0), (8, 3.0, 0.0)]) for p in ROOFS]  # fmt: skip
    return plot_latency(latencies, path, dark)


def draw_ladder(path: Path | None, dark: bool) -> Any:
    found = [Result(rung, 0.01, 0.1, 50.0, 1.0, tuple(DOUBTS)) for rung in rungs("fp32")]
    return Ladder({"fp32": found, "int8": found}).plot(path, dark)


def draw_sensitivity(path: Path | None, dark: bool) -> Any:
    layers = [layer for layer in resnet50_layers() if layer.op in ("conv", "linear")]
    gains = [Gain(layer.name, i / 100 - 0.1) for i, layer in enumerate(layers)]
    return plot_sensitivity(gains, "a network", path, dark)


LAYERS = [layer.name for layer in resnet50_layers()]
DRAWINGS = {
    "roofline": draw_roofline,
    "latency": draw_latency,
    "ladder": draw_ladder,
    "waterfall": lambda path, dark: fall().plot(path, dark),
    "waterfall by step": lambda path, dark: fall(*LAYERS).plot(path, dark),
    "sensitivity": draw_sensitivity,
}


@pytest.fixture(autouse=True)
def _roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "measure_roofs", ROOFS.__getitem__)


def texts(figure: Any) -> Iterator[Any]:
    """List what is written on a figure: titles, labels, ticks within the axes, and legends."""
    figure.draw_without_rendering()
    yield figure._suptitle
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    for legend in filter(None, legends):
        yield from legend.get_texts()
    for axes in figure.axes:
        yield from [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            yield axis.label
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    yield tick.label1


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_printed_over_another_or_beyond_the_paper(name: str) -> None:
    figure = DRAWINGS[name](None, False)
    written = [text for text in texts(figure) if text.get_text()]
    assert len(written) > 10
    paper = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in written]
    for text, box in boxes:
        assert paper.x0 - 1 <= box.x0 <= box.x1 <= paper.x1 + 1, text
        assert paper.y0 - 1 <= box.y0 <= box.y1 <= paper.y1 + 1, text
    for (text, box), (other, of_other) in itertools.combinations(boxes, 2):
        shared = box.shrunk(0.9, 0.9).overlaps(of_other.shrunk(0.9, 0.9))
        assert not shared or box.width == 0 or of_other.width == 0, (text, other)


@pytest.mark.parametrize("name", ["roofline", "ladder", "waterfall"])
def test_a_picture_says_that_its_figures_are_in_doubt(name: str) -> None:
    figure = DRAWINGS[name](None, False)
    title = figure.get_suptitle().replace("\n", " ")
    assert f"NOT STEADY: {DOUBTS[0]}" in title
    written = [text.get_text() for text in texts(figure)]
    assert any(text.endswith("?") or "? G" in text for text in written)


def test_a_picture_without_doubts_has_no_mark() -> None:
    figure = fall(doubts=[]).plot()
    assert not [text for text in texts(figure) if "?" in text.get_text()]


def test_a_layer_above_its_roof_is_in_the_picture() -> None:
    figure = draw_roofline(None, False)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    speeds = [y for dots in axes.collections for _, y in dots.get_offsets()]
    assert len(speeds) == 2 * len(ROOFS)
    assert max(speeds) > 3 * max(roofs.peak for roofs in ROOFS.values())
    assert low <= min(speeds) <= max(speeds) < high


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_legend_lies_on_axes(name: str) -> None:
    figure = DRAWINGS[name](None, False)
    figure.draw_without_rendering()
    of_axes = [axes.get_legend() for axes in figure.axes]
    for legend in [*figure.legends, *filter(None, of_axes)]:
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize(("dark", "suffix"), [(False, ".png"), (True, ".svg")])
def test_each_is_a_file_on_white_and_on_black(
    name: str, dark: bool, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"plot{suffix}"
    figure = DRAWINGS[name](path, dark)
    assert max(figure.get_facecolor()[:3]) < 0.2 if dark else min(figure.get_facecolor()[:3]) == 1
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert (plots.PAPER.encode() in content) == (dark and suffix == ".svg")


def luminance(color: str) -> float:
    """Compute how bright a colour is (WCAG 2.2, relative luminance), from 0 to 1."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_colours_of_precisions_are_seen_on_white_and_on_black() -> None:
    """And fp32 is no shade of int8: their hues lie far apart, as blue and orange do."""
    for color in plots.COLORS.values():
        for paper in ("#ffffff", plots.PAPER):
            light, dim = sorted([luminance(color), luminance(paper)], reverse=True)
            assert (light + 0.05) / (dim + 0.05) > 2
    hues = []
    for precision in ("fp32", "int8"):
        color = plots.COLORS[precision]
        red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
        hues.append(colorsys.rgb_to_hsv(red, green, blue)[0])
    assert 0.3 < abs(hues[0] - hues[1]) < 0.7


def test_a_long_title_is_wrapped_where_the_picture_ends() -> None:
    """Digits and capitals are wider than most letters."""
    with plots.drawing(
        None, "1 x 3 x 224 x 224, IMAGENET1K_V2, AMD EPYC, 2026-11-27 " * 4, 5.4
    ) as made:
        figure = made[0]
    figure.draw_without_rendering()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_a_ladders_bars_tell_doubts_and_slow_speeds() -> None:
    loops, fma = rungs("fp32")[:2]
    slow = Result(loops, 0.1, 0.1, 0.46, 0.01)
    doubtful = Result(fma, 0.01, 0.9, 230.4, 0.5, ("runs differ",))
    (axes,) = Ladder({"fp32": [slow, doubtful]}).plot().axes
    assert [text.get_text() for text in axes.texts] == ["0.5", "230?"]


def test_titles_that_are_alike_are_one() -> None:
    figure = draw_latency(None, False)
    assert figure.get_suptitle() == "a network, numba, on a machine"


def test_a_profile_draws_and_shows_itself(models: Mapping[str, ResNet50], tmp_path: Path) -> None:
    with profile(models["fp32"]) as prof:
        models["fp32"](seeded_input((1, 3, 64, 64)))
    figure = prof.plot()
    (legend,) = figure.legends
    figure.draw_without_rendering()
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())
    kinds = {text.get_text() for text in legend.get_texts()}
    assert kinds == {row.kind for row in prof.rows()}
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches}
    assert len(looks) == len(kinds)
    assert figure._repr_png_().startswith(b"\x89PNG")
    shown = prof._repr_html_()
    assert 'src="data:image/png;base64,' in shown
    assert "layer3.5.conv3" in shown
    prof.plot(tmp_path / "plot.svg", "stage", dark=True)
    assert plots.PAPER in (tmp_path / "plot.svg").read_text("utf-8")


def test_a_waterfall_and_a_ladder_show_themselves() -> None:
    found = [Result(rung, 0.01, 0.1, 50.0, 0.5) for rung in rungs("fp32")]
    assert "| fp32 | loops |" in Ladder({"fp32": found})._repr_html_()
    assert "Why the convolutions" in fall()._repr_html_()


def test_without_matplotlib_a_notebook_shows_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda _: None)
    shown = fall()._repr_html_()
    assert shown.startswith("<pre>")
    with pytest.raises(MiniresError, match="plots need matplotlib"):
        fall().plot()


def test_a_figure_is_drawn_without_a_display() -> None:
    """By no global state of pyplot's: a server may draw many."""
    import matplotlib._pylab_helpers as helpers

    before = len(helpers.Gcf.figs)
    figure = fall().plot()
    figure.savefig(io.BytesIO())
    assert len(helpers.Gcf.figs) == before
