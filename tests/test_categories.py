import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.categories import read_categories, told_categories
from minires.errors import MiniresError

NAMES = ["cat", "dog", "ä gnu"]
NUMBERS = {"dog": 1, "cat": 0, "ä gnu": 2}


@pytest.mark.parametrize(
    "given",
    [
        NAMES,
        tuple(NAMES),
        np.array(NAMES),
        NUMBERS,
        {name: np.int64(number) for name, number in NUMBERS.items()},
        {number: name for name, number in NUMBERS.items()},
        {str(number): name for name, number in NUMBERS.items()},
    ],
)
def test_names_in_python(given: Any) -> None:
    assert read_categories(given) == NAMES


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "cat\ndog\nä gnu"),
        ("names", "\ufeffcat\r\n dog \r\nä gnu\r\n\r\n"),
        ("names.json", json.dumps(NAMES)),
        ("numbers.JSON", json.dumps(NUMBERS)),
    ],
)
def test_names_in_a_file(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read_categories(path) == NAMES
    assert read_categories(str(path)) == NAMES


def test_folders_of_photographs_name_the_classes(tmp_path: Path) -> None:
    for name in (*reversed(NAMES), ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels.csv").touch()
    assert read_categories(tmp_path) == sorted(NAMES)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cat": 0, "dog": 1, "gnu": 3}, "numbers are not 0, 1, 2 and so on"),
        ({"cat": 0, "dog": 0, "gnu": 1}, "numbers are not 0, 1, 2"),
        ({"cat": "dog", "dog": "gnu", "gnu": "cat"}, "the categories are None; wanted a list"),
        (["cat", "dog", 7], "7 is given as a name; wanted printable text"),
        (["cat", "dog", "\x1b[2J"], "is given as a name; wanted printable text"),
        (["cat", "dog", "a" * 201], "of at most 200 characters"),
        ({"cat": np.ones(3)}, "the categories are None"),
        (3, "the categories are 3; wanted a list of names"),
        (object(), "the categories are <object"),
        (float("nan"), "the categories are nan"),
        (b"cat", "the categories are b'cat'"),
        ("missing.txt", r"missing\.txt: cannot be read \(No such file"),
    ],
)
def test_wrong_names_are_told(given: Any, told: str) -> None:
    with pytest.raises(MiniresError, match=told):
        read_categories(given)


@pytest.mark.parametrize("name", ["bytes.txt", "broken.json", "nested.json"])
def test_a_file_that_holds_no_names_is_told(name: str, tmp_path: Path) -> None:
    content = {"bytes.txt": b"\xff\xfe\xfa", "broken.json": b"{", "nested.json": b"[" * 100_000}
    (tmp_path / name).write_bytes(content[name])
    with pytest.raises(MiniresError, match=rf"{name}: no text in UTF-8, or no JSON; wanted a name"):
        read_categories(tmp_path / name)


def test_what_a_script_saved_is_taken_where_it_fits() -> None:
    assert told_categories({"class_names": NAMES}, 3) == NAMES
    assert told_categories({"class_names": json.dumps(NAMES)}, 3) == NAMES
    assert told_categories({"classes": 3, "class_to_idx": NUMBERS}, 3) == NAMES
    tensors = {"cat": np.ones(3)}, np.array(NAMES), {"cat": {}, 1: np.ones(3)}
    for misfit in *tensors, NAMES[:2], 3, "names.txt", None, {"a": {}}, ["a", "b", None]:
        assert told_categories({"classes": misfit}, 3) is None
