"""What published figures come to, and this machine's layers under their roofs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from minires.errors import MiniresError
from minires.model import ResNet50
from minires.profiling import roofline
from minires.profiling.roofline import (
    format_layers,
    format_machines,
    image_bytes,
    measure_layers,
    plot_layers,
    plot_machines,
    read_machines,
    throughput_bounds,
)
from tests.seeded_weights import seeded_input

MINE = """
[[machine]]
name = "Mine"
cores = 2
clock_ghz = 3.5
ops_per_cycle = { fp32 = 32 }
bandwidth_gb_s = 40
tdp_w = 15
kind = "arithmetic"
"""


def test_an_image_takes_8_gop() -> None:
    assert pytest.approx(8.18, abs=0.005) == roofline.GOP


def test_a_pair_of_9282_would_run_at_86_percent_of_its_peak() -> None:
    """DESIGN's arithmetic: 112 cores x 256 operations x 2.6 GHz are 74.5 TOP/s."""
    machine = next(m for m in read_machines() if m.name == "Xeon Platinum 9282")
    assert 2 * machine.peaks["int8"] == pytest.approx(74.5, abs=0.05)
    claim = next(c for c in machine.claims if c.images_per_second == 7878)
    bound = claim.parts * throughput_bounds(machine, "int8")[0]
    assert claim.images_per_second / bound == pytest.approx(0.86, abs=0.005)


def test_the_memory_bounds_too() -> None:
    """The largest layer writes 56 x 56 x 256; no image moves less than reading that once."""
    assert image_bytes("int8") > 3 * 2 * 56 * 56 * 256
    assert image_bytes("fp32") == 4 * image_bytes("int8")
    machine = next(m for m in read_machines() if m.name == "Tesla T4")
    assert throughput_bounds(machine, "int8")[1] == pytest.approx(320e9 / image_bytes("int8"))


def test_the_table_says_who_claims_what() -> None:
    text = format_machines(read_machines())
    for words in ("7844", "7636", "vendor's claim", "AnandTech", "not like against like", "86%"):
        assert words in text


def test_every_figure_says_what_it_is() -> None:
    kinds = ("specification", "vendor's claim", "arithmetic", "measurement")
    for machine in read_machines():
        assert any(kind in machine.kind for kind in kinds)
        for claim in machine.claims:
            assert claim.kind.startswith(kinds)
            assert claim.source
            assert claim.precision in machine.peaks


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    (machine,) = read_machines(path)
    assert machine.peaks == {"fp32": pytest.approx(0.224)}
    assert machine.kind.startswith("peak by arithmetic")
    assert "Mine" in format_machines([machine])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MINE.replace("cores = 2", ""), "'cores' is missing"),
        (MINE.replace('name = "Mine"', ""), "'name' is missing"),
        (MINE.replace("= 2", "= two"), "not TOML"),
        ("", "'machine' is missing"),
        ("machine = 3", "not iterable"),
        (MINE.replace("tdp_w = 15", 'tdp_w = "15"'), "Mine has a figure that is no number"),
        (MINE.replace("tdp_w = 15", "tdp_w = 0"), "Mine has a figure that is no number"),
        (MINE.replace("fp32", "fp8"), "no peak in fp8"),
        (MINE + "[[machine.claims]]\nsource = 'me'", "images_per_second"),
        (MINE.replace("3.5", '"fast"'), "unsupported operand"),
    ],
)
def test_a_bad_file_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(MiniresError, match=named) as caught:
        read_machines(path)
    assert str(path) in str(caught.value)


def test_layers_are_measured_under_their_roofs(
    models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    layers = measure_layers(models, seeded_input((1, 3, 64, 64)), 2)
    assert {len(rows) for rows in layers.values()} == {54}
    assert all(row.gops > 0 and row.calls == 1 for rows in layers.values() for row in rows)
    lines = format_layers(layers, "here").splitlines()
    assert lines[0] == "here"
    assert [line.split()[0] for line in lines[3:57]] == [row.name for row in layers["fp32"]]
    slow = [row._replace(seconds=1.0) for row in layers["fp32"]]
    assert len(format_layers({"fp32": slow}, "here").splitlines()) == 3 + 54
    fast = [row._replace(seconds=1e-9) for row in layers["fp32"]]
    lines = format_layers({"fp32": fast}, "here").splitlines()
    assert lines[-1].startswith("NOT STEADY: conv1 seems faster than its limit (and 53 more)")
    assert all(line.split()[3] == "?" for line in lines[3:57])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot_layers(layers, tmp_path / "layers.svg", "here")
    assert "fp32 peak, 100 GOP/s" in (tmp_path / "layers.svg").read_text("utf-8")
    plot_machines(read_machines(), tmp_path / "machines.png")
    assert (tmp_path / "machines.png").stat().st_size > 10_000


def test_an_upper_limit_is_no_claim() -> None:
    text = format_machines(read_machines())
    (row,) = (line for line in text.splitlines() if "<2000 " in f"{line} " and ": " not in line)
    assert row.startswith("Xeon Platinum 8280")
