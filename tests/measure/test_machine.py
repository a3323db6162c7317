"""What is said of the machine, and when a reader is warned."""

import re
from pathlib import Path

import pytest

from minires.kernels.isa import INSTRUCTIONS
from minires.measure import machine
from minires.measure.peak import Bandwidth, Peak
from tests.measure.conftest import ROOFS

FMA = INSTRUCTIONS["fma"]


def peak(spread: float = 0.01) -> Peak:
    return Peak(FMA, 8, 108.0, 210.0, 2, spread, 3.4, "vfmadd231ps %ymm0, %ymm1, %ymm2")


def test_a_size_is_found_in_the_first_level_that_holds_it() -> None:
    assert ROOFS.level(1).level == "L2"
    assert ROOFS.level(2 * 2 * 2**18).level == "L2"
    assert ROOFS.level(2 * 2 * 2**18 + 1).level == "memory"
    assert ROOFS.level(2**60).level == "memory"


def test_a_quiet_machine_is_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert machine.warnings_about([peak()]) == []
    assert "fma differ by 30%" in machine.warnings_about([peak(), peak(0.3)])[0]
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert "quota allows 0.5" in machine.warnings_about([peak()])[0]


def test_macos_is_asked_for_its_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "sysctl_text", lambda _: "Apple M4 Pro")
    assert machine.cpu_name() == "Apple M4 Pro"
    monkeypatch.setattr(machine, "sysctl_text", lambda _: "")  # then as elsewhere
    assert machine.cpu_name() not in ("", "Apple M4 Pro")


def test_a_rate_that_no_cpu_has_is_not_explained_away() -> None:
    slow = peak()._replace(gops=75.0)  # 1.4 a cycle: neither 1 nor 2
    assert slow.likely_rate is None
    assert slow.arithmetic is None
    assert "no likely number" in machine.format_machine([slow], [])


def test_the_table_has_the_arithmetic_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FAMILY", "x86_64")
    text = machine.format_machine([peak()], [Bandwidth("memory", 2**26, 20, 25, 2)])
    assert "fma: 8 lanes x 1 x 2 x 2 a cycle (measured: 1.99) x 3.40 GHz" in text
    assert "vpdpbusd: not on this CPU" in text
    assert "vdpbf16ps: not on this CPU" in text
    assert "it is vpdpbusd %zmm" in text  # its operands, as on a CPU that has it
    assert "it is vpmaddubsw %" in text
    assert "vfmadd231ps %ymm0, %ymm1, %ymm2" in text
    assert "65536" in text


def test_on_arm_what_is_missing_is_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FAMILY", "aarch64")
    text = machine.format_machine([peak()._replace(instruction=INSTRUCTIONS["fmla"], lanes=4)], [])
    assert "fmla: 4 lanes x 1 x 2 x 4 a cycle (measured: 3.97) x 3.40 GHz" in text
    assert re.search(r"  sdot: not on this CPU.*it is sdot v\d+.4s, v\d+.16b, v\d+.4b\[0\]", text)
    assert re.search(r"  usdot: not on this CPU.*it is sudot v", text)
    assert re.search(r"  usmmla: not on this CPU.*with neon-mmla it is usmmla v", text)
    assert "vpdpbusd" not in text


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("model name\t: AMD EPYC 9R14\nmodel name\t: another", "another"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "Neoverse N1"),
        ("CPU part\t: 0x001\n", "arm of some kind"),
        ("", "arm of some kind"),
    ],
)
def test_linux_names_the_cpu(
    lines: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm of some kind")
    assert machine.describe_machine().startswith(f"{name}, ")


def test_what_is_in_doubt_is_marked_and_said() -> None:
    memory = [Bandwidth("L2", 2**18, 20, 30, 2), Bandwidth("memory", 2**26, 25, 35, 2)]
    text = machine.format_machine([peak(0.5)], memory)
    assert "NOT STEADY: runs of fma differ by 50% (other doubts: 1)" in text.splitlines()[1]
    for figure in ("108.0?", "210.0?", "20.0?", "35.0?"):
        assert figure in text
    text = machine.format_machine([peak()], memory[:1])
    assert "NOT STEADY" not in text
    assert "108.0?" not in text


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, a machine that is measured in no time, and what was measured."""
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    asked: list[str] = []

    def measure(precision: str) -> Peak:
        asked.append(precision)
        return peak()

    monkeypatch.setattr(machine, "peak", measure)
    monkeypatch.setattr(machine, "bandwidths", lambda: [*ROOFS.memory])
    return asked


def test_roofs_are_measured_once_on_a_machine(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.known_roofs("fp32") is None
    roofs = machine.measure_roofs("fp32")
    assert (roofs.peak, roofs.memory) == (210.0, ROOFS.memory)
    assert machine.measure_roofs("fp32") == machine.known_roofs("fp32") == roofs
    assert machine.known_roofs("int8") is None
    machine.measure_roofs("int8")
    assert measured == ["fp32", "int8"]
    assert machine.known_roofs("fp32") == roofs  # kept beside the other
    monkeypatch.setattr(machine, "describe_machine", lambda: "another machine")
    assert machine.known_roofs("fp32") is None


def test_roofs_in_doubt_are_not_kept(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "peak", lambda _: peak(0.5))
    assert machine.measure_roofs("fp32").doubts == ("runs of fma differ by 50%",)
    assert machine.known_roofs("fp32") is None


@pytest.mark.parametrize("text", ["", "[]", "{", "\0", '{"KEY": 1}', '{"KEY": {"peak": 1}}',
    '{"KEY": {"peak": 0, "memory": [["L1", 1, 1, 1, 1, 0]]}}', '{"KEY": {"peak": 1, "memory": []}}',
    '{"KEY": {"peak": "x", "memory": [["L1", 1, "x", 1, 1, 0]]}}'])  # fmt: skip
def test_damaged_roofs_are_measured_again(text: str, measured: list[str], tmp_path: Path) -> None:
    key = machine._key("fp32").replace("\\", "\\\\")
    (tmp_path / machine.ROOFS).write_text(text.replace("KEY", key), encoding="utf-8")
    assert machine.known_roofs("fp32") is None
    assert machine.measure_roofs("fp32").peak == 210.0
    assert machine.known_roofs("fp32") is not None


def test_a_cache_that_cannot_be_written_costs_only_time(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "file"))
    assert machine.measure_roofs("fp32").peak == machine.measure_roofs("fp32").peak == 210.0
    assert measured == ["fp32", "fp32"]


def test_the_machine_has_a_name() -> None:
    name, isa, threads = machine.describe_machine().rsplit(", ", 2)
    assert name
    assert isa
    assert threads.split()[1].startswith("thread")


def test_a_machine_is_measured_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a doubtful figure would stay in doubt however often it is measured."""
    found = iter([["first"], ["second"]])
    monkeypatch.setattr(machine, "instructions", lambda _: [])
    monkeypatch.setattr(machine, "measure_bandwidths", lambda _: next(found))
    assert [machine.measure_machine() for _ in range(2)] == [([], ["first"]), ([], ["second"])]
