"""The book is held to be true: its files, its links, its equations and its commands."""

import re
import shlex
from pathlib import Path

import pytest

from minires import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
CHAPTERS = sorted((ROOT / "examples").glob("[0-9]*.py"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in [*PAGES, *CHAPTERS]}
CODE = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "minires").rglob("*.py"))}
EQUATIONS = set(re.findall(r"\\tag\{(\d+\.\d+)\}", "".join(TEXTS.values())))
QUESTIONS = 27


def cited(text: str) -> set[str]:
    """Find the equations that a text cites: equation 7.1, equations 7.2 and 7.3."""
    text = re.sub(r"\n# ?", "\n", text)  # comments that go on in the next line
    groups = re.findall(r"[Ee]quations?\s+(\d+\.\d+(?:(?:,| and| to)\s+\d+\.\d+)*)", text)
    return {number for group in groups for number in re.findall(r"\d+\.\d+", group)}


def test_citations_are_found() -> None:
    assert cited("see equations 7.1, 7.2 and 7.3; equation\n8.1.") == {"7.1", "7.2", "7.3", "8.1"}
    assert cited("# in equations\n# 7.2 and\n# 7.3") == {"7.2", "7.3"}


def test_every_equation_that_is_cited_exists() -> None:
    assert len(EQUATIONS) >= 7
    in_code = set().union(*(cited(text) for text in CODE.values()))
    assert len(in_code) >= 6
    assert in_code | set().union(*(cited(text) for text in TEXTS.values())) <= EQUATIONS


def test_an_equation_has_its_chapters_number() -> None:
    for chapter in CHAPTERS:
        numbers = re.findall(r"\\tag\{(\d+)\.(\d+)\}", TEXTS[chapter.name])
        assert numbers == [(str(int(chapter.name[:2])), str(i + 1)) for i in range(len(numbers))]


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_link_leads_somewhere(name: str) -> None:
    for file in re.findall(r"``?((?:minires|tests|examples|docs|benchmarks|weights)/[\w./-]*)``?",
                           TEXTS[name]):  # fmt: skip
        assert (ROOT / file).exists(), file
    for link in re.findall(r"\]\((?!https?:)([\w/-]+)\)", TEXTS[name] * name.endswith(".md")):
        chapter = ROOT / "examples" / f"{link.removeprefix('chapters/')}.py"
        assert chapter.exists() or (ROOT / "docs" / f"{link}.md").exists(), link


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_is_one_that_minires_takes(name: str) -> None:
    for command in re.findall(r"``?(minires (?!\w+/)[^`]+)``?", TEXTS[name]):
        words = shlex.split(command)[1:]
        words += ["cat.jpg"] if words in (["classify"], ["profile"]) else []
        assert cli.build_parser().parse_args(words).command == words[0]


def test_chapters_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:2]) for path in CHAPTERS] == list(range(1, len(CHAPTERS) + 1))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_a_picture_and_exercises_with_checked_answers(chapter: Path) -> None:
    text = TEXTS[chapter.name]
    assert "#| alt: " in text
    after = text.partition("# ## Exercises\n")[2]
    assert 3 <= after.count("<summary>Answer</summary>") <= 5
    assert after.count("<details>") == after.count("</details>")
    assert "assert " in after


def test_every_question_is_answered_on_a_page() -> None:
    entries = re.split(r"^\*\*", TEXTS["questions.md"], flags=re.MULTILINE)[1:]
    assert len(entries) == QUESTIONS
    shown = r"\]\((chapters/\d\d_\w+|accuracy|gpu|processes)\)|`tests/[\w/]+\.py`"
    for entry in entries:
        assert re.search(shown, entry), entry
        assert "?**\n: " in entry, entry


def test_what_doctor_says_of_instruction_sets_is_what_the_question_shows() -> None:
    doctor = CODE[ROOT / "minires" / "doctor.py"]
    for words in ("not here: the CPU lacks", "chosen", "can be chosen by MINIRES_ISA"):
        assert words in doctor
        assert words in TEXTS["questions.md"]


def test_reading_times_are_of_files_as_long_as_it_says() -> None:
    rows = re.findall(r"\| `(\S+)` \| .* \| (\d+) \| \d+ \|", TEXTS["reading.md"])
    assert len(rows) == 3
    for name, lines in rows:
        length = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert length == pytest.approx(int(lines), abs=5)


def test_the_tables_on_processes_are_those_that_the_benchmark_prints() -> None:
    benchmark = (ROOT / "benchmarks" / "processes.py").read_text(encoding="utf-8")
    heads = re.findall(r'HEAD = "(.+)"', benchmark)
    assert len(heads) == 4
    for head in heads:
        assert f"\n{head}\n" in TEXTS["processes.md"]


def test_as_many_chapters_are_promised_as_there_are() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    (promised,) = re.findall(r"(\d+) short chapters and an appendix", readme)
    assert int(promised) + 1 == len(CHAPTERS)


def test_what_int8_costs_is_told_with_its_intervals() -> None:
    rows = re.findall(
        r"([\d.]+)% \(([\d.]+) to ([\d.]+)\) \| ([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)",
        TEXTS["accuracy.md"],
    )
    assert len(rows) >= 3
    for agreement, least, most, difference, low, high in (map(float, row) for row in rows):
        assert 85 < least <= agreement <= most
        assert low <= difference <= high
        # Top-1 cannot differ on more photographs than the labels do.
        assert abs(difference) <= 100 - agreement + 0.1


def test_the_views_in_the_book_are_those_of_the_lab() -> None:
    page = (ROOT / "minires/lab/page/index.html").read_text(encoding="utf-8")
    in_page = set(re.findall(r'<section class="view" id="(\w+)"', page))
    named = {view for text in TEXTS.values() for view in re.findall(r"\{lab\} (\w+)", text)}
    assert named == in_page
