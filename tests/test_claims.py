"""The appendix: what published figures come to, and a file of one's own machines."""

import os
import subprocess
import sys
from pathlib import Path

import bounds
import pytest
from bounds import WIDTH, format_machines, format_sources, image_bytes, throughput_bounds
from machines import read_machines

from minires.errors import MiniresError

ROOT = Path(__file__).parents[1]
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
    assert pytest.approx(8.18, abs=0.005) == bounds.GOP


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


def test_the_table_and_its_sources_say_who_claims_what() -> None:
    machines = read_machines()
    table, sources = format_machines(machines), format_sources(machines)
    assert all(words in table for words in ("7844", "7636", "86%", "300 W", "$2,499"))
    said = " ".join(sources.split())
    for words in (
        "7844: vendor's claim",
        "AnandTech",
        "not like against like",
        "peak by arithmetic",
    ):
        assert words in said


def test_a_phone_shows_whole_lines_of_the_table() -> None:
    machines = read_machines()
    lines = f"{format_machines(machines)}\n{format_sources(machines)}".splitlines()
    assert max(len(line) for line in lines if "https://" not in line) <= WIDTH


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


def test_an_upper_limit_is_no_claim() -> None:
    text = format_machines(read_machines())
    lines = text.splitlines()
    (at,) = (at for at, line in enumerate(lines) if "<2000 " in line)
    assert "<42%" in lines[at]
    assert any(line.startswith("Xeon Platinum 8280") for line in lines[at - 2 : at])


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore:FigureCanvasAgg", "examples/19_article.py", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )


def test_the_chapter_judges_a_file_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    claim = "images_per_second = 40\nparts = 1\nprecision = 'fp32'\nkind = 'a guess'\nsource = 'me'"
    (tmp_path / "mine.toml").write_text(f"{MINE}\n[[machine.claims]]\n{claim}\n")
    process = run(str(tmp_path / "mine.toml"))
    assert process.returncode == 0, process.stderr
    assert "\nMine: 15 W\n" in process.stdout
    assert "Tesla V100" not in process.stdout
    process = run(str(tmp_path / "none.toml"))
    assert process.returncode == 1
    assert process.stderr == f"19_article.py: {tmp_path / 'none.toml'}: No such file or directory\n"
