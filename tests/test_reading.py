"""Photographs read ahead: in order, no more than allowed, and nothing left behind."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires import reading
from minires.errors import ImageError
from minires.preprocess import IMAGENET_V1, preprocess

CAT = Path(__file__).parents[1] / "examples/images/cat.jpg"


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let minires use one thread, or two on any machine."""
    monkeypatch.setattr(reading, "get_num_threads", lambda: request.param)
    return int(request.param)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thread read ahead, on a machine with one core, too."""
    monkeypatch.setattr(reading, "get_num_threads", lambda: 2)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("minires reads")]


def wait_for_no_reader() -> None:
    for reader in readers():
        reader.join(60)  # only a reader that hangs takes so long
    assert readers() == []


@pytest.mark.usefixtures("threads")
def test_photographs_and_errors_come_in_order(tmp_path: Path) -> None:
    files = [CAT, tmp_path / "gone.jpg", CAT, tmp_path]
    found = list(reading.read_photographs(files, IMAGENET_V1, 1))
    expected = preprocess(CAT, IMAGENET_V1)
    for image in found[::2]:
        assert isinstance(image, np.ndarray)
        assert np.array_equal(image, expected)
    for error, file in zip(found[1::2], files[1::2], strict=True):
        assert isinstance(error, ImageError)
        assert str(file) in str(error)


def test_each_is_read_once_and_few_beforehand(threads: int) -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return item * item

    answers = reading._in_order(read, range(20), 3)
    for item in range(20):
        assert next(answers) == item * item
        time.sleep(0.001)  # a reader that knows no bound would be at the end by now
        assert len(begun) <= item + 1 + (3 if threads > 1 else 0)
    assert list(answers) == []
    assert begun == list(range(20))
    wait_for_no_reader()


@pytest.mark.usefixtures("ahead")
def test_the_next_is_read_while_the_first_is_used() -> None:
    third = threading.Event()
    answers = reading._in_order(lambda item: third.set() if item == 2 else None, range(4), 2)
    next(answers)
    assert third.wait(60)  # nobody has asked for it yet
    assert list(answers) == [None] * 3


def test_one_thread_or_one_photograph_needs_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_in(items: list[int]) -> Iterator[Any]:
        return reading._in_order(lambda _: threading.current_thread(), items, 3)

    me = threading.current_thread()
    monkeypatch.setattr(reading, "get_num_threads", lambda: 1)
    assert list(reads_in([1, 2])) == [me, me]
    monkeypatch.setattr(reading, "get_num_threads", lambda: 2)
    assert list(reads_in([1])) == [me]
    assert me not in list(reads_in([1, 2]))


@pytest.mark.usefixtures("threads")
def test_what_goes_wrong_is_raised_where_it_was_asked_for() -> None:
    answers = reading._in_order(lambda item: 6 // item, [3, 2, 0, 1], 4)
    assert [next(answers), next(answers)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(answers)
    wait_for_no_reader()


@pytest.mark.usefixtures("ahead")
def test_a_reader_ends_with_whoever_asked() -> None:
    begun: list[int] = []
    answers = reading._in_order(begun.append, range(1000), 2)
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # it is a generator, as after Ctrl-C
    wait_for_no_reader()
    assert len(begun) <= 4
