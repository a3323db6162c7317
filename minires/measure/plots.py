"""One style for all plots. matplotlib is imported only when one is drawn."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from minires.errors import MiniresError

COLORS = {"fp32": "tab:blue", "bf16": "tab:purple", "int8": "tab:orange"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "savefig.dpi": 120,
    "svg.hashsalt": "minires",
}


def check(path: str | os.PathLike[str]) -> None:
    """Raise `MiniresError` unless a plot can be drawn there: call it before you measure."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MiniresError('plots need matplotlib: pip install "minires[plot]"')
    if os.path.splitext(path)[1].lower() not in (".png", ".svg", ".pdf"):
        raise MiniresError(f"{path}: a plot's name ends in .png, .svg or .pdf")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise MiniresError(f"{path}: its folder is not there; make it first")


@contextlib.contextmanager
def figure(
    path: str | os.PathLike[str], title: str, width: float = 10, height: float = 5, columns: int = 1
) -> Iterator[Any]:
    """Open a figure to draw on; the file is written when the with statement ends.

    The path's suffix chooses the format. Width and height are in inches. You get axes, or an array
    of axes if there are several columns.
    """
    check(path)
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, so without a display

    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        drawn.suptitle(title, fontsize=9, x=0.01, ha="left")
        yield drawn.subplots(1, columns)
        drawn.savefig(path)
