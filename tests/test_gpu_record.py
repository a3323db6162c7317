"""What the docs tell of a GPU is what benchmarks/gpu.py recorded, in docs/gpu.json."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.scripts import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def record() -> Any:
    return json.loads((ROOT / "docs" / "gpu.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load("benchmarks/gpu.py")


def test_the_page_shows_the_recorded_run(record: Any, benchmark: ModuleType) -> None:
    shown = PAGE.partition("<!-- gpu -->")[2].partition("<!-- /gpu -->")[0].strip()
    assert shown == benchmark.tell(record).strip()


def test_the_recorded_run_was_checked_before_it_was_timed(record: Any) -> None:
    checks = record["checks"]
    assert checks["int8"]["logits_that_differ_from_the_cpu"] == 0
    assert all(check["photographs"] == 400 for check in checks.values())
    assert all(check["layers"]["wrong"] == [] for check in checks.values())
    assert checks["int8"]["layers"]["count"] == 57
    assert min(checks["fp16"]["labels_as_fp32"], checks["tf32"]["labels_as_fp32"]) >= 0.99


def test_quartiles_lie_around_their_median(record: Any) -> None:
    assert len(record["times"]) >= 25
    for *_, low, median, high in record["times"]:
        assert 0 < low <= median <= high < 1.5 * low


def test_the_readmes_figures_are_of_the_recorded_run(record: Any) -> None:
    """Each precision at batch 128, in images a second, as the page has them."""
    section = README.partition("## On a GPU")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| ([\d,]+) \| ([\d,]+) \|", section, re.MULTILINE)
    speed = {
        (precision, batch): round(1000 * batch / median)
        for engine, precision, batch, _, median, _ in record["times"]
        if engine == "minires"
    }
    assert [row[0] for row in rows] == ["fp32", "tf32", "fp16", "bf16", "int8"]
    for precision, one, many in rows:
        assert int(one.replace(",", "")) == speed[precision, 1]
        assert int(many.replace(",", "")) == speed[precision, 128]
    assert record["card"] in section


def test_the_page_begins_with_each_precisions_figures(record: Any) -> None:
    ms = {tuple(row[1:3]): row[4] for row in record["times"] if row[0] == "minires"}
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+)x \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == ["fp32", "tf32", "bf16", "fp16", "int8"]
    for precision, one, many, ratio in rows:
        assert int(one.replace(",", "")) == round(1000 / ms[precision, 1])
        assert int(many.replace(",", "")) == round(128_000 / ms[precision, 128])
        assert float(ratio) == round(ms["fp32", 128] / ms[precision, 128], 1)


def test_the_pages_other_tables_are_of_the_same_card(record: Any) -> None:
    """`minires peak` and `minires ladder` were run there, and what they said is in the record."""
    peaks = {name: tops for name, _, tops in record["peaks"]}
    for name, products, tops in record["peaks"]:
        assert f"| {name} | {products} | {tops} | {tops / peaks['fma']:.2f}x |" in PAGE
    assert f"{record['memory_gbs']:,} GB/s" in PAGE
    for precision, rung, us, tops, share, of in record["ladder"]:
        row = rf"^\| {precision} \| {rung} \| .* \| {us:.1f} \| {tops:.2f} \| {share}% of {of} \|$"
        assert re.search(row, PAGE, re.MULTILINE), row
        assert tops / peaks[of] == pytest.approx(share / 100, abs=0.02)
    assert f"PyTorch {record['torch'].rpartition('.')[0]} " in README


def test_the_ratios_in_the_text_are_those_of_the_tables(record: Any) -> None:
    peaks = {name: tops for name, _, tops in record["peaks"]}
    ms = {tuple(row[:3]): row[4] for row in record["times"]}
    in_peak = peaks["mma-u8s8"] / peaks["fma"]
    in_network = ms["minires", "fp32", 128] / ms["minires", "int8", 128]
    assert f"## Why {in_peak:.1f}x in peak becomes {in_network:.1f}x" in PAGE
    assert f"peaks at {in_peak:.1f} times" in README
    assert f"keeps {in_network:.1f} of" in README
    operations = round(1000 * peaks["mma-u8s8"] / record["memory_gbs"])
    assert f"needs {operations} operations for each byte" in " ".join(PAGE.split())
    of_halves = ms["minires", "fp16", 128] / ms["minires", "int8", 128]
    questions = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    assert f"INT8 keeps {of_halves:.2f} of the 2" in questions


def test_the_waterfalls_are_of_the_record(record: Any) -> None:
    """Another run's times, cause by cause, and the ratio of what was added up so far."""
    apart = record["apart"]
    assert apart["head"].startswith(record["card"])
    ms = {tuple(row[:3]): row[4] for row in record["times"]}
    for batch, fall in apart["waterfall"].items():
        names, sums = fall["precisions"], np.zeros(len(fall["precisions"]))
        assert f"| milliseconds, batch {batch} | {' | '.join(names)} | fp32/int8 so far |" in PAGE
        *causes, (whole, *totals, last) = fall["causes"]
        for cause, *times, ratio in fall["causes"]:
            cells = [cause, *(f"{time:.3f}" for time in times), f"{ratio:.2f}x"]
            assert f"| {' | '.join(cells)} |" in PAGE
        for _, *times, ratio in causes:
            sums += times
            rounded = 0.001 / sums[-1]  # the record has three digits
            assert ratio == pytest.approx(sums[0] / sums[-1], rel=0.005 + rounded)
        assert (whole, ratio) == ("whole", last)
        np.testing.assert_allclose(sums, totals, atol=0.004)
        wanted = [ms["minires", precision, int(batch)] for precision in names]
        np.testing.assert_allclose(totals, wanted, rtol=0.05)


def test_the_layers_of_the_page_are_of_the_record(record: Any) -> None:
    peak = next(tops for name, _, tops in record["peaks"] if name == "mma-u8s8")
    for layer, intensity, tops, _ in record["apart"]["layers"]:
        allowed = f"{intensity * record['memory_gbs'] / 1000:,.0f}"
        row = (
            rf"^\| {layer}, .* \| {intensity:,} \| {tops:.0f} \| ([\d,]+) \| {tops / peak:.0%} \|$"
        )
        found = re.search(row, PAGE, re.MULTILINE)
        assert found, row
        told, computed = (int(number.replace(",", "")) for number in (found[1], allowed))
        assert told == pytest.approx(computed, rel=0.005)


def test_what_pytorch_had_tuned_is_of_the_record(record: Any) -> None:
    """A shape: its first layer, how many have it, PyTorch's ms for one, and minires's for all."""
    tuned = record["apart"]["tuned"]
    shapes = tuned["shapes"]
    theirs, ours = sum(n * ms for _, n, ms, _ in shapes), sum(ms for *_, ms in shapes)
    text = " ".join(PAGE.split())
    assert f"{len(shapes)} of its 24 shapes tuned" in text
    assert f"after {tuned['seconds']} seconds" in text
    assert f"take {theirs:.2f} ms and minires's fp16 kernels {ours:.2f} ms" in text
    one = next(ms for layer, _, ms, _ in shapes if layer == "layer2.1.conv2")
    tops = 2 * 128 * 28 * 28 * 9 * 128 * 128 / one / 1e9
    assert f"layer2.1.conv2 reaches {tops:.0f} TOP/s" in text
    assert not [row for row in record["times"] if "compile" in row[0]]
    for ratio in ("fp16 to PyTorch's best of fp16, batch 128: 2.04x", "batch 128: 3.20x"):
        assert ratio in PAGE
