import io
import sys
import types
from pathlib import Path

import pytest

from minires import notice
from minires.notice import bar_hidden, in_notebook, progress_bar, tell


def shell(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    """Let IPython be there, with this shell."""
    module = types.ModuleType("IPython")
    vars(module)["get_ipython"] = lambda: found
    monkeypatch.setitem(sys.modules, "IPython", module)


def test_only_a_shell_with_a_kernel_is_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    for found, notebook in (
        (None, False),
        (object(), False),
        (types.SimpleNamespace(kernel=1), True),
    ):
        shell(monkeypatch, found)
        assert in_notebook() == notebook
        assert bar_hidden() != notebook


@pytest.mark.parametrize("shown", [True, False])
def test_a_pipe_gets_one_line(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), "counting", shown)) == [0, 1, 2]
    assert tuple(capsys.readouterr()) == ("", "minires: counting ...\n" if shown else "")


def test_a_log_is_told_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notice, "PATIENCE", 0.0)
    assert list(progress_bar(range(3), "counting", unit="image")) == [0, 1, 2]
    first, *told = capsys.readouterr().err.splitlines()
    assert first == "minires: counting ..."
    assert [line.partition(", after")[0] for line in told][-1] == "minires: counting: 3 of 3"
    assert all(line.startswith("minires: counting: ") for line in told)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_a_terminal_and_a_notebook_get_a_bar(
    where: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "terminal":
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    else:
        shell(monkeypatch, types.SimpleNamespace(kernel=1))
    assert list(progress_bar(range(3), "counting", shown)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert ("counting: 100%" in err) == shown
    assert "minires" not in err


@pytest.mark.parametrize("closed", [True, False])
def test_without_stderr_nothing_fails(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    tell("a text")
    assert bar_hidden()
    assert list(progress_bar(range(3), "counting")) == [0, 1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_takes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        tell("a text")
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.close()
