"""Make the book's pages and notebooks from the chapters, which are scripts in examples/.

    python docs/book.py notebooks      # writes a notebook for each chapter into that folder

A chapter is a script in the percent format, which Jupytext, VS Code and Spyder read too: a line
``# %% [markdown]`` begins a cell of text, and ``# %%`` one of code. Sphinx runs the cells in order
and puts beneath each what it printed and drew. A cell of code may begin with options:

    #| alt: what is seen in the picture, for those who do not see it
    #| caption: what the picture says
    #| code: folded                the code stands behind a fold, its output does not
    #| output: python            what it printed is coloured as this language
    #| cell: The answer, computed  all of it stands behind a fold with this title

An option goes on in the next line behind ``#|`` and at least two blanks.
"""

import ast
import contextlib
import fnmatch
import html
import io
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
DRAWING = "Show the code that draws this"
LAB = (
    r"*(The book has a view to play with here. `minires lab` opens it in your browser, under #\1.)*"
)
INK = "#010203"  # a colour that no plot has: it becomes the page's own, light or dark
STYLE: dict[str, Any] = {
    "figure.figsize": (5.6, 3.0),  # inches: legible at the width of a phone
    "font.size": 10,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "minires",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.framealpha": 0.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#88888855",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}
HERE = """\
# Chapters run where the repository begins, and have helpers in examples/.
import os, pathlib, sys
places = [pathlib.Path.cwd(), *pathlib.Path.cwd().parents]
os.chdir(next(place for place in places if (place / "examples" / "recorded.py").exists()))
sys.path[:0] = ["examples"]
sys.argv[1:] = []  # Jupyter's own words are no chapter's
%matplotlib inline"""


class Cell(NamedTuple):
    """A piece of a chapter."""

    text: str  # Markdown, or code without its options
    code: bool
    options: dict[str, str]
    line: int  # where it begins in the file


class Output(NamedTuple):
    """What a cell printed and drew."""

    printed: str
    pictures: list[str]  # SVG
    shown: str  # HTML: how the value of a last expression shows itself


def read(source: str) -> list[Cell]:
    """Divide a script into its cells."""
    lines = source.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    cells = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body, options = lines[start + 1 : end], dict[str, str]()
        if lines[start] == "# %% [markdown]":
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body)
            cells.append(Cell(text.strip(), False, {}, start + 1))
            continue
        while body and body[0].startswith("#|"):
            name, _, value = body[0][2:].strip().partition(": ")
            if body[0].startswith("#|  "):
                name = next(reversed(options))
                value = f"{options[name]} {body[0][2:].strip()}"
            options[name] = value
            body = body[1:]
        code = "\n".join(body).strip("\n")
        cells.append(Cell(code, True, options, end - len(body)))
    return [cell for cell in cells if cell.text]


def run(cells: list[Cell], file: str) -> list[Output]:
    """Run a chapter's cells, one after the other, in one namespace."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from minires.measure import plots

    plain = plots.STYLE.copy()
    plots.STYLE.update({key: STYLE[key] for key in STYLE if key != "font.size"})
    names: dict[str, Any] = {"__name__": "__main__", "__file__": file}
    outputs = []
    words, sys.argv = sys.argv, [file]  # a chapter may take words from its command line
    try:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
            plt.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=plots.SEVERAL)
            for cell in cells:
                outputs.append(run_cell(cell, file, names) if cell.code else Output("", [], ""))
    finally:
        sys.argv = words
        plots.STYLE.clear()
        plots.STYLE.update(plain)
        plt.close("all")
    return outputs


def run_cell(cell: Cell, file: str, names: dict[str, Any]) -> Output:
    """Run a cell; its lines keep their numbers, so that an error names the right one."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    tree = ast.parse("\n" * cell.line + cell.text, file)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, file, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), file, "eval"), names)
    figures = [plt.figure(number) for number in plt.get_fignums()]
    if isinstance(value, Figure) and value not in figures:
        figures.append(value)
    shown = getattr(value, "_repr_html_", str)() or ""
    pictures = [to_svg(figure) for figure in figures]
    plt.close("all")
    return Output(printed.getvalue(), pictures, shown)


def to_svg(figure: Any) -> str:
    """Draw a figure as SVG in the page's own ink: one picture, for light pages and dark ones."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return re.sub(r"\n\s*\n", "\n", drawn)  # an empty line would end it in Markdown


def page(name: str, cells: list[Cell], outputs: list[Output]) -> str:
    """Lay a chapter out as a page of MyST Markdown."""
    parts = []
    for cell, output in zip(cells, outputs, strict=True):
        if not cell.code:
            parts.append(cell.text)
            continue
        code = fence("python", cell.text)
        if cell.options.get("code") == "folded":
            code = fold(DRAWING, code)
        language = cell.options.get("output", "none")
        results = [fence(language, output.printed.rstrip(), "output")] if output.printed else []
        results += [picture(drawn, cell.options) for drawn in output.pictures]
        results += [f"```{{raw}} html\n{output.shown}\n```"] if output.shown else []
        # A picture is what its cell is for, so folded code stands beneath it.
        both = [*results, code] if "code" in cell.options else [code, *results]
        text = "\n\n".join(both)
        parts.append(fold(cell.options["cell"], text) if "cell" in cell.options else text)
    parts.append(
        f"---\n\nRun this chapter on your machine: `python examples/{name}.py`, or open "
        f'<a href="{name}.ipynb" download>its notebook</a> in the repository.'
    )
    return "\n\n".join(parts) + "\n"


def fence(language: str, text: str, kind: str = "code") -> str:
    """Make a block of code, or of what code printed."""
    return f"````{{code-block}} {language}\n:class: {kind}\n\n{text}\n````"


def fold(title: str, text: str) -> str:
    """Put Markdown behind a fold."""
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def picture(drawn: str, options: dict[str, str]) -> str:
    """Put a drawing into the page, with its caption, and with its text for those who do not see."""
    label = html.escape(options["alt"], quote=True)
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    drawn = re.sub(r' (width|height)="[\d.]+pt"', "", drawn, count=2)
    caption = options.get("caption", "")
    return (
        f'```{{raw}} html\n<figure class="drawn">\n{drawn}<figcaption>\n```\n\n{caption}\n\n'
        "```{raw} html\n</figcaption></figure>\n```"
    )


def notebook(cells: list[Cell]) -> dict[str, Any]:
    """Make a notebook, in Jupyter's format (nbformat 4.5), that runs anywhere in the repository."""
    made = [notebook_cell("code", HERE, 0)]
    for i, cell in enumerate(cells, 1):
        text = cell.text
        if not cell.code:  # chapters are beside it; the lab's views are the book's
            text = re.sub(r"\]\((\d\d_\w+)", r"](\1.ipynb", text)
            text = re.sub(r"\]\(\.\./(\w+)\)", r"](../docs/\1.md)", text)
            text = re.sub(r"```\{lab\} (\w+)\n```", LAB, text)
        made.append(notebook_cell("code" if cell.code else "markdown", text, i))
        # What is folded in the book is folded here: an answer whole, a drawing's code alone.
        if "cell" in cell.options:
            made[-1]["metadata"] = {"jupyter": {"source_hidden": True, "outputs_hidden": True}}
        elif "code" in cell.options:
            made[-1]["metadata"] = {"jupyter": {"source_hidden": True}}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def notebook_cell(kind: str, text: str, number: int) -> dict[str, Any]:
    """Make one cell of a notebook."""
    empty: dict[str, Any] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    lines = text.splitlines(keepends=True)
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": lines, **empty}


def write_notebooks(folder: Path) -> None:
    """Write all chapters as notebooks."""
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in CHAPTERS:
        told = json.dumps(notebook(read(chapter.read_text(encoding="utf-8"))), indent=1)
        (folder / f"{chapter.stem}.ipynb").write_text(told + "\n", encoding="utf-8")


def write_pages(folder: Path, pattern: str, execute: bool = True) -> None:
    """Run the chapters whose names match, and write their pages; an error in one ends the build.

    Without `execute` the pages show what cells say, and nothing that they print or draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    names = {chapter.stem for chapter in CHAPTERS}
    for old in folder.glob("*.md"):
        if old.stem not in names:  # a chapter that has got another name
            old.unlink()
    for chapter in CHAPTERS:
        if not fnmatch.fnmatch(chapter.stem, pattern):
            continue
        cells = read(chapter.read_text(encoding="utf-8"))
        outputs = run(cells, str(chapter)) if execute else [Output("", [], "")] * len(cells)
        text = page(chapter.stem, cells, outputs)
        (folder / f"{chapter.stem}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "notebooks")
    write_notebooks(folder)
    print(f"{len(CHAPTERS)} notebooks are in {folder}; open them with: jupyter lab {folder}")
