"""What was measured as text: tables whose columns are as wide as need be, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.errors import MiniresError


def format_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table, its first column to the left and all others to the right.

    Parameters
    ----------
    head : sequence of str
        The columns' names.
    rows : sequence of sequence of str
        As many cells as there are columns.

    Returns
    -------
    str
        A line of names, a rule, and a line a row.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, ["-" * width for width in widths], *rows):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return "\n".join(lines)


def around(path: Path, mark: str) -> tuple[str, str]:
    """Read a Markdown file but for what was generated into it.

    Parameters
    ----------
    path : Path
        It has the comments ``<!-- mark -->`` and ``<!-- /mark -->``.
    mark : str
        Their name.

    Returns
    -------
    (str, str)
        What comes before, and behind, what is between them.

    Raises
    ------
    MiniresError
        Where the marks are missing, or there more than once.
    """
    text, begin, end = path.read_text(encoding="utf-8"), f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    if (text.count(begin), text.count(end)) != (1, 1):
        raise MiniresError(f"{path}: wanted <!-- {mark} --> and <!-- /{mark} --> once")
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


def to_json(measured: Any) -> str:
    """Write measurements as JSON: named tuples and data classes as objects, arrays as lists.

    Parameters
    ----------
    measured : object
        Of dicts, lists, tuples, arrays, strings and numbers.

    Returns
    -------
    str
        With an indentation of two.
    """
    return json.dumps(_plain(measured), indent=2)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):  # functions, such as how an instruction is written, are left out
        return {key: _plain(inner) for key, inner in value.items() if not callable(inner)}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
