"""Your own photographs to calibrate on: some of a folder, read one at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from minires.errors import ImageError, MiniresError
from minires.layers import Array
from minires.preprocess import Preset, preprocess
from minires.sources import find_images

ENOUGH = 128  # more hardly change the ranges


class Photographs:
    """Photographs as batches of one, read again each time they are asked for.

    They are not kept, because a thousand preprocessed ones would take 600 MB. A file that cannot be
    used is left out: `tell` gets its error, once, and `unusable` gets the file.
    """

    def __init__(
        self, files: Sequence[Path], preset: Preset, tell: Callable[[ImageError], None]
    ) -> None:
        self.files = files
        self.preset = preset
        self.tell = tell
        self.unusable: set[Path] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Array]:  # each (1, 3, H, W) float32
        for file in self.files:
            if file in self.unusable:
                continue
            try:
                image = preprocess(file, self.preset)
            except ImageError as error:
                self.unusable.add(file)
                self.tell(error)
            else:
                yield image


def choose_photographs(folder: str | os.PathLike[str], count: int = ENOUGH) -> list[Path]:
    """List `count` of a folder's images by name, evenly spread over it, or all if it has fewer.

    Where a folder has folders and no image of its own, theirs are meant. You may also give one
    image file as the folder. No image at all raises `MiniresError`.
    """
    files = find_images([folder])
    if files == [Path(folder)]:
        files = find_images([folder], recursive=True)
    if files == [Path(folder)] and not files[0].is_file():
        raise MiniresError(f"{folder}: not a folder with an image in it")
    count = min(len(files), count)
    # Evenly spread, because the first files of a folder often show the same things.
    return [files[i * len(files) // count] for i in range(count)]
