"""Every rung computes the definition's result, whatever the shape; and the checker can fail."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minires.cli import main
from minires.errors import MiniresError
from minires.kernels.isa import ISAS
from minires.ladder import climb as climb_module
from minires.ladder.climb import (
    LAYER,
    Result,
    check,
    climb,
    format_table,
    problem,
    rungs,
    vector_isa,
)
from minires.layers import OPERATORS, Layer
from minires.measure.trust import Cores

Array = npt.NDArray[Any]
PRECISIONS = ["fp32", "int8", "bf16"]
# M, N and K below, at and above the tiles; one; primes; the network's own.
CASES = [
    (1, 1, 1, 1, (1, 1, 1)),
    (3, 5, 1, 1, (1, 2, 2)),
    (4, 16, 1, 1, (1, 1, 6)),
    (7, 17, 3, 1, (1, 5, 7)),
    (64, 64, 3, 1, (1, 8, 8)),
    (65, 63, 1, 1, (2, 3, 5)),
    (13, 67, 3, 2, (3, 11, 13)),
    (3, 64, 7, 2, (1, 32, 32)),
    (512, 128, 1, 2, (1, 14, 14)),
]  # in_c, out_c, kernel, stride, (batch, height, width)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("in_c", "out_c", "kernel", "stride", "x"), CASES)
def test_every_rung_is_the_definition(
    precision: str, in_c: int, out_c: int, kernel: int, stride: int, x: tuple[int, int, int]
) -> None:
    layer = Layer("conv", "conv", ("input",), in_c, out_c, kernel, stride, kernel // 2)
    layer, p, x_data = problem(precision, replace(layer, relu=out_c > 1), (*x, in_c))
    expected = OPERATORS[precision]["conv"](layer, p, x_data)
    assert expected.any()
    for rung in rungs(precision):
        check(rung.prepare(layer, p)(x_data), expected, layer, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_checker_rejects_what_is_wrong(precision: str) -> None:
    layer, p, x = problem(precision, replace(LAYER, in_c=8, out_c=8), (1, 4, 4, 8))
    y = OPERATORS[precision]["conv"](layer, p, x)
    check(y, y, layer, precision)
    wrong = [np.zeros_like(y), y[..., ::-1], y[:, :2], y.astype(np.float64)]
    wrong.append(
        np.where(np.arange(8) == 3, y + (1 if y.dtype == np.uint8 else y.dtype.type(50)), y)
    )
    if precision != "int8":
        wrong.append(np.where(np.arange(8) == 3, np.float32(np.nan), y))
    for result in wrong:
        with pytest.raises(MiniresError, match=f"a rung of the {precision} ladder is wrong"):
            check(result, y, layer, precision)


def test_the_same_rungs_in_both_precisions() -> None:
    """But for the instruction, and what came before it."""
    names = [[rung.name for rung in rungs(precision)] for precision in ("fp32", "int8")]
    assert [name for name in names[0] if name in names[1]][:5] == names[0][:5]
    last = ["fused", "blocks", "threads", "implicit", "engine"]
    assert names[0][-5:] == names[1][-5:] == last


def test_matrix_registers_leave_the_rungs_to_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's rung is AMX's; those below it use the best set that has vectors for it."""
    monkeypatch.setattr(climb_module, "choose_isa", lambda: ISAS["amx"])
    monkeypatch.setattr(climb_module, "available_isas", lambda: list(ISAS.values()))
    assert vector_isa("u8s8") is vector_isa("bf16") is ISAS["avx512bf16"]
    assert vector_isa("f32") is ISAS["amx"], "whose float32 is in vectors"
    climbed = {rung.name: rung.idea for rung in rungs("int8")}
    assert "vpdpbusd" in climbed
    assert "vpmaddubsw" in climbed
    assert climbed["engine"].endswith("tdpbusd")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("neon", ["smull"]),
        ("neon-dotprod", ["smull", "sdot"]),
        ("neon-bf16", ["smull", "usdot"]),
        ("neon-mmla", ["smull", "usdot"]),  # usmmla has no vector of columns, which rungs want
    ],
)
def test_on_arm_the_rung_before_dot_products_is_there_too(
    name: str, by: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_arm = [isa for isa in ISAS.values() if isa.family == "aarch64"]
    monkeypatch.setattr(climb_module, "choose_isa", lambda: ISAS[name])
    monkeypatch.setattr(climb_module, "available_isas", lambda: of_arm)
    names = [rung.name for rung in rungs("int8")]
    assert names[names.index("panels") + 1 : names.index("fused")] == by
    assert [rung.name for rung in rungs("fp32")][5] == "fmla"


def test_a_machine_without_vectors_of_its_own_climbs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRES_ISA", "generic")
    layer = Layer("conv", "conv", ("input",), 5, 19, 3, 2, 1, relu=True)
    layer, p, x = problem("int8", layer, (1, 5, 7, 5))
    expected = OPERATORS["int8"]["conv"](layer, p, x)
    climbed = rungs("int8")
    names = [rung.name for rung in climbed]
    assert names[4:] == ["panels", "fused", "blocks", "threads", "implicit", "engine"]
    for rung in climbed[:-1]:  # the engine has tests of its own
        check(rung.prepare(layer, p)(x), expected, layer, "int8")


def test_climbing_checks_and_times_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb_module, "problem", lambda precision: problem(
        precision, replace(LAYER, in_c=16, out_c=16), (1, 6, 6, 16)))  # fmt: skip
    results = list(climb("int8", rounds=3))
    assert [r.rung.name for r in results] == [rung.name for rung in rungs("int8")]
    assert all(r.seconds > 0 and r.gops > 0 and r.share > 0 for r in results)
    table = format_table({"int8": results})
    told = bool(climb_module.doubts_about(results))  # a line that says why
    assert len(table.splitlines()) == 2 + len(results) + 2 + told
    assert all(r.rung.idea in table for r in results)


def test_figures_in_doubt_are_marked() -> None:
    numpy, loops, *_ = rungs("fp32")
    steady = Result(numpy, 0.01, 0.1, 50.0, 0.5)
    busy = Result(loops, 0.02, 0.6, 25.0, 0.25, ("runs of loops differ by 60%",))
    lines = format_table({"fp32": [steady, busy]}).splitlines()
    assert lines[2].endswith("| 10.000 | 50.0 | 50% |")
    assert lines[3].endswith("| 20.000? | 25.0? | 25%? |")
    assert lines[-1].startswith("NOT STEADY: runs of loops differ by 60%. ")
    alone = format_table({"fp32": [steady]}).splitlines()
    assert alone == [*lines[:3], *lines[4:6]]
    assert alone[-1].startswith("layer2.1.conv2, 3x3 convolution of (1, 28, 28, 128), on ")


def test_a_busy_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With times made up: rungs disturbed, too fast, slowed evenly, and one as it should be."""
    names = ["steady", "disturbed", "too fast", "shared"]
    found = [(rungs("fp32")[0]._replace(name=name, threads=1), lambda x: x) for name in names]
    seconds = {"steady": [1.0, 1.0, 1.0], "disturbed": [1.0, 2.0, 3.0], "too fast": [0.1] * 3,
               "shared": [1.0] * 3}  # fmt: skip
    turns = iter(names * 3)

    def times_in_turn(_run: Any, _x: Array, core: Cores) -> list[float]:
        name = next(turns)
        core._wanted, core._got = 1.0, 0.4 if name == "shared" else 1.0
        return seconds[name]

    monkeypatch.setattr(climb_module, "_times_in_turn", times_in_turn)
    others = ["others had 80% of the cores' time during fma"]
    peaks = [(100.0, []), (100.0, []), (100.0, []), (50.0, []), (100.0, []), (100.0, others)]
    measured = iter(SimpleNamespace(gops=gops, doubts=doubts) for gops, doubts in peaks)
    monkeypatch.setattr(climb_module, "measure_peak", lambda *_, **__: next(measured))
    x = np.zeros(1)
    results = climb_module._time_all("fp32", found, x, operations=50 * 10**9, rounds=1)
    assert [result.share for result in results] == pytest.approx([0.5, 0.25, 5.0, 0.5])
    assert [result.doubts for result in results] == [
        (),
        ("runs of disturbed differ by 50%",),
        ("too fast seems faster than its limit",),
        ("others had 60% of the cores' time during shared",),
    ]
    results = climb_module._time_all("fp32", found, x, operations=50 * 10**9, rounds=1)
    assert all("two measures of the peak disagree" in result.doubts[0] for result in results)
    results = climb_module._time_all("fp32", found, x, operations=50 * 10**9, rounds=1)
    assert all(result.doubts[0] == others[0] for result in results)


def test_a_wrong_rung_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rungs("fp32")
    wrong = right[1]._replace(prepare=lambda layer, p: lambda x: np.zeros((1, 28, 28, 128), "f4"))
    monkeypatch.setattr(climb_module, "rungs", lambda precision: [right[0], wrong])
    with pytest.raises(MiniresError, match="wrong"):
        list(climb("fp32", rounds=1))


def test_the_readme_has_the_rungs_that_there_are() -> None:
    """Names and ideas; those of an instruction, and the number of threads, are the machine's."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    told = readme.partition("<!-- ladder -->")[2].partition("<!-- /ladder -->")[0]
    lines = [line for line in told.splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    for precision in ("fp32", "int8"):
        of_readme = {name: idea for p, name, idea, *_ in rows if p == precision}
        of_registry = {rung.name: rung.idea for rung in rungs(precision)}
        for name in ("numpy", "loops", "ordered", "tiled", "panels", "blocks", "implicit"):
            assert of_readme[name] == of_registry[name]
        assert "threads" in of_readme


def test_the_command_updates_a_file_between_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Result(rungs("fp32")[0], 0.01, 0.1, 50.0, 0.5)
    monkeypatch.setattr(climb_module, "climb", lambda *_: iter([result]))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- ladder -->\nold\n<!-- /ladder -->\nafter\n")
    assert main(["ladder", "--precisions", "fp32", "--update", str(page)]) == 0
    table = capsys.readouterr().out.strip()
    expected = f"before\n<!-- ladder -->\n\n{table}\n\n<!-- /ladder -->\nafter\n"
    assert page.read_text() == expected
    assert main(["ladder", "--precisions", "fp32", "--update", str(page)]) == 0  # once more
    assert page.read_text() == expected
    page.write_text("no marks")
    assert main(["ladder", "--update", str(page)]) == 1
    assert page.read_text() == "no marks"
    assert "wanted <!-- ladder -->" in capsys.readouterr().err
