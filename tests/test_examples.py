import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.making_files import save_once, save_photograph
from tests.seeded_weights import seeded_state_dict

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "chapters"
CHAPTERS = sorted((ROOT / "examples").glob("[0-9]*.py"))
CAT = str(ROOT / "examples" / "images" / "cat.jpg")
# What is tested is that a chapter runs, and not how steady its figures are.
IN_A_HURRY = """
import runpy, sys
from minires.measure.session import session
sys.argv.pop(0)
with session(quick=True):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "classify.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def test_every_example_is_short() -> None:
    # Ten rungs, each with its lines, its picture and its gain; and a project with its solution.
    longer = {
        "10_ladder_fp32": 325,
        "11_ladder_int8": 280,
        "12_one_instruction": 295,
        "13_peak": 305,
    }
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= longer.get(path.stem, 275)


def test_classify_answers_what_it_can(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    weights = save_once(tmp_path_factory, "seeded.safetensors", seeded_state_dict)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    save_photograph(good, 0)
    bad.write_bytes(b"")
    process = run(str(good), str(bad), CAT, "--weights", str(weights))
    lines = process.stdout.splitlines()
    assert [lines[0], lines[6]] == [str(good), CAT]
    assert all("%  " in line for line in lines[1:6] + lines[7:])
    assert len(lines) == 12
    assert process.stderr.startswith("classify.py: ")
    assert "bad.png" in process.stderr
    assert process.stderr.count("\n") == 1
    assert process.returncode == 1


def test_classify_names_weights_that_are_not_there() -> None:
    process = run(CAT, "--weights", "nowhere.pth")
    assert (process.returncode, process.stdout) == (1, "")
    assert "nowhere.pth" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cat_is_called_a_cat_by_what_comes_with_the_package(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in "MINIRES_CACHE", "TORCH_HOME":
        monkeypatch.setenv(variable, str(tmp_path))
    process = run(CAT, "--precision", precision)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[1].endswith("%  cat")
    assert "CIFAR10 answers" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs(chapter: Path, tmp_path: Path) -> None:
    """Each asserts what it says; what is the same on every machine is compared as well."""
    path = os.pathsep.join([str(ROOT), str(chapter.parent)])
    environment = os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"}
    environment["MPLCONFIGDIR"] = str(tmp_path)
    process = subprocess.run(
        [sys.executable, "-W", "ignore:FigureCanvasAgg", "-c", IN_A_HURRY, str(chapter)],
        cwd=ROOT, env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    expected = GOLDEN / f"{chapter.stem}.txt"
    if expected.exists():
        assert process.stdout == expected.read_text(encoding="utf-8")
    else:
        assert process.stdout


def test_most_chapters_that_time_nothing_are_compared() -> None:
    named = {path.stem for path in GOLDEN.glob("*.txt")}
    assert named <= {path.stem for path in CHAPTERS}
    assert {"01_network", "02_im2col", "05_eight_bits", "07_requantization"} <= named
