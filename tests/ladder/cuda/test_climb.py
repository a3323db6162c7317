"""The GPU's ladder as a list, a table and a picture; with a GPU, climbed."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import cuda

from minires.cli import main
from minires.errors import MiniresError
from minires.kernels.cuda.driver import Gpu
from minires.ladder.climb import LAYER, Result, problem
from minires.ladder.cuda import climb as climb_module
from minires.ladder.cuda.climb import RUNGS, climb, format_table, plot, result_of, rungs
from tests.made_up_gpu import MadeUpGpu, made_up_gpu

__all__ = ["made_up_gpu"]  # a fixture

GPU = Gpu("Some GPU", (9, 0), 132, 0)
HAS_GPU = cuda.is_available()
without_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU")


def results() -> dict[str, list[Result]]:
    steady, busy = [1e-4, 1e-4, 1e-4], [1e-5, 2e-5, 3e-5]
    fp32 = [result_of(rung, steady, 10**9, (50.0, 50.0)) for rung in rungs("fp32")]
    int8 = [result_of(rung, busy, 10**9, (500.0, 490.0)) for rung in rungs("int8")]
    return {"fp32": fp32, "int8": int8}


def test_rungs_are_listed_by_precision() -> None:
    assert [rung.name for rung in rungs("fp32")] == ["loop", "tiles"]
    assert [rung.name for rung in rungs("int8")] == ["dp4a", "mma", "stages"]
    assert len({rung.idea for rung in RUNGS}) == len(RUNGS)
    with pytest.raises(MiniresError, match="has fp32 and int8, not bf16"):
        rungs("bf16")


def test_a_share_is_of_the_instructions_peak() -> None:
    loop = rungs("fp32")[0]
    result = result_of(loop, [1e-4, 1e-4, 1e-4], 10**9, (40.0, 44.0))
    assert result.gops == pytest.approx(1e4)
    assert result.share == pytest.approx(10 / 44)
    assert result.doubts == ()
    (doubt,) = result_of(loop, [1e-4] * 3, 10**9, (40.0, 80.0)).doubts
    assert "two measures of the peak disagree" in doubt
    (doubt,) = result_of(loop, [1e-4] * 3, 10**9, (5.0, 5.0)).doubts
    assert doubt == "loop seems faster than its limit"


def test_the_table_has_each_rung_and_the_cards_name() -> None:
    lines = format_table(results(), GPU).splitlines()
    assert len(lines) == 2 + len(RUNGS) + 3
    assert "| 100.0 | 10.00 | 0.0% | 20% of fma |" in lines[2]
    assert "| 20.0? | 50.00? | 50.0% | 10%? of dp4a |" in lines[4]
    assert re.fullmatch(
        r"layer2\.1\.conv2, 3x3 convolution of \(32, 28, 28, 128\), on Some GPU, "
        r"compute capability 9\.0, 132 multiprocessors, \d{4}-\d\d-\d\d, minires .+\.",
        lines[-2],
    )
    assert lines[-1].startswith("NOT STEADY: runs of dp4a differ by 50%")


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot(results(), GPU, str(tmp_path / "ladder.png"))
    assert (tmp_path / "ladder.png").read_bytes()[:4] == b"\x89PNG"


class Answers(NamedTuple):
    """Stands for a launch: it answers with what it is."""

    y: Any

    def answer(self, shape: Any) -> Any:
        return self.y.reshape(shape)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small problem, and a GPU that is said to be there."""
    monkeypatch.setattr(climb_module, "open_gpu", lambda: GPU)
    monkeypatch.setattr(
        climb_module,
        "problem",
        lambda precision, *_: problem(precision, replace(LAYER, in_c=4, out_c=8), (1, 4, 4, 4)),
    )


@pytest.mark.usefixtures("small")
def test_a_wrong_rung_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = RUNGS[2]._replace(prepare=lambda conv: Answers(np.zeros((16, 8), np.uint8)))
    monkeypatch.setattr(climb_module, "RUNGS", [wrong])
    monkeypatch.setattr(climb_module, "_time_all", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(MiniresError, match="rung dp4a: a rung of the int8 ladder is wrong"):
        climb("int8")


def test_rungs_are_timed_in_turns(made_up_gpu: MadeUpGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its own launches, and against the peak of its own instruction."""
    monkeypatch.setattr(
        climb_module,
        "measure_peak",
        lambda instruction, _: SimpleNamespace(
            tops={"dp4a": 100.0, "mma-u8s8": 1000.0}[instruction.name]
        ),
    )
    seconds = {"dp4a": 2e-4, "mma": 5e-5, "stages": 2e-5}
    found: Any = [
        (rung, SimpleNamespace(start=made_up_gpu.takes(seconds[rung.name])))
        for rung in rungs("int8")
    ]
    timed = climb_module._time_all(found, 10**10, GPU, rounds=3)
    assert {r.rung.name: r.seconds for r in timed} == pytest.approx(seconds)
    assert [r.share for r in timed] == pytest.approx([0.5, 0.2, 0.5])
    assert [r.doubts for r in timed] == [(), (), ()]


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rungs_are_right_and_timed_on_a_gpu(precision: str) -> None:
    for result in climb(precision, rounds=2):
        assert result.seconds > 0
        assert 0 < result.share < 1.05


@without_gpu
@pytest.mark.parametrize("command", ["ladder", "peak"])
def test_where_there_is_no_gpu_that_is_told(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--backend", "cuda"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "no NVIDIA GPU can be used here" in told.err


def test_the_command_climbs_and_updates_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results()
    monkeypatch.setattr("minires.kernels.cuda.driver.open_gpu", lambda: GPU)
    monkeypatch.setattr(climb_module, "climb", lambda precision: found[precision])
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- ladder -->\nCPU\n<!-- /ladder -->\n<!-- ladder-cuda -->\n<!-- /ladder-cuda -->\n"
    )
    words = ["ladder", "--backend", "cuda", "--update", str(page)]
    assert main(words) == 0
    table = format_table(found, GPU)
    assert capsys.readouterr().out.strip() == table
    assert page.read_text() == (
        "<!-- ladder -->\nCPU\n<!-- /ladder -->\n"
        f"<!-- ladder-cuda -->\n\n{table}\n\n<!-- /ladder-cuda -->\n"
    )
    assert main([*words, "--precisions", "bf16"]) == 1
    assert "the GPU's ladder has fp32 and int8" in capsys.readouterr().err
