"""The waterfall's bars add up to what they explain."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minires.kernels.engine import Engine
from minires.layers import Array
from minires.measure import waterfall
from minires.measure.waterfall import (
    REST,
    Part,
    Waterfall,
    ablate,
    doubt_convolutions,
    format_waterfall,
    measure_waterfall,
)
from minires.model import ResNet50
from minires.summary import summarize
from tests.seeded_weights import seeded_input


def peak_of(kind: str) -> Any:
    name, gops = {"f32": ("fma", 100.0), "u8s8": ("vpmaddwd", 250.0)}[kind]
    told: dict[str, Any] = {"gops": gops / 2, "all_gops": gops, "threads": 2, "doubts": []}
    return SimpleNamespace(instruction=SimpleNamespace(name=name), **told)


@pytest.fixture
def fall(
    models: Mapping[str, ResNet50], photograph: bytes, monkeypatch: pytest.MonkeyPatch
) -> Waterfall:
    monkeypatch.setattr(waterfall, "peak_of", peak_of)
    return measure_waterfall(models, photograph, rounds=3)


def test_the_bars_lead_from_a_quarter_of_fp32_to_int8(fall: Waterfall) -> None:
    bars = sum(part.excess for part in fall.parts)
    assert fall.whole.fp32 / 4 + bars == pytest.approx(fall.whole.int8)
    for precision in ("fp32", "int8"):
        parts = [getattr(part, precision) for part in fall.parts]
        assert sum(parts) == pytest.approx(getattr(fall.whole, precision))
        assert min(parts[:-1]) > 0
    assert [part.name for part in fall.parts] == [
        "input", "conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc", REST,
    ]  # fmt: skip


def test_a_bar_is_what_exceeds_a_quarter() -> None:
    assert Part("", 4.0, 1.0).excess == 0
    assert Part("", 4.0, 3.0).excess == 2


def test_the_causes_are_told_apart(
    models: Mapping[str, ResNet50], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With times made up: each of 53 layers takes 10 a row of tiles and 1 for its epilogue."""
    monkeypatch.setattr(waterfall, "peak_of", peak_of)

    def time_step(engine: Engine, program: Any, at: int, execute: Any = None) -> float:
        row = 4.0 if engine.form.operands == "f32" else 2.0
        return row * float(program[at]["rows"]) + (10.0 if execute is None else 0.0)

    monkeypatch.setattr(Engine, "time_step", time_step)
    ran, run = [0], Engine.__call__

    def ticking(engine: Engine, x: Array) -> Array:
        y = run(engine, x)
        ran[0] += 1
        engine.ticks[-1] = ran[0]
        return y

    monkeypatch.setattr(Engine, "__call__", ticking)  # each run ends a tick, and a second, later
    monkeypatch.setattr(waterfall.time, "perf_counter", lambda: float(ran[0]))
    x = seeded_input((1, 3, 64, 64))
    convolutions, causes = ablate(models, x, 2)
    expected = {"fp32": 0.0, "int8": 0.0}
    edges = {"fp32": 0.0, "int8": 0.0}
    for precision, per_tile in [("fp32", 4.0), ("int8", 2.0)]:
        engine = Engine(models[precision].layers, models[precision].params, precision)
        engine(x)
        high, rows = engine.tiling.rows, engine.program(x.shape).steps["rows"]
        for row, tiles in zip(summarize(engine.layers, 64, 64), rows, strict=True):
            if row.op == "conv":
                M = int(np.prod(row.output_shape[:3]))
                assert tiles >= -(-M // high)  # more, where padding counts as rows
                expected[precision] += per_tile * tiles + 10
                if high <= M:  # the epilogue's 10 is in both, less for the rows that are missing
                    full = (per_tile * (M // high) + 10) * M / (M // high * high)
                    edges[precision] += per_tile * tiles + 10 - full
    assert convolutions.fp32 == pytest.approx(expected["fp32"])
    assert convolutions.int8 == pytest.approx(expected["int8"])
    bare = expected["fp32"] - 530 - edges["fp32"]
    assert dict(causes) == {
        "instruction: vpmaddwd peaks at 2.50x": pytest.approx(bare * (1 / 2.5 - 1 / 4)),
        "epilogue": pytest.approx(530 - 530 / 4),
        "edges of tiles": pytest.approx(edges["int8"] - edges["fp32"] / 4),
        "unexplained": pytest.approx(
            convolutions.excess - sum(seconds for _, seconds in causes[:-1])
        ),
    }


def test_the_text_says_all(fall: Waterfall, models: Mapping[str, ResNet50]) -> None:
    text = format_waterfall(fall._replace(others={"bf16": fall.whole.fp32 / 2}))
    assert "each a median, of a part or of the whole" in text
    for words in ("a quarter", "layer3", REST, "unexplained", "bf16", "2.00x", "full 4x", "decode"):
        assert words in text


def test_figures_in_doubt_are_marked(fall: Waterfall) -> None:
    steady, busy = (format_waterfall(fall._replace(doubts=d)) for d in ([], ["runs differ"]))
    assert "NOT STEADY" not in steady
    assert "?" not in steady
    assert busy.splitlines()[1].startswith("NOT STEADY: runs differ.")
    (whole,) = (line.split() for line in busy.splitlines() if line.startswith("whole"))
    assert all(cell.endswith("?") for cell in whole[1:])


def test_runs_that_differ_and_parts_that_do_not_add_up_are_doubted() -> None:
    even = waterfall._Times([], {"fp32": [1.0] * 8}, {"fp32": [{"a": 0.6, "b": 0.38}] * 8})
    assert even.doubts == []
    uneven = even._replace(whole={"fp32": [1.0, 2.0] * 4})
    assert any("runs of the network in fp32 differ" in doubt for doubt in uneven.doubts)
    apart = even._replace(parts={"fp32": [{"a": 0.3, "b": 0.38}] * 8})
    assert [doubt[:39] for doubt in apart.doubts] == ["two measures of the network in fp32 dis"]


def test_convolutions_that_take_two_different_times_are_doubted() -> None:
    stages = [Part("conv1", 2.0, 1.0), Part("maxpool", 9.0, 9.0), Part("layer1", 8.0, 4.0)]
    assert doubt_convolutions(stages, Part("convolutions", 10.0, 5.0)) == []
    (doubt,) = doubt_convolutions(stages, Part("convolutions", 10.0, 4.0))
    assert doubt == "two measures of the int8 convolutions' milliseconds disagree, 4e+03 and 5e+03"
    assert len(doubt_convolutions(stages, Part("convolutions", 12.5, np.nan))) == 2
    assert doubt_convolutions([], Part("convolutions", 10.0, 4.0)) == []


def test_an_ablation_that_contradicts_the_network_is_made_again_and_then_doubted(
    models: Mapping[str, ResNet50], photograph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an ablation made up, which first takes far too long, and then what the stages take."""
    monkeypatch.setattr(waterfall, "peak_of", peak_of)
    stages: list[Part] = []
    made: list[Part] = []

    def ablation(*_: Any) -> tuple[Part, list[tuple[str, float]]]:
        stage = Part("", sum(p.fp32 for p in stages), sum(p.int8 for p in stages))
        made.append(stage if made and not wrong else Part("", 9.0, 9.0))
        return made[-1], []

    def keep(found: list[Part], alone: Part) -> list[str]:
        stages[:] = [part for part in found if part.name.startswith(("conv", "layer"))]
        return doubt_convolutions(found, alone)

    monkeypatch.setattr(waterfall, "ablate", ablation)
    monkeypatch.setattr(waterfall, "doubt_convolutions", keep)
    wrong = False
    fall = measure_waterfall(models, photograph, rounds=1)
    assert len(made) == 2
    assert not any("convolutions" in doubt for doubt in fall.doubts)
    wrong = True
    fall = measure_waterfall(models, photograph, rounds=1)
    assert sum("convolutions' milliseconds disagree" in doubt for doubt in fall.doubts) == 2


def test_the_plot_is_a_picture(fall: Waterfall, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fall.plot(tmp_path / "fall.svg")
    text = (tmp_path / "fall.svg").read_text("utf-8")
    assert "unexplained" in text
