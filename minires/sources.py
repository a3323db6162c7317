"""Photographs as people name them: files, folders, patterns, and standard input."""

import contextlib
import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from minires.errors import ImageError, some
from minires.images import SUFFIXES, ImageSource, refuse_address

STDIN = Path("-")  # as a name on the command line; a file of that name has its folder's name too


def find_images(sources: Iterable[str | os.PathLike[str]], recursive: bool = False) -> list[Path]:
    """List the files that are named, and in place of each folder its images, by name.

    A name that is not there may be a pattern, such as ``shots/*.jpg``. `recursive` looks into the
    folders of a folder too. A folder without an image stays as it is, and so does a name that is
    not there: whoever opens it says what is wrong. An empty name raises `ImageError`: it would be
    the current folder.
    """
    files = []
    for given in sources:
        if not os.fspath(given):
            raise ImageError("a name is empty; wanted a file or a folder, . for the current one")
        refuse_address(given)
        for source in _matches(Path(given)):
            files += list(_images_in(source, recursive)) or [source]
    return files


def _matches(source: Path) -> list[Path]:
    """List what a pattern stands for; on Windows no shell does that, nor does any for "*.jpg"."""
    if os.path.exists(source) or not glob.has_magic(str(source)):
        return [source]
    return [Path(name) for name in sorted(glob.glob(str(source), recursive=True))] or [source]


def _images_in(folder: Path, recursive: bool) -> Iterator[Path]:
    inside: list[Path] = []
    with contextlib.suppress(OSError):  # it is a file, or may not be looked into
        inside = sorted(folder.iterdir())
    # A name that begins with a dot is hidden: macOS leaves such files beside images.
    for path in (path for path in inside if path.name[0] != "."):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path
        elif recursive and path.is_dir() and not path.is_symlink():  # a link may lead back here
            yield from _images_in(path, recursive)


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder, in the order of their names; hidden ones do not count."""
    inside = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted(inside, key=lambda path: path.name)  # paths themselves ignore case on Windows


def no_image_in(folder: Path) -> ImageError:
    """Say that a folder has no image, and where in it there are some."""
    inside = folders_in(folder)
    filled = [path.name for path in inside if next(_images_in(path, recursive=True), None)]
    if not filled:
        return ImageError(f"{folder}: no image lies in this folder")
    return ImageError(
        f"{folder}: no image lies in this folder itself, but in its folders {some(filled)}; "
        "--recursive looks there too"
    )


def opened(file: Path) -> ImageSource:
    """Return a file's path, or all of standard input for `STDIN`."""
    if file != STDIN:
        return file
    if sys.stdin is None:
        raise ImageError("-: there is no standard input")
    content = io.BytesIO(sys.stdin.buffer.read())
    content.name = "standard input"  # for errors
    return content
