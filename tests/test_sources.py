"""Names become files: folders, patterns, standard input, and what is said of the others."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minires.errors import ImageError
from minires.images import load_image
from minires.sources import STDIN, find_images, no_image_in, opened
from tests.making_files import save_photograph


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Two folders of empty files, one in the other, and what is to be passed over."""
    inner = tmp_path / "shots" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "shots" / ".hidden").mkdir()
    names = ["b.png", "a.JPG", "notes.txt", "inner/c.webp", ".hidden/d.png", "inner/.e.png"]
    for name in names:
        (tmp_path / "shots" / name).write_bytes(b"")
    return tmp_path / "shots"


def test_a_folder_is_its_images_and_all_else_stays(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    full = tmp_path / "full.png"  # a folder for all that
    for folder in (empty, full, full / "folder.jpg"):
        folder.mkdir()
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "phone.heic"):
        (full / name).write_bytes(b"")
    (full / "vector.eps").write_bytes(b"")
    missing = tmp_path / "missing.png"
    found = find_images([missing, full, str(empty)])
    assert found == [missing, full / "a.JPG", full / "b.png", full / "phone.heic", empty]
    with pytest.raises(ImageError, match="a name is empty"):
        find_images([full, ""])
    assert find_images([Path()]) == [Path()]
    assert find_images([STDIN]) == [STDIN]


def test_recursive_looks_into_folders_of_folders(shots: Path) -> None:
    assert find_images([shots]) == [shots / "a.JPG", shots / "b.png"]
    found = find_images([shots], recursive=True)
    assert found == [shots / "a.JPG", shots / "b.png", shots / "inner" / "c.webp"]


def test_a_link_back_ends(shots: Path) -> None:
    try:
        (shots / "inner" / "back").symlink_to(shots, target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert len(find_images([shots], recursive=True)) == 3


def test_patterns_are_expanded_where_no_shell_has_done_it(shots: Path) -> None:
    assert find_images([f"{shots}/*.png"]) == [shots / "b.png"]
    assert find_images([f"{shots}/**/*.webp"]) == [shots / "inner" / "c.webp"]
    assert find_images([f"{shots}/*.bmp"]) == [shots / "*.bmp"], "for whoever opens it to name"
    (shots / "[b].png").write_bytes(b"")
    assert find_images([shots / "[b].png"]) == [shots / "[b].png"], "a file that is called so"


def test_an_address_is_refused_before_anything_is_read(shots: Path) -> None:
    for address in ("https://a.org/b.jpg", Path("https://a.org/b.jpg")):
        with pytest.raises(ImageError, match=r"https://a\.org/b\.jpg: an address on the web"):
            find_images([shots, address])


def test_a_folder_without_an_image_names_folders_that_have_some(shots: Path) -> None:
    assert "--recursive" not in str(no_image_in(shots / ".hidden"))
    for name in ("a.JPG", "b.png"):
        (shots / name).unlink()
    assert "in its folders inner; --recursive" in str(no_image_in(shots))


def test_standard_input_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_photograph(tmp_path / "a.png", 0)
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert load_image(opened(STDIN)).tobytes() == load_image(data).tobytes()
    with pytest.raises(ImageError, match="standard input: empty"):
        load_image(opened(STDIN))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ImageError, match="there is no standard input"):
        opened(STDIN)
    assert opened(tmp_path / "a.png") == tmp_path / "a.png"
