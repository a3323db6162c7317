"""The landing page shows a recorded run's own figures, and marks those in doubt."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def landing() -> Iterator[Any]:
    """Import docs/landing.py as Sphinx does."""
    pytest.importorskip("matplotlib")
    folders = [str(ROOT / "docs"), str(ROOT / "examples")]
    sys.path[:0] = folders
    import landing

    yield landing
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture
def run() -> SimpleNamespace:
    def part(name: str, fp32: float, int8: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, fp32=fp32, int8=int8, excess=int8 - fp32 / 4)

    parts = [part("layer1", 0.040, 0.014), part("layer2", 0.0396, 0.006), part("fc", 4e-4, 2e-4)]
    fall = SimpleNamespace(whole=part("whole", 0.080, 0.0202), parts=parts, doubts=[])
    peaks = [SimpleNamespace(name="fma"), SimpleNamespace(name="vpdpbusd")]
    return SimpleNamespace(waterfall=fall, peaks=peaks)


def test_the_bars_lead_from_a_quarter_to_int8(landing: Any, run: Any) -> None:
    drawn = landing.draw(run.waterfall)
    bars = drawn.axes[0].patches
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels == ["FP32", "a quarter", "layer1", "layer2", "all else", "INT8"]
    widths = [bar.get_width() for bar in bars]
    assert widths == pytest.approx([80, 20, 4, -3.9, 0.1, 20.2])
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    assert [bar.get_x() for bar in bars[2:5]] == pytest.approx(ends[1:4])
    assert ends[4] == pytest.approx(ends[5])


def test_a_figure_in_doubt_is_marked(landing: Any, run: Any) -> None:
    sure = landing.page(run)
    assert "INT8 is 4.0 times as fast" in sure
    assert "This CPU has one." in sure
    assert "?" not in sure.split("```")[0]
    run.waterfall.doubts = ["runs of the network in fp32 differ by 23%"]
    doubted = landing.page(run)
    assert "INT8 is 4.0? times as fast" in doubted
    assert "in doubt: runs of the network in fp32 differ by 23%." in doubted
    run.waterfall.doubts = ["others had 36% of the cores' time during fma"]
    assert "?" not in landing.page(run).split("```")[0], "the causes' doubts are not the network's"
    run.peaks = run.peaks[:1]
    assert "This CPU has none." in landing.page(run)


def test_the_page_shows_the_recorded_run_with_vnni(landing: Any) -> None:
    from recorded import run

    shown, vnni = landing.waterfall(), run("xeon-vnni")
    assert f"Recorded on {vnni}." in shown
    (told,) = re.findall(r"INT8 is ([\d.]+)\?? times", shown)
    assert float(told) == pytest.approx(landing.gain(vnni), abs=0.051)
    assert 'role="img"' in shown
