"""One style for all plots. matplotlib is imported only when one is drawn.

The colours are Okabe and Ito's (2008), which people tell apart with any kind of colour vision.
"""

import base64
import contextlib
import functools
import html
import importlib.util
import io
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minires.errors import MiniresError, check_is
from minires.html import Html, fold, lines
from minires.measure.trust import verdict
from minires.writing import check_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Path = str | os.PathLike[str]
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
SKY, PURPLE, YELLOW, GREY = "#56b4e9", "#cc79a7", "#f0e442", "#888888"
COLORS = {"fp32": SKY, "bf16": PURPLE, "int8": ORANGE, "fp16": GREEN, "tf32": RED}
SEVERAL = (SKY, ORANGE, GREEN, BLUE, PURPLE, RED, GREY, YELLOW)  # without a meaning
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
PAPER, INK = "#16181d", "#d7dae0"
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
DARK: dict[Any, Any] = {
    **STYLE,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": "#30343c",
    **dict.fromkeys(INKED, INK),
}


def check(path: Path | None) -> None:
    """Raise `MiniresError` unless a plot can be drawn there: call it before you measure."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MiniresError('plots need matplotlib: pip install "minires[plot]"')
    if path is None:  # it is shown, not written
        return
    check_is("path", path, str | os.PathLike, "that of a picture to write")
    if os.path.splitext(path)[1].lower() not in (".png", ".svg", ".pdf"):
        raise MiniresError(f"{path}: a plot's name ends in .png, .svg or .pdf")
    check_folder(path)


@functools.cache
def _figure_class() -> type["Figure"]:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure without pyplot, and so without a display, that a notebook shows by itself."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=120)
            return file.getvalue()

    return Picture


@contextlib.contextmanager
def drawing(
    path: Path | None,
    title: str,
    width: float = 10,
    height: float = 5,
    columns: int = 1,
    dark: bool = False,
    heights: Sequence[float] = (1,),
    doubts: Sequence[str] = (),
) -> Iterator[tuple["Figure", Any]]:
    """Open a figure to draw on; if there is a path, it is written when the with statement ends.

    The path's suffix chooses the format. Width and height are in inches; a title of more than two
    lines adds to the height. `heights` has a number for each row of axes. Where figures are in
    doubt, the title says why. You get the figure, and axes, or an array of axes if there are
    several.
    """
    check(path)
    import matplotlib

    with matplotlib.rc_context(DARK if dark else STYLE):
        told = [*title.splitlines(), *([verdict(doubts)] if doubts else [])]
        # Letters of this size are a thirteenth of an inch wide. A legend may stand at the right.
        filled = [part for line in told for part in textwrap.wrap(line, min(100, int(13 * width)))]
        height += 0.15 * max(0, len(filled) - 2)  # inches that the axes would lose to the title
        drawn = _figure_class()(figsize=(width, height), layout="constrained")
        drawn.suptitle("\n".join(filled), fontsize=9, x=0.01, ha="left")
        yield drawn, drawn.subplots(len(heights), columns, height_ratios=heights)
        if path is not None:
            drawn.savefig(path)


def bars_by_kind(
    axes: Any, names: Sequence[str], kinds: Sequence[str], lengths: Sequence[float]
) -> None:
    """Draw a bar for each name, from top to bottom, in a colour for its kind.

    A kind such as conv3x3/2 has the colour of conv3x3, and stripes for the stride.
    """
    colors: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        base, stride, _ = kind.partition("/")
        color = colors.setdefault(base, SEVERAL[len(colors) % len(SEVERAL)])
        places = [place for place, other in enumerate(kinds) if other == kind]
        widths = [lengths[place] for place in places]
        axes.barh(places, widths, color=color, hatch="////" if stride else "", label=kind)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def explain(drawn: "Figure", colors: Iterable[tuple[str, str]]) -> None:
    """Say beneath a figure what its colours mean: pairs of a text and a colour."""
    from matplotlib.patches import Patch

    patches = [Patch(color=color, label=text) for text, color in colors]
    lengths = [len(str(patch.get_label())) + 7 for patch in patches]
    columns = len(patches)  # as many as fit side by side; matplotlib fills one after another
    while columns > 1:
        rows = math.ceil(len(patches) / columns)
        width = sum(max(lengths[at : at + rows]) for at in range(0, len(lengths), rows))
        if width <= 16 * drawn.get_figwidth():
            break
        columns -= 1
    drawn.legend(handles=patches, loc="outside lower left", ncols=columns)


def page(draw: Callable[[], "Figure"], text: str) -> Html:
    """Make what a notebook shows: a picture where matplotlib is installed, and a text to unfold."""
    figures = Html(f"<pre>{html.escape(text)}</pre>")
    if importlib.util.find_spec("matplotlib") is None:
        return figures
    file = io.BytesIO()
    draw().savefig(file, format="png", dpi=120)
    data = base64.b64encode(file.getvalue()).decode()
    image = Html(f'<img style="max-width:100%" alt="a plot" src="data:image/png;base64,{data}">')
    return lines(image, fold("the figures", figures))
