from pathlib import Path

import numpy as np
import pytest

from minires.errors import ImageError, MiniresError
from minires.preprocess import Preset, preprocess
from minires.quantize.photographs import ENOUGH, Photographs, choose_photographs
from tests.making_files import save_photograph

SMALL = Preset(32, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def test_few_photographs_are_all_taken_and_many_evenly(tmp_path: Path) -> None:
    files = [tmp_path / f"{i:03}.png" for i in range(ENOUGH + 2)]
    for file in files:
        file.write_bytes(b"")
    assert choose_photographs(tmp_path, 1000) == files
    assert len(choose_photographs(tmp_path)) == ENOUGH
    assert choose_photographs(tmp_path, 2) == [files[0], files[len(files) // 2]]
    assert choose_photographs(files[3]) == [files[3]]


def test_folders_of_classes_are_photographs_too(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    files = [tmp_path / name / "a.png" for name in ("cats", "dogs")]
    assert choose_photographs(tmp_path) == files
    (tmp_path / "own.png").write_bytes(b"")  # its own come first, as before
    assert choose_photographs(tmp_path) == [tmp_path / "own.png"]


def test_a_folder_without_an_image_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(MiniresError, match="not a folder with an image"):
            choose_photographs(folder)


def test_a_bad_photograph_is_told_once_and_left_out_each_time(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "bad.png", "c.png")]
    save_photograph(files[0], 0)
    files[1].write_bytes(b"")
    save_photograph(files[2], 1)
    told: list[ImageError] = []
    photographs = Photographs(files, SMALL, told.append)
    assert len(photographs) == 3
    for _ in range(2):
        batches = list(photographs)
        assert np.array_equal(np.concatenate(batches), preprocess([files[0], files[2]], SMALL))
    assert photographs.unusable == {files[1]}
    assert len(told) == 1
    assert "bad.png" in str(told[0])
