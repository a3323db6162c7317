import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minires import writing
from minires.errors import MiniresError
from minires.writing import check_writable, write_whole

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def little_room() -> Iterator[None]:
    """Let no file grow beyond a megabyte: what a full disk does."""
    resource = pytest.importorskip("resource")  # Unix has it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_lay_there_is_replaced(path: Path) -> None:
    path.write_bytes(b"before")
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("before", [None, b"before"])
def test_what_has_no_room_changes_nothing(path: Path, before: bytes | None) -> None:
    if before:
        path.write_bytes(before)
    for attempt in (
        lambda: check_writable(path, 2 * 10**6),
        lambda: write_whole(path, bytes(2 * 10**6)),
    ):
        with pytest.raises(MiniresError, match=r"^\S+model\.safetensors: cannot be .*too large"):
            attempt()
        assert [file.read_bytes() for file in path.parent.iterdir()] == ([before] if before else [])
    check_writable(path, 10**5)
    assert path.exists() == bool(before)


@posix
def test_links_are_followed_and_modes_kept(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    path.symlink_to(target)
    (tmp_path / "new").touch()
    write_whole(path, b"first")  # to where the link leads, although nothing is there
    assert target.stat().st_mode == (tmp_path / "new").stat().st_mode  # as the user lets new files
    target.chmod(0o600)
    write_whole(path, b"second")
    assert path.is_symlink()
    assert target.read_bytes() == b"second"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("kind", ["device", "link to a device", "pipe", "folder", "loop"])
def test_what_is_no_ordinary_file_is_refused(kind: str, path: Path) -> None:
    if kind == "device":
        path = Path(os.devnull)
    elif kind == "link to a device":
        path.symlink_to(os.devnull)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    before = path.lstat()
    for attempt in (lambda: check_writable(path, 10), lambda: write_whole(path, b"content")):
        with pytest.raises(MiniresError, match=path.name):
            attempt()
    after = path.lstat()
    assert (after.st_mode, after.st_ino, after.st_size) == (
        before.st_mode, before.st_ino, before.st_size)  # fmt: skip


def test_any_name_is_taken_that_the_disk_takes(tmp_path: Path) -> None:
    for length in 240, 255:
        write_whole(tmp_path / ("a" * length), b"content")
    for name in "a" * 300, "nowhere/model.safetensors":
        with pytest.raises(MiniresError, match=name):
            check_writable(tmp_path / name, 0)
    assert len(list(tmp_path.iterdir())) == 2


@posix
def test_what_a_killed_process_left_is_removed_and_what_one_works_on_is_not(path: Path) -> None:
    """A lock ends with its process, so a file that nobody has locked stands for a killed one's."""
    for number in range(3):
        (path.parent / f"{writing.PARTIAL}{number}").write_bytes(b"left")
    (path.parent / f"{writing.PARTIAL}folder").mkdir()
    os.mkfifo(path.parent / f"{writing.PARTIAL}pipe")  # which nobody may open
    other = path.with_name("other")
    with writing._partial(other) as (file, _):
        write_whole(path, b"content")
        assert {p.name for p in path.parent.iterdir()} == {
            path.name, Path(file.name).name, f"{writing.PARTIAL}folder", f"{writing.PARTIAL}pipe"
        }  # fmt: skip
    assert not Path(file.name).exists()


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As there: no locks, and what is open can be neither removed nor moved nor replaced."""
    opened: list[Any] = []

    def open_noting(*arguments: Any) -> Any:
        opened.append(open(*arguments))  # noqa: SIM115
        return opened[-1]

    def refusing(function: Callable[..., None]) -> Callable[..., None]:
        def act(*paths: str) -> None:
            if any(not file.closed and Path(file.name) in map(Path, paths) for file in opened):
                raise PermissionError(13, "another process has it open")
            function(*paths)

        return act

    monkeypatch.setattr(writing, "fcntl", None)
    monkeypatch.setattr(writing, "open", open_noting, raising=False)
    for name in ("unlink", "replace"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.usefixtures("windows")
def test_on_windows_files_are_written_and_leftovers_removed(path: Path) -> None:
    (path.parent / f"{writing.PARTIAL}left").write_bytes(b"left")
    with writing._partial(path.with_name("other")) as (file, _):
        check_writable(path, 10)
        write_whole(path, b"before")
        write_whole(path, b"content")
        assert {p.name for p in path.parent.iterdir()} == {path.name, Path(file.name).name}
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == b"content"


@posix
def test_a_file_taken_for_a_leftover_before_it_was_locked_is_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = writing._lock, []

    def be_late(file: object) -> None:
        if not taken:
            taken.append(file.name)  # type: ignore[attr-defined]
            os.unlink(taken[0])
        lock(file)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_lock", be_late)
    write_whole(path, b"content")
    assert taken
    assert path.read_bytes() == b"content"
