"""The names of a network's classes, as people have them: lists, files, folders of photographs."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minires.errors import MiniresError, WeightsError, short
from minires.metadata import check_categories, read_json
from minires.sources import folders_in

Categories = Sequence[str] | Mapping[str, int] | str | os.PathLike[str]
MOST_BYTES = 2**20  # of a file of names


def read_categories(given: object) -> list[str]:
    """List the names of classes in the order of the network's outputs.

    You give the names themselves; ``class_to_idx``, as torchvision's ImageFolder has it, or the
    other way round; a text file with a name on each line; a .json file of one of these; or a folder
    with a folder for each class, which count in the order of their names.
    """
    where = ""
    if isinstance(given, str | os.PathLike):
        where = f"{short(os.fspath(given))}: "
        given = _read(Path(given), where)
    try:
        return check_categories(_in_order(given))
    except WeightsError as error:
        raise MiniresError(f"{where}{error}") from error


def told_categories(beside: Mapping[str, Any], classes: int) -> list[str] | None:
    """Take the names that a training script saved beside its weights, if they fit."""
    for told in beside.values():
        try:
            given = read_json(told) if isinstance(told, str) else told
            names = read_categories(given if isinstance(given, list | dict) else None)
        except MiniresError:
            continue  # by this name the script keeps something else
        if len(names) == classes:
            return names
    return None


def _read(path: Path, where: str) -> object:
    try:
        if path.is_dir():
            return [folder.name for folder in folders_in(path)]  # as ImageFolder counts them
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_BYTES)
        if path.suffix.lower() == ".json":
            return json.loads(text)
    except OSError as error:
        raise MiniresError(f"{where}cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise MiniresError(
            f"{where}no text in UTF-8, or no JSON; wanted a name on each line"
        ) from error
    return [line.strip() for line in text.strip().splitlines()]


def _in_order(given: object) -> object:
    """Turn a mapping of names and numbers into a list; anything else is looked at later."""
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if not isinstance(given, Mapping):
        return list(given) if isinstance(given, tuple) else given
    pairs = [(key, name) if _is_number(key) else (name, key) for key, name in given.items()]
    if not all(_is_number(number) for number, _ in pairs):
        return None
    numbered = {int(number): name for number, name in pairs}
    if sorted(numbered) != list(range(len(pairs))):
        raise MiniresError("the categories' numbers are not 0, 1, 2 and so on")
    return [numbered[number] for number in range(len(numbered))]


def _is_number(value: object) -> bool:
    """Tell a class's number, which JSON has as text where it is a key."""
    if isinstance(value, str):
        return value.isdecimal() and value.isascii() and len(value) < 7
    return isinstance(value, int | np.integer)
