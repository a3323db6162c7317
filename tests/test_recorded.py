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
def vnni(recorded: Any) -> Any:
    return recorded.run("xeon-vnni")


@pytest.fixture
def amx(recorded: Any) -> Any:
    return recorded.run("xeon-amx")


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
    assert 'run("xeon-vnni")' in text
    assert "print(side_by_side(" in text or "print(\n    side_by_side(" in text
    assert "measure_yours(" in text


def roof(run: Any, precision: str) -> float:
    name = best_instruction(precision, ISAS[run.isa]).name
    (peak,) = (run.threads * peak.gops for peak in run.peaks if peak.name == name)
    return float(peak)


@pytest.mark.parametrize("name", ["xeon-vnni", "xeon-amx"])
def test_the_runs_that_the_text_cites_were_quiet(recorded: Any, name: str) -> None:
    run = recorded.run(name)
    assert run.has(*recorded.PARTS)
    assert run.doubts_about("peaks", "memory", "layers", "waterfall", "latency") == []
    doubted = {(p, r.rung.name) for p, climbed in run.ladders.items() for r in climbed if r.doubts}
    assert doubted <= {("int8", "engine")}


def test_what_chapter_13_says_of_the_recorded_run_is_so(vnni: Any) -> None:
    for precision in ("fp32", "int8"):
        corner = roof(vnni, precision) / vnni.memory[-1].all
        left = [row.name for row in vnni.layers[precision] if row.intensity < corner]
        assert left == ["fc"]
    both = zip(vnni.layers["fp32"], vnni.layers["int8"], strict=True)
    apart = {
        a.name: a.seconds / b.seconds / (roof(vnni, "int8") / roof(vnni, "fp32")) for a, b in both
    }
    assert np.median(list(apart.values())) == pytest.approx(1, abs=0.05)
    close = [name for name, ratio in apart.items() if abs(ratio - 1) < 0.05]
    assert len(close) == pytest.approx(54 / 2, abs=1)
    far = [name for name, ratio in apart.items() if ratio < 0.8]
    assert len(far) == 10
    assert {name.partition(".")[0] for name in far} == {"conv1", "layer1", "layer2"}
    above = [name for name, ratio in apart.items() if ratio > 1.15]
    assert above == [*(f"layer4.{i}.conv2" for i in range(3)), "fc"]
    assert 1.75 < vnni.peaks[0].rate < 1.9


def test_what_chapter_14_says_of_the_recorded_runs_is_so(vnni: Any, amx: Any) -> None:
    fall = vnni.waterfall
    causes = [seconds for _, seconds in fall.ablation]
    assert causes[1] == max(causes), "the epilogue"
    assert causes[-1] < 0
    parts = {part.name: part for part in fall.parts}
    layer4 = parts["layer4"]
    assert round(layer4.fp32 / layer4.int8, 1) == 4.7
    assert layer4.excess < 0
    third = next(level.all for level in vnni.memory if level.level == "L3")
    told = {}
    for precision, size in ("fp32", 4), ("int8", 1):
        (layer,) = (row for row in vnni.layers[precision] if row.name == "layer4.1.conv2")
        allowed = 2 * layer.macs / roof(vnni, precision) / 1e9
        reading = size * 512 * 512 * 9 / third / 1e9
        told[precision] = [
            round(1e3 * s, 2) for s in (layer.seconds, layer.seconds - allowed, reading)
        ]
    assert told == {"fp32": [0.76, 0.29, 0.21], "int8": [0.16, 0.04, 0.05]}
    alone, inside = (
        vnni.waterfall.convolutions.int8,
        sum(part.int8 for part in fall.parts if part.name.startswith(("conv", "layer"))),
    )
    assert [round(1e3 * seconds, 2) for seconds in (alone, inside)] == [5.31, 5.57]
    rest = parts["rest, unexplained"]
    assert round(1e3 * rest.fp32, 1) == round(1e3 * rest.int8, 1) == 0.3
    assert causes[1] > parts["rest, unexplained"].excess > parts["input"].excess > causes[0]
    outside = sum(p.excess for p in fall.parts if not p.name.startswith(("conv", "layer")))
    unexplained = fall.whole.int8 - fall.whole.fp32 / 4 - outside - sum(causes[:-1])
    assert -0.05 < unexplained / fall.whole.int8 < 0
    fall = amx.waterfall
    total = fall.whole.int8 - fall.whole.fp32 / 4
    outside = sum(p.excess for p in fall.parts if not p.name.startswith(("conv", "layer")))
    unexplained = total - outside - sum(seconds for _, seconds in fall.ablation[:-1])
    assert 0.4 < unexplained / fall.whole.int8 < 0.5
    assert [round(1e3 * seconds, 1) for seconds in (fall.ablation[0][1], total)] == [-4.4, -2.1]
    rho = float(fall.ablation[0][0].split()[-1].rstrip("x"))
    assert round(rho) == 31
    inside = sum(p.int8 for p in fall.parts if p.name.startswith(("conv", "layer")))
    assert [round(1e3 * s, 1) for s in (fall.convolutions.fp32 / rho, inside)] == [0.7, 2.7]
    top, reads = roof(amx, "int8"), amx.memory[-1].all
    least = sum(max(2 * row.macs / top, row.bytes / reads) for row in amx.layers["int8"])
    assert round(least / 1e6, 1) == 1.5
    corner = roof(amx, "int8") / amx.memory[-1].all
    assert sum(row.intensity < corner for row in amx.layers["int8"]) == 48


def test_what_chapter_15_says_of_the_recorded_runs_is_so(vnni: Any, amx: Any) -> None:
    assert ISAS[vnni.isa].instructions["bf16"].name == "vdpbf16ps"
    assert ISAS[amx.isa].instructions["bf16"].name == "tdpbf16ps"
    gains = []
    for run in (vnni, amx):
        seconds = {p: sum(row.seconds for row in rows) for p, rows in run.layers.items()}
        gains.append(round(seconds["fp32"] / seconds["bf16"], 2))
        assert seconds["int8"] < seconds["bf16"]
    assert gains == [0.57, pytest.approx(4.5, abs=0.06)]
    peaks = {peak.name: peak for peak in vnni.peaks}
    assert peaks["vdpbf16ps"].gops / peaks["fma"].gops == pytest.approx(0.5, abs=0.01)
    of_amx = {peak.name: peak.gops for peak in amx.peaks}
    assert round(of_amx["tdpbf16ps"] / of_amx["fma"], 1) == 15.6
    assert peaks["vdpbf16ps"].rate / peaks["fma"].rate == pytest.approx(0.25, abs=0.01)


def test_what_chapter_18_says_of_the_recorded_runs_is_so(vnni: Any, amx: Any) -> None:
    gains = []
    for run in (vnni, amx):
        fp32, int8 = (
            {part: np.median(times) for part, times in one.seconds.items()} for one in run.latency
        )
        gains.append((fp32["inference"] / int8["inference"], fp32["whole"] / int8["whole"]))
        for part in ("decode", "resize"):
            assert int8[part] == pytest.approx(fp32[part], rel=0.25)
    assert gains[1][0] / gains[0][0] == pytest.approx(2, abs=0.1)
    assert gains[1][1] / gains[0][1] == pytest.approx(1.5, abs=0.1)
    assert 0.4 < 1 - int8["inference"] / int8["whole"] < 0.5, "with AMX"
    fp32, int8 = (
        np.median(one.seconds["whole"]) - np.median(one.seconds["inference"])
        for one in vnni.latency
    )
    assert int8 / fp32 == pytest.approx(5 / 6, abs=0.02)
    of_batches = [one.throughput[-1][1] / one.throughput[0][1] for one in vnni.latency]
    assert all(1 < gain < 1.1 for gain in of_batches)
    assert amx.latency[1].throughput[-1][1] / amx.latency[1].throughput[0][1] > 1.25


def test_the_readmes_waterfall_is_the_recorded_one(vnni: Any, amx: Any) -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    fall, matrix = vnni.waterfall, amx.waterfall
    whole, alone = fall.whole, fall.convolutions
    peaks = {peak.name: peak.gops for peak in vnni.peaks}
    instruction, epilogue, edges = (1e3 * seconds for _, seconds in fall.ablation[:3])
    layer4 = next(part for part in fall.parts if part.name == "layer4")
    parts = [part for part in fall.parts if part.name.startswith(("conv", "layer"))]
    inside = [sum(getattr(part, precision) for part in parts) for precision in ("fp32", "int8")]
    assert sum(part.excess for part in parts) < (whole.int8 - whole.fp32 / 4) / 2
    before = sum(fall.preprocessing.values())
    for said in (
        f"{peaks['vpdpbusd']:.0f} against {peaks['fma']:.0f} billion operations",
        f"{1e3 * whole.fp32:.1f} ms in FP32 and {1e3 * whole.int8:.1f} ms in INT8: "
        f"{whole.fp32 / whole.int8:.2f} times as fast",
        f"{fall.ablation[0][0].split()[-1].rstrip('x')} times, which costs {instruction:.2f} ms",
        f"cost {epilogue:.2f} ms beyond a quarter. Edges of tiles cost {edges:.2f} ms",
        f"`layer4`, is {layer4.fp32 / layer4.int8:.1f} times as fast",
        f"the convolutions keep {inside[0] / inside[1]:.1f} in the network, and "
        f"{alone.fp32 / alone.int8:.1f} when",
        f"INT8 is {(whole.fp32 + before) / (whole.int8 + before):.1f} times as fast",
        f"peaks at {float(matrix.ablation[0][0].split()[-1].rstrip('x')):.0f} times FP32's rate",
        f"INT8 then takes {1e3 * matrix.whole.int8:.1f} ms",
    ):
        assert said in text
    ends = {
        run.name: run.ladders["int8"][-1].gops / run.ladders["fp32"][-1].gops for run in (vnni, amx)
    }
    assert f"INT8 ends {ends['xeon-vnni']:.1f} times as high as FP32" in text
    assert 8.5 < ends["xeon-amx"] < 10
    told = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    assert f"takes {1e3 * whole.int8:.1f} ms by VNNI and {1e3 * matrix.whole.int8:.1f} ms" in told
    assert f"AMX is {whole.int8 / matrix.whole.int8:.1f} times as fast" in told
