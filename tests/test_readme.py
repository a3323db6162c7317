"""The README is held to be true: its files, its commands, its snippet and its pasted output."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minires import cli
from tests.making_files import save_once

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|md|toml|jpg)|LICENSE)`", README)
FILES += re.findall(r"!\[.*?\]\((.*?)\)", README)
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = re.findall(r"```console\n\$ (.*?)\n(.*?)```", README, re.DOTALL)
COMMANDS = [command for command, _ in CONSOLE]
COMMANDS += re.findall(r"`(minires [^`]+)`", README)
COMMANDS += re.findall(r"^    (minires .+)$", README, re.MULTILINE)
SET_UP = """
    pip install -e . && python examples/classify.py examples/images/cat.jpg
    pip install -e ".[test]" && pytest -n auto
"""


def workplace(folder: Path) -> Path:
    """Make a folder in which the README's relative paths are right."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_the_set_up_is_two_commands() -> None:
    assert SET_UP in README


def test_there_is_something_to_check() -> None:
    assert len(FILES) >= 12
    assert len(SNIPPETS) == 1
    assert len(CONSOLE) >= 3
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_named_exists(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_texts_figures_are_the_tables() -> None:
    rungs = re.findall(r"^\| (\w+) \| (\w+) \| .* \| ([\d.]+) \| [\d.]+ \| \d+% \|$", README, re.M)
    ms = {(precision, rung): float(time) for precision, rung, time in rungs}
    one_for_three, loops = found(r"saturates, is (.+?) times as fast. Plain loops are (.+?) times")
    assert one_for_three == pytest.approx(
        ms["int8", "vpmaddubsw"] / ms["int8", "vpdpbusd"], abs=0.06
    )
    assert loops == pytest.approx(ms["fp32", "loops"] / ms["int8", "loops"], abs=0.06)


def found(pattern: str) -> list[float]:
    match = re.search(pattern, README)
    assert match, pattern
    return [float(number) for number in match.groups()]


def test_the_engines_figures_are_each_others() -> None:
    """A median of ratios is near the ratio of medians, and within what 95% of the turns were."""
    table = README.partition("<!-- engines -->")[2].partition("<!-- /engines -->")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if re.match(r"\| (fp32|bf16|int8),", line)
    ]
    assert len(rows) == 12
    fp32 = {row[0].partition(",")[2]: float(row[1]) for row in rows if row[0].startswith("fp32,")}
    for where, minires, *others, to_best_other, to_fp32 in rows:
        ratio, low, high = map(float, re.findall(r"\d+\.\d+", to_best_other))
        assert low <= ratio <= high
        if to_fp32:
            of_turns = float(to_fp32.partition("x")[0])
            apart = float(minires) / fp32[where.partition(",")[2]]
            assert of_turns == pytest.approx(apart, rel=0.2)  # in turns with others, or by itself
        assert ratio == pytest.approx(float(minires) / max(float(o) for o in others if o), rel=0.07)
        if where.endswith(", batch 1"):  # the first screen has them, too
            line = rf"^\| {where.partition(',')[0]} \| .* \| {minires} \| {ratio:.2f}x \|$"
            assert re.search(line, README, re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("minires ")])
def test_every_command_is_one_that_minires_takes(command: str) -> None:
    words = shlex.split(command)[1:]
    if words in (["classify"], ["profile"]):
        words.append("cat.jpg")
    assert cli.build_parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_snippet_runs(
    snippet: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace(tmp_path))
    exec(compile(snippet, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "layer4.2.conv3" in out
    assert "\nlayer1.0.conv1 " in out
    assert " ms, the mean of 1 run\n" in out


@pytest.mark.parametrize(("command", "pasted"), CONSOLE, ids=[command for command, _ in CONSOLE])
def test_pasted_output_is_the_output(
    command: str,
    pasted: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = workplace(tmp_path)
    if "imagenet.safetensors" in command:
        real: dict[str, Any] = request.getfixturevalue("real_state_dict")
        weights = save_once(tmp_path_factory, "imagenet.safetensors", lambda: real)
        (folder / "imagenet.safetensors").symlink_to(weights)
        monkeypatch.setenv("MINIRES_CACHE", str(request.getfixturevalue("real_cache")))
    else:
        monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = shlex.split(command)
    words[:1] = [sys.executable, *(["-m", "minires"] if words[0] == "minires" else [])]
    process = subprocess.run(words, cwd=folder, text=True, capture_output=True, check=True)
    told = process.stderr.replace("minires: calibrating for INT8, once ...\n", "")  # the first time
    texts = (told + process.stdout, pasted)
    seen, shown = ([line.split("%") for line in text.splitlines()] for text in texts)
    assert [line[-1] for line in seen] == [line[-1] for line in shown]  # files and labels
    assert any(len(line) == 2 for line in shown)
    # Points. BLAS sums as it likes; where a calibration is made of that, other ranges come out.
    tolerance = 1 if "int8" in command else 0.02
    for ours, theirs in zip(seen, shown, strict=True):
        if len(theirs) == 2:
            assert abs(float(ours[0]) - float(theirs[0])) <= tolerance
