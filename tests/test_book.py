"""The book's own tool divides chapters into cells, runs them, and makes pages and notebooks."""

import json
import runpy
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts import load

ROOT = Path(__file__).parents[1]
CHAPTER = """\
# %% [markdown]
# # 3. A title
#
# Text with $x$, and [chapter 5](05_eight_bits).
#
# ```{lab} pixel
# ```

# %%
import matplotlib.pyplot as plt

value = 6 * 7
print("it is", value)

# %%
#| alt: a line that "rises"
#|   to the right
#| caption: It rises.
#| code: folded
plt.plot([0, 1])
plt.ylabel("higher")
plt.show()

# %%
#| cell: The answer, computed
print(value + 1)
"""


@pytest.fixture(scope="module")
def book() -> ModuleType:
    return load("docs/book.py")


def test_output_may_be_code(book: ModuleType) -> None:
    cells = book.read('# %%\n#| output: python\nprint("for k in range(K):")\n')
    page = book.page("01_x", cells, book.run(cells, "01_x.py"))
    assert "{code-block} python\n:class: output\n\nfor k in range(K):" in page


def test_a_script_is_divided_into_cells(book: ModuleType) -> None:
    text, code, drawing, answer = book.read(CHAPTER)
    assert (text.code, code.code) == (False, True)
    assert text.text.startswith("# 3. A title\n\nText with $x$")
    assert code.text.endswith('print("it is", value)')
    assert drawing.options["alt"] == 'a line that "rises" to the right'
    assert drawing.text.startswith("plt.plot")
    assert answer.options == {"cell": "The answer, computed"}


def test_a_cells_lines_keep_their_numbers(book: ModuleType) -> None:
    cells = book.read(CHAPTER.replace("print(value + 1)", "1 / 0"))
    with pytest.raises(ZeroDivisionError) as raised:
        book.run(cells, "a_chapter.py")
    assert raised.traceback[-1].lineno + 1 == CHAPTER.splitlines().index("print(value + 1)") + 1


def test_a_page_has_what_its_cells_printed_and_drew(book: ModuleType) -> None:
    cells = book.read(CHAPTER)
    page = book.page("03_title", cells, book.run(cells, "a_chapter.py"))
    assert page.index("````{code-block} python") < page.index("it is 42") < page.index("<svg")
    assert 'role="img" aria-label="a line that &quot;rises&quot; to the right"' in page
    assert book.INK not in page
    assert "currentColor" in page
    assert "higher</text>" in page  # letters stay letters
    picture = page.partition("<svg")[2].partition("</svg>")[0]
    assert "\n\n" not in picture
    # The picture stands above its code, which is folded, and so is the answer with its output.
    assert page.index("It rises.") < page.index(book.DRAWING) < page.index("plt.plot")
    folded = page.partition("<summary>The answer, computed</summary>")[2]
    assert "43" in folded.partition("</details>")[0]
    assert "python examples/03_title.py" in page


def test_a_chapter_leaves_no_styles_and_words_behind(book: ModuleType) -> None:
    import sys

    import matplotlib

    from minires.measure import plots

    before = dict(plots.STYLE), dict(matplotlib.rcParams), list(sys.argv)
    book.run(book.read("# %%\nimport sys\nassert sys.argv == ['c.py']"), "c.py")
    assert (dict(plots.STYLE), dict(matplotlib.rcParams), list(sys.argv)) == before


def test_a_figure_that_a_cell_ends_with_is_drawn(book: ModuleType) -> None:
    source = (
        "# %%\n#| alt: two bars\nfrom matplotlib.figure import Figure\nfigure = Figure()\nfigure"
    )
    cells = book.read(source)
    (output,) = book.run(cells, "a_chapter.py")
    assert len(output.pictures) == 1
    assert output.printed == ""


def test_every_chapter_is_a_notebook(book: ModuleType, tmp_path: Path) -> None:
    """Its text and code are the script's; links lead to notebooks."""
    book.write_notebooks(tmp_path)
    assert len(book.CHAPTERS) == len(list(tmp_path.glob("*.ipynb"))) >= 19
    for chapter in book.CHAPTERS:
        told = json.loads((tmp_path / f"{chapter.stem}.ipynb").read_text(encoding="utf-8"))
        assert (told["nbformat"], told["nbformat_minor"]) == (4, 5)
        cells = book.read(chapter.read_text(encoding="utf-8"))
        code = ["".join(c["source"]) for c in told["cells"] if c["cell_type"] == "code"]
        assert code[1:] == [cell.text for cell in cells if cell.code]
        text = "".join("".join(c["source"]) for c in told["cells"] if c["cell_type"] == "markdown")
        assert text.startswith("# ")
        assert "{lab}" not in text
        assert ("`minires lab`" in text) >= any("{lab}" in cell.text for cell in cells)
        assert len({cell["id"] for cell in told["cells"]}) == len(told["cells"])


def test_a_notebook_folds_what_the_book_folds(book: ModuleType) -> None:
    text = CHAPTER.replace("[chapter 5](05_eight_bits)", "[accuracy](../accuracy)")
    _, told, code, drawing, answer = book.notebook(book.read(text))["cells"]
    assert "](../docs/accuracy.md)" in "".join(told["source"])
    hidden = [cell["metadata"].get("jupyter") for cell in (code, drawing, answer)]
    whole = {"source_hidden": True, "outputs_hidden": True}
    assert hidden == [None, {"source_hidden": True}, whole]


def test_writing_notebooks_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["book.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs" / "book.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith(f"jupyter lab {tmp_path}\n")


def test_a_notebooks_first_cell_finds_the_repository(
    book: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "recorded.py").touch()
    inner = tmp_path / "notebooks" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["a kernel", "-f", "connection.json"])
    exec(book.HERE.replace("%matplotlib inline", ""))
    assert Path.cwd() == tmp_path.resolve()
    assert sys.path[0] == "examples"
    assert sys.argv == ["a kernel"]


@pytest.mark.parametrize(
    "chapter", sorted((ROOT / "examples").glob("[0-9]*.py")), ids=lambda path: path.stem
)
def test_a_picture_says_what_is_seen_in_it(book: ModuleType, chapter: Path) -> None:
    for cell in book.read(chapter.read_text(encoding="utf-8")):
        assert not ("plt.show()" in cell.text and cell.code) or cell.options["alt"]
        assert set(cell.options) <= {"alt", "caption", "code", "output", "cell"}


def test_pages_of_chapters_that_are_gone_go_too(
    book: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # and back: pages are made where the repository begins
    (tmp_path / "18_old_name.md").write_text("# 18. An old name\n")
    book.write_pages(tmp_path, "05*", execute=False)
    assert [path.stem for path in tmp_path.iterdir()] == ["05_eight_bits"]
