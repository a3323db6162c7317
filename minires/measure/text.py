"""Measurements as text: tables with columns of the right width, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.errors import MiniresError


def format_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table, the first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, ["-" * width for width in widths], *rows):
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return "\n".join(lines)


def around(path: Path, mark: str) -> tuple[str, str]:
    """Read a Markdown file's text up to <!-- mark -->, and from <!-- /mark --> on.

    The text between the marks was generated, and is left out; the marks are not. A mark that is
    missing, or there more than once, raises `MiniresError`.
    """
    text = path.read_text(encoding="utf-8")
    begin = f"<!-- {mark} -->\n"
    end = f"<!-- /{mark} -->"
    if (text.count(begin), text.count(end)) != (1, 1):
        raise MiniresError(f"{path}: wanted <!-- {mark} --> and <!-- /{mark} --> once")
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


def to_json(measured: Any) -> str:
    """Write measurements as JSON: named tuples and data classes as objects, arrays as lists."""
    return json.dumps(_plain(measured), indent=2)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):  # functions, such as an instruction's `emit`, are left out
        return {key: _plain(inner) for key, inner in value.items() if not callable(inner)}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
