"""A GPU's time, cause by cause; and the commands that show it."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="kernels for a GPU need numba-cuda: pip install .[cuda]")

from minires.cli import main
from minires.errors import MiniresError
from minires.kernels.cuda import launches
from minires.measure import gpu as machine
from minires.measure import gpu_waterfall
from minires.measure.gpu_waterfall import (
    BETWEEN,
    CAUSES,
    COMPUTING,
    KERNELS,
    MOVING,
    OTHERS,
    UNEVEN,
    Step,
    Waterfall,
    causes_of,
    format_waterfall,
)
from minires.measure.machine import Roofs
from minires.measure.peak import Bandwidth
from tests.kernels.cuda import pretend
from tests.making_files import save_photograph

MEMORY = [Bandwidth("memory", 2**29, 3000.0, 3000.0, 1)]
ROOFS = {"fp32": Roofs(60_000.0, MEMORY), "int8": Roofs(1_200_000.0, MEMORY)}


def test_each_cause_gets_its_part_of_a_step() -> None:
    """198 blocks for 132 multiprocessors: half of them have one, and the others two."""
    found = causes_of([Step(10.0, 2.0, 5.0, 198)], 10.0, 132)
    assert found == {COMPUTING: 2, MOVING: 3, UNEVEN: 2.5, KERNELS: 2.5, OTHERS: 0, BETWEEN: 0}


def test_even_blocks_leave_none_idle() -> None:
    assert causes_of([Step(10.0, 2.0, 1.0, 264)], 10.0, 132)[UNEVEN] == 0
    assert causes_of([Step(10.0, 2.0, 1.0, 264)], 10.0, 132)[MOVING] == 0


@pytest.mark.parametrize(
    "step", [Step(1.0, 2.0, 0.5, 1), Step(1.0, 0.5, 2.0, 1), Step(1.0, 0.5, 0.6, 1)]
)
def test_the_causes_add_up_even_where_a_step_beats_its_roof(step: Step) -> None:
    found = causes_of([step, Step(3.0, 0.0, 1.0, 7)], 3.5, 132)
    assert found[OTHERS] == 3
    assert sum(found.values()) == pytest.approx(3.5)
    assert min(found[cause] for cause in CAUSES if cause != BETWEEN) >= 0


def test_the_table_has_the_ratio_of_what_was_added_up_so_far() -> None:
    times = dict.fromkeys(CAUSES, 0.0)
    causes = {
        "fp32": times | {COMPUTING: 0.020, KERNELS: 0.004},
        "int8": times | {COMPUTING: 0.001, MOVING: 0.001, KERNELS: 0.001},
    }
    text = format_waterfall(Waterfall("here", causes, []))
    rows = {line[:20].strip(): line.split()[-3:] for line in text.splitlines()}
    assert rows[COMPUTING[:20].strip()] == ["20.000", "1.000", "20.00x"]
    assert rows[MOVING[:20].strip()] == ["0.000", "1.000", "10.00x"]
    assert rows["whole"] == ["24.000", "3.000", "8.00x"]
    assert "NOT STEADY" not in text
    assert "8.00x?" in format_waterfall(Waterfall("here", causes, ["runs differ"]))


def test_the_plot_says_what_the_table_says(tmp_path: Path) -> None:
    """Its letters are letters in SVG: each cause, each whole, and each precision has its own."""
    pytest.importorskip("matplotlib")
    causes = {
        "fp32": dict.fromkeys(CAUSES, 0.004),
        "int8": dict.fromkeys(CAUSES, 0.001) | {BETWEEN: -0.0001},
    }
    for dark in (False, True):
        drawn = Waterfall("here", causes, []).plot(tmp_path / "fall.svg", dark)
        left, right = drawn.axes
        assert [text.get_text() for text in left.texts] == ["24.00 ms", "4.90 ms"]
        assert [label.get_text() for label in right.get_yticklabels()] == list(CAUSES)
        (line,) = right.lines
        assert list(line.get_xdata()) == pytest.approx([4, 4, 4, 4, 4, 24 / 4.9])
        assert (tmp_path / "fall.svg").stat().st_size > 1000


@pytest.fixture
def photograph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A photograph for the bundled network, and a GPU that multiplies nothing; its roofs."""
    pretend.install(monkeypatch)
    monkeypatch.setattr(launches, "gemm_function", lambda _: lambda *_: None)
    monkeypatch.setattr(machine, "cuda", pretend.Cuda)
    monkeypatch.setattr(machine, "WARM_UP", 0.001)
    monkeypatch.setattr(machine, "measure_roofs", ROOFS.get)
    save_photograph(tmp_path / "photograph.jpg", 0)
    return str(tmp_path / "photograph.jpg")


BOTH = ["--backend", "cuda", "--weights", "CIFAR10", "--precisions", "fp32", "int8"]


def test_profile_shows_where_the_gpus_time_goes(
    photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events of this GPU are 1 ms apart: so long takes each step, and the whole graph too."""
    plot = Path(photograph).with_name("fall.png")
    words = ["--batch", "2", "--runs", "1", "--plot", str(plot)]
    assert main(["profile", photograph, *BOTH, *words]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    where = "2 x 3 x 64 x 64, on GPU of NumPy"
    assert told.count(f"int8, cuda, input {where}") == 1
    rows = {
        line[:20]: line.split()[-3:] for line in told.partition(f"CIFAR10, {where}")[2].splitlines()
    }
    assert rows[COMPUTING[:20]][-1] == "20.00x"
    assert rows[OTHERS[:20]][:2] == ["3.000", "3.000"]  # the input and two pools
    assert rows["whole".ljust(20)] == ["1.000", "1.000", "1.00x"]


def test_roofline_shows_a_gpus_layers(photograph: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", *BOTH, "--size", "64", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 x 3 x 64 x 64, on GPU of NumPy, compute capability 9.0" in lines[0]
    assert len(lines) == 3 + 54
    assert lines[3].split()[0] == "conv1"


def test_more_images_than_go_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_waterfall, "most_images", lambda *_: 3)
    x: Any = pretend.device_array((4, 3, 8, 8), "f")
    gpu_waterfall.check_images(x[:3])
    with pytest.raises(MiniresError, match="take at most 3 images, or one precision"):
        gpu_waterfall.check_images(x)
