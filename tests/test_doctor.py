"""`minires doctor` on machines that are well and on machines that are ill."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minires import doctor, download
from minires.cli import main
from minires.kernels.isa import ISAS, available_isas, choose_isa
from minires.measure import peak

posix = pytest.mark.skipif(sys.platform == "win32", reason="wants a shell script")
WELL = {
    "kernels": [
        ["code folder", "/home/alice/.cache/minires/kernels"],
        ["machine", [["CPU", "a CPU"]]],
        ["sets", [["best", "chosen"], ["other", "can be chosen by MINIRES_ISA"]]],
        ["available", ["best", "other"]],
    ],
    "gpu": ["no GPU"],
    "definitions": [["int8", [1.0, 2.0]]],
    "network": [["int8", "ok: the bits of NumPy's"]],
    "peak": [["fma", "ok: 100.0 GOP/s of 101.0 by arithmetic"]],
}
Answer = tuple[list[Any], str]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """What each child answers, and how it ends: change it, and the machine is ill."""
    answers: dict[str, Answer] = {job: (answer, "") for job, answer in WELL.items()}
    monkeypatch.setattr(doctor, "ask", lambda job, *_, **__: answers[job])
    return answers


def test_a_machine_that_is_well(
    children: dict[str, Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    page, progress = capsys.readouterr()
    titles = [line for line in page.splitlines() if line and not line.startswith(" ")]
    assert titles == [
        *("versions", "machine", "instruction sets, the best first", "environment"),
        *("folders", "weights", "GPU", "self-test", "minires doctor: all tests held"),
    ]
    for text in (
        "numpy",
        "a CPU",
        "best   chosen",
        "CIFAR10",
        "no GPU",
        "best, int8   ok",
        "other, int8",
    ):
        assert text in page
    assert "cannot be told" not in page
    assert "testing other, 2 of 2" in progress


def test_quick_tests_what_is_in_use(
    children: dict[str, Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--quick"]) == 0
    page = capsys.readouterr().out
    assert "best, int8" in page
    assert "other, int8" not in page


ILL: dict[str, tuple[str, Answer]] = {
    "Numba ends the process": ("kernels", ([], "ended by SIGSEGV: Fatal Python error")),
    "MINIRES_ISA is wrong": ("kernels", ([*WELL["kernels"], ["refused", ["no such set"]]], "")),
    "an instruction is missing": ("network", ([], "ended by SIGILL: nothing was said")),
    "other bits": ("network", ([["int8", "FAILED: not the bits of NumPy's"]], "")),
    "ended between two precisions": ("network", (WELL["network"], "ended by SIGBUS: x")),
    "no weights": ("definitions", ([], "exit status 1: it comes with minires")),
    "a rate that no CPU has": ("peak", ([["fma", "FAILED: 100.0 GOP/s"]], "")),
}


@pytest.mark.parametrize("illness", ILL)
def test_an_illness_is_told_and_is_the_status(
    illness: str, children: dict[str, Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    job, answer = ILL[illness]
    children[job] = answer
    assert main(["doctor"]) == 1
    page = capsys.readouterr().out
    assert "FAILED" in page.partition("self-test")[2]
    assert page.endswith("minires doctor: NOT all tests held\n")
    assert "numpy" in page, "the rest is told all the same"


def nowhere() -> str:
    raise FileNotFoundError(2, "no usable temporary directory")


@pytest.mark.usefixtures("children")
def test_what_cannot_be_found_out_is_told_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(download, "weights_dir", lambda: tmp_path / "gone")
    monkeypatch.setattr(doctor, "OPTIONAL", ("no-such-package",))
    monkeypatch.setattr(doctor.tempfile, "gettempdir", nowhere)
    page, held = doctor.examine()
    assert held
    assert "CANNOT BE WRITTEN" in page
    assert page.count("cannot be told: FileNotFoundError") == 2, "the weights, and a folder"
    assert "no-such-package  not installed" in page


@pytest.mark.usefixtures("children")
@pytest.mark.parametrize("home", ["/home/alice", "C:\\Users\\Alice", "~", "/"])
def test_nobodys_name_is_on_the_page(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", home))
    monkeypatch.setattr(os.path, "realpath", lambda path: path)
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "alice")
    monkeypatch.setenv("MINIRES_CACHE", "/data/alice/cache")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "C:\\Users\\alice\\numba")
    monkeypatch.setenv(
        "MINIRES_PLACES", "/home/alice:/home/bob c:\\\\users\\\\ALICE\\\\x C:\\Users\\ALEXAN~1"
    )
    page, _ = doctor.examine()
    assert not {"alice", "bob", "alexan"} & set(re.findall("[a-z]+", page.lower()))
    assert "/data/USER/cache" in page


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found: 4711")

    monkeypatch.setattr(doctor.getpass, "getuser", nobody)
    assert doctor.without_names("a page") == "a page"


# Children


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a shell script run in the place of Python."""

    def put(text: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return put


@posix
def test_what_a_child_found_before_it_was_killed_is_kept(script: Callable[[str], None]) -> None:
    script('echo \'["int8", "ok"]\'; echo \'["fp\'; echo a reason >&2; kill -ILL $$')
    answers, failure = doctor.ask("network")
    assert answers == [["int8", "ok"]]
    assert failure == "ended by SIGILL: a reason"


@posix
def test_a_child_that_hangs_is_left(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LONGEST", 0.1)
    script("exec sleep 60")
    assert doctor.ask("network") == ([], "it had not ended after 0.1 s")


@pytest.mark.parametrize("said", [b'["int8", "ok"]\n["fp', '["int8", "ok"]\n', None])
def test_what_a_child_found_before_it_was_left_is_kept(
    monkeypatch: pytest.MonkeyPatch, said: bytes | str | None
) -> None:
    def run(command: list[str], **given: Any) -> None:
        raise subprocess.TimeoutExpired(command, given["timeout"], output=said)

    monkeypatch.setattr(subprocess, "run", run)
    found = [["int8", "ok"]] if said else []
    assert doctor.ask("network") == (found, f"it had not ended after {doctor.LONGEST} s")


def test_no_child_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    answers, failure = doctor.ask("gpu")
    assert answers == []
    assert failure.startswith("no process could be started")


def test_the_end_of_a_child_on_windows_has_its_usual_name() -> None:
    assert doctor._end(0xC000001D) == "exit status 0xc000001d"


def test_a_child_is_minires_whatever_lies_in_the_folder_and_however_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ein Ordner für 猫"
    folder.mkdir()
    (folder / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    answers, failure = doctor.ask("gpu")
    assert failure == ""
    assert len(answers) == 1


# What they run


def kernels() -> dict[str, Any]:
    return dict(doctor._kernels(None))


def test_sets_are_told_with_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIRES_ISA", raising=False)
    told = kernels()
    sets = dict(told["sets"])
    assert sets.keys() <= ISAS.keys()
    assert not {"neon", "avx2"} <= sets.keys(), "of another family of CPUs"
    assert sets[choose_isa().name] == "chosen"
    available = {isa.name for isa in available_isas()}
    assert set(told["available"]) == available
    assert all(text.startswith("not ") for name, text in sets.items() if name not in available)
    assert "refused" not in told


def test_a_lesser_set_that_is_asked_for_is_tested_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIRES_ISA", "generic")
    assert kernels()["available"][0] == "generic"
    monkeypatch.setenv("MINIRES_ISA", "nonsense")
    assert "nonsense" in kernels()["refused"][0]


def test_the_network_is_held_to_the_definitions() -> None:
    precision, logits = next(doctor._definitions(None))
    assert precision == "int8"
    [(name, told)] = doctor._network({precision: logits})
    assert (name, told) == ("int8", "ok: the bits of NumPy's")
    logits[3] = float("nan") if logits[3] == 0 else logits[3] * (1 + 2**-20)
    [(_, told)] = doctor._network({precision: logits})
    assert told == "FAILED: not the bits of NumPy's"


@pytest.mark.parametrize(
    ("arithmetic", "doubts", "state"),
    [(100.0, [], "ok: 99.0 GOP/s of 100.0"), (None, [], "FAILED"), (None, ["busy"], "not sure")],
)
def test_a_peak_is_held_to_its_arithmetic(
    arithmetic: float | None, doubts: list[str], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = SimpleNamespace(gops=99.0, arithmetic=arithmetic, doubts=doubts, rate=0.77)
    monkeypatch.setattr(peak, "measure_peak", lambda *_: measured)
    monkeypatch.setattr(peak, "instructions", lambda _: [SimpleNamespace(name="fma", rates=(1,))])
    [(name, told)] = doctor._peak(None)
    assert name == "fma"
    assert told.startswith(state)
