"""What chapters 10 and 11 tell of a rung: its own lines, its traffic, its gain."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import minires
from examples.access import PICTURES, SIZES, WHAT
from examples.climbing import LINES, K, bytes_far, bytes_near, gain, gains, new_lines, pair
from minires.kernels.isa import ISAS
from minires.ladder.climb import Result


def results(*names: str, doubted: str = "") -> list[Result]:
    """Make results of rungs, each twice as fast as the one before it."""
    return [
        Result(SimpleNamespace(name=name), 2.0**-i, 0, 1, 0.5, ("noise",) * (name == doubted))
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", LINES)
def test_lines_are_those_of_the_package(name: str) -> None:
    told = new_lines(name).splitlines()
    assert 2 <= len(told) <= 15
    package = Path(minires.__file__).parent
    texts = "".join((package / file).read_text(encoding="utf-8") for file, _, _ in LINES[name])
    for line in told[1:]:
        assert line == "..." or line.strip() in texts


def test_lines_that_are_gone_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LINES, "gone", [("ladder/loops.py", "no such line", "c[m, n]")])
    with pytest.raises(StopIteration):
        new_lines("gone")


def test_a_picture_stays_within_its_matrices() -> None:
    for areas in PICTURES.values():
        for matrix, rows, columns, what in areas:
            assert what in WHAT
            assert rows.start < rows.stop <= max(SIZES[matrix][0], 16)
            assert columns.start < SIZES[matrix][1]


def test_traffic_is_counted_as_by_hand() -> None:
    assert bytes_near("ordered", "fp32") == 12
    assert bytes_near("loops", "int8") == 2
    assert bytes_near("tiled", "int8") == (4 * 1 + 8 * 4) / 16
    # 6 rows by 4 vectors of 16 lanes, and the sums once for all of K.
    by_hand = 4 * (6 + 64) / (6 * 64) + 4 / K
    assert bytes_near("vector", "fp32", ISAS["avx512"]) == pytest.approx(by_hand)
    assert bytes_far("fused", "fp32") > bytes_far("blocks", "fp32") > bytes_far("implicit", "fp32")
    assert bytes_far("fused", "fp32") == pytest.approx(4 * bytes_far("fused", "int8"))


def test_a_gain_is_over_the_rung_before() -> None:
    climbed = results("numpy", "loops", "panels", "smull", "sdot", "fused")
    assert gain(climbed, "loops") == 2
    assert [result.rung.name for result in pair(climbed, "vector") or ()] == ["smull", "sdot"]
    assert pair(results("numpy", "panels", "fused"), "vector") is None
    assert pair(climbed, "numpy") is None


def test_a_gain_in_doubt_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    gains("fused", "fp32", results("numpy", "panels", "fma", "fused", "blocks", doubted="fma"))
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "yours",
        "250.00?",
        "125.00",
        "?",
    ]
    gains("fused", "fp32", results("numpy", "panels", "blocks"))
    assert "not there" in capsys.readouterr().out.splitlines()[-1]
