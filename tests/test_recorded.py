"""The recorded runs of docs/cpu.json are read, and what texts cite of them is in them."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minires.kernels.isa import ISAS
from minires.ladder.climb import LAYER, SHAPE, format_table
from minires.measure.latency import format_latency
from minires.measure.peak import best_instruction
from minires.measure.trust import MARK
from minires.measure.waterfall import format_waterfall
from tests.scripts import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recorded() -> Iterator[Any]:
    """Import examples/recorded.py as a chapter does."""
    sys.path.append(str(ROOT / "examples"))
    import recorded

    yield recorded
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def benchmark(recorded: Any) -> ModuleType:
    return load("benchmarks/record.py")


@pytest.fixture
def run(recorded: Any) -> Any:
    """The run that the chapters' texts cite."""
    return recorded.run("zen3-avx2")


def test_a_run_says_where_it_comes_from(recorded: Any) -> None:
    for run in recorded.runs():
        assert re.fullmatch(r".+, \w+, \d+ threads?; 20\d\d-\d\d-\d\d, commit [\w.-]+", str(run))
        assert set(run.told["doubts"]) <= set(recorded.PARTS)
    assert [run.name for run in recorded.runs(*recorded.PARTS)]


def test_all_parts_of_a_run_can_be_laid_out_again(recorded: Any) -> None:
    for run in recorded.runs("ladders"):
        assert "| fp32 | numpy |" in format_table(run.ladders)
    for run in recorded.runs("waterfall"):
        assert "imagenet" in format_waterfall(run.waterfall)
    for run in recorded.runs("latency"):
        assert all("224" in format_latency(latency) for latency in run.latency)
    for run in recorded.runs("memory"):
        assert [level.level for level in run.memory][-1] == "memory"


def test_a_recorded_ladders_figures_are_each_others(recorded: Any) -> None:
    """One layer's operations over the time are the rate; its share is of one peak a precision."""
    operations = 2 * LAYER.macs(LAYER.output_shape(SHAPE))
    for run in recorded.runs("ladders"):
        for climbed in run.ladders.values():
            peaks = []
            for result in climbed:
                assert result.gops == pytest.approx(operations / result.seconds / 1e9, rel=0.01)
                peaks.append(result.gops / result.share / result.rung.threads)
            assert max(peaks) == pytest.approx(min(peaks), rel=0.01)


def test_a_recorded_layers_figures_are_each_others(recorded: Any) -> None:
    for run in recorded.runs("layers"):
        for rows in run.layers.values():
            assert [len(rows), rows[0].name, rows[-1].name] == [54, "conv1", "fc"]
            for row in rows:
                assert row.gops == pytest.approx(2 * row.macs / row.seconds / 1e9)
                assert row.intensity == pytest.approx(2 * row.macs / row.bytes)
                assert row.share <= row.of_roof * 1.001


def test_a_recorded_waterfall_adds_up(recorded: Any) -> None:
    for run in recorded.runs("waterfall"):
        fall = run.waterfall
        bars = sum(part.excess for part in fall.parts)
        assert fall.whole.fp32 / 4 + bars == pytest.approx(fall.whole.int8)
        causes = sum(seconds for _, seconds in fall.ablation)
        assert causes == pytest.approx(fall.convolutions.excess)


def test_what_parts_of_a_run_contradict_is_in_doubt(run: Any) -> None:
    """Whatever was in doubt when it was measured."""
    stages = [part for part in run.waterfall.parts if part.name.startswith(("conv", "layer"))]
    alone = {p: sum(getattr(part, p) for part in stages) for p in ("fp32", "int8")}
    run.told["doubts"] = {"latency": ["runs differ"]}
    run.told["waterfall"]["doubts"] = []
    run.told["waterfall"]["convolutions"] = {"name": "", **alone}
    for peak in run.told["peaks"]:
        peak["all_gops"] = 2 * peak["gops"]
    assert run.doubts_about("peaks", "waterfall") == []
    assert run.doubts == ["runs differ"]
    run.told["peaks"][1]["all_gops"] *= 0.8
    run.told["waterfall"]["convolutions"]["fp32"] *= 1.25
    assert [doubt.partition(" disagree")[0] for doubt in run.doubts] == [
        "runs differ",
        f"two measures of {run.peaks[1].name}'s gain over fma, by one core and by 2,",
        "two measures of the fp32 convolutions' milliseconds",
    ]


def test_the_readmes_ladder_is_a_recorded_one(recorded: Any, benchmark: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- ladder -->")[2].partition("<!-- /ladder -->")[0].strip()
    named = [run for run in recorded.runs("ladders") if f"{run}" in shown]
    assert [benchmark.tell(run) for run in named] == [shown]


def test_each_part_is_recorded_as_soon_as_it_is_measured(
    recorded: Any, benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(_models: Any, data: bytes) -> Any:
        return {"memory": []}, ["runs of L3 differ", "runs of L3 differ"] * bool(data)

    def broken(_models: Any, _data: bytes) -> Any:
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(recorded, "FILE", tmp_path / "cpu.json")
    monkeypatch.setattr(benchmark, "PARTS", [first, broken])
    monkeypatch.setattr(benchmark.minires, "resnet50", lambda weights, precision: None)
    for name in ("one", "two"):
        with pytest.raises(RuntimeError):
            benchmark.record(name, "weights", ROOT / "README.md", 1)
    assert [run.name for run in recorded.runs("memory")] == ["one", "two"]
    assert recorded.run("two").doubts == ["runs of L3 differ"]


def test_a_part_in_doubt_is_recorded_again(
    recorded: Any, benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = iter([["a", "b"], ["c"], ["d", "e"], []])

    def measure_one(_models: Any, _data: bytes) -> Any:
        told = next(doubts)
        return {"memory": told}, told

    monkeypatch.setattr(recorded, "FILE", tmp_path / "cpu.json")
    monkeypatch.setattr(benchmark, "PARTS", [measure_one])
    monkeypatch.setattr(benchmark.minires, "resnet50", lambda weights, precision: None)
    benchmark.record("run", "weights", ROOT / "README.md", 3)
    told = json.loads((tmp_path / "cpu.json").read_text(encoding="utf-8"))["run"]
    assert (told["memory"], told["doubts"]["memory"]) == (["c"], ["c"])
    assert next(doubts) == []  # it was measured three times


def test_figures_in_doubt_come_under_a_banner(recorded: Any) -> None:
    runs = recorded.runs("ladders")
    runs[0].told["doubts"]["ladders"] = ["runs of loops differ", "and of more"]
    rows = [["fma", *("99.5" for _ in runs), "31"]]
    steady = recorded.side_by_side("GOP/s", rows, runs, ["ladders"])
    assert steady.splitlines()[0].split() == ["GOP/s", *(run.name for run in runs), "yours"]
    assert steady.endswith("Yours are steady: their runs agree.")
    doubts = ["runs differ", "and more"]
    busy = recorded.side_by_side("GOP/s", rows, runs, ["ladders"], doubts)
    wanted = "YOURS ARE IN DOUBT: runs differ (other doubts: 1)."
    assert " ".join(busy.split()).startswith(wanted)
    for text in (steady, busy):
        of_notes = [
            line for line in text.splitlines() if not line.startswith(("GOP/s", "-", "fma"))
        ]
        assert max(map(len, of_notes)) <= recorded.WIDTH
        assert all(run.commit in text for run in runs)
        unfilled = " ".join(text.split())
        assert "In doubt there: runs of loops differ (other doubts: 1)." in unfilled
    assert [recorded.worked_out("2.00x", doubts) for doubts in ([], ["runs differ"])] == [
        "2.00x",
        MARK,
    ]


def test_other_programs_put_a_measurement_in_doubt(
    recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clocks made up: of each second that passes, this thread has a half, and then all."""
    for share, wanted in [(0.5, ["others had 50% of the cores' time during it"]), (1.0, [])]:
        passed = iter(np.arange(8.0))
        had = iter(share * np.arange(8.0))
        clocks = {"perf_counter": passed.__next__, "thread_time": had.__next__}
        monkeypatch.setattr(recorded, "time", type("Clocks", (), clocks))
        found, doubts = recorded.measure_yours("it", lambda: 7, lambda found: [], 2)
        assert (found, doubts) == (7, wanted)
        assert next(passed) == (4 if wanted else 2)  # it was measured once more


@pytest.mark.parametrize("chapter", ["13_peak", "14_waterfall", "15_bf16", "18_served_request"])
def test_a_chapter_that_times_shows_a_recorded_run_beside_yours(chapter: str) -> None:
    text = (ROOT / "examples" / f"{chapter}.py").read_text(encoding="utf-8")
    assert 'recorded = run("zen3-avx2")' in text or 'recorded, (peaks, memory) = run("zen3-' in text
    assert "print(side_by_side(" in text
    assert "measure_yours(" in text


def test_what_the_chapters_say_of_the_recorded_run_is_so(run: Any) -> None:
    # 13: all layers but fc lie to the right of the corner, and fc to the left.
    isa = ISAS[run.isa]
    for precision in ("fp32", "int8"):
        name = best_instruction(precision, isa).name
        (peak,) = (run.threads * peak.gops for peak in run.peaks if peak.name == name)
        corner = peak / run.memory[-1].all
        assert [row.name for row in run.layers[precision] if row.intensity < corner] == ["fc"]
    # 15: the CPU has no instruction for bfloat16, so that bfloat16 is no faster than FP32.
    assert isa.instructions["bf16"].name == "fma of halves"
    seconds = {p: sum(row.seconds for row in rows) for p, rows in run.layers.items()}
    assert seconds["bf16"] > 0.95 * seconds["fp32"] > seconds["int8"]
    # 18: inference is by far the longest part, and the only one that INT8 shortens.
    fp32, int8 = (
        {part: np.median(times) for part, times in one.seconds.items()} for one in run.latency
    )
    for medians in (fp32, int8):
        assert medians["inference"] > 0.75 * medians["whole"]
    for part in ("decode", "resize", "normalize", "softmax"):
        assert int8[part] == pytest.approx(fp32[part], rel=0.25)
    assert int8["inference"] < 0.9 * fp32["inference"]
