"""Waiting: a thread that waits long sleeps, and no thread is waited for that never comes."""

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit, types

from minires.kernels import operators
from minires.kernels.compile import compile_for
from minires.kernels.engine import Engine
from minires.kernels.isa import choose_isa
from minires.kernels.sync import count_up, wait_for
from tests.comparing import assert_same
from tests.kernels.test_engine import model_of
from tests.seeded_weights import seeded_input


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    return compile_for(choose_isa(), function, signature, keep=False)


def wait(count: Any, wanted: int) -> None:
    wait_for(count[0:].ctypes.data, wanted)


def add(count: Any, by: int) -> int:
    return count_up(count[0:].ctypes.data, by)  # type: ignore[no-any-return]


INTEGER = types.int64
COUNTS = INTEGER[::1]


def test_counting_gives_the_number_before() -> None:
    count_by, count = compiled(add, INTEGER(COUNTS, INTEGER)), np.zeros(1, np.int64)
    assert [count_by(count, by) for by in (1, 5, 1)] == [0, 1, 6]
    assert count[0] == 7


@pytest.mark.skipif(sys.platform == "win32", reason="there a thread only offers its core")
def test_a_thread_that_waits_long_leaves_its_core_to_others() -> None:
    wait_until, count = compiled(wait, types.void(COUNTS, INTEGER)), np.zeros(1, np.int64)

    def reach() -> None:
        time.sleep(0.3)
        count[0] = 2

    count[0] = 1
    wait_until(count, 1)  # which is reached already
    other = threading.Thread(target=reach)
    other.start()
    began, spent = time.perf_counter(), time.thread_time()
    wait_until(count, 2)
    assert count[0] == 2
    assert time.thread_time() - spent < (time.perf_counter() - began) / 2
    other.join()


def test_no_thread_is_waited_for_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all other threads had lost their cores before they began."""
    model, x, answers = model_of("int8"), seeded_input((1, 3, 32, 32)), []
    expected = Engine(model.layers, model.params, "int8", threads=1)(x)
    engine = Engine(model.layers, model.params, "int8", threads=5)

    def alone(function: Callable[..., None], _: int, *arguments: Any) -> None:
        function(*arguments, 3)

    monkeypatch.setattr(operators.WORKERS, "share", alone)
    run = threading.Thread(target=lambda: answers.append(engine(x)), daemon=True)
    run.start()
    run.join(300)
    (answer,) = answers
    assert_same(answer, expected)


def test_a_slow_core_does_not_stall_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread stays in its first piece until the others have done all else, in each step."""

    @njit
    def piece_of(_: str, step: Any, piece: int, pieces: int) -> None:
        done = step.y + 8 * pieces
        if piece == 0:
            wait_for(np.uintp(done), pieces - 1)
        count_up(np.uintp(step.y + 8 * piece), 1)
        count_up(np.uintp(done), 1)

    monkeypatch.setattr(operators, "run_piece", piece_of)
    monkeypatch.setattr(operators, "compile_for", functools.partial(compile_for, keep=False))
    execute = operators.compile_network.__wrapped__("a slow core", choose_isa().name)
    threads = 3
    program, ticks = np.zeros(4, operators.STEP), np.zeros(5, np.int64)
    done = np.zeros((len(program), threads * operators.PIECES + 1), np.int64)
    program["y"] = done.ctypes.data + done.strides[0] * np.arange(len(program))
    worked = np.zeros((len(program), threads, 2), np.int64)
    arguments = (program, ticks, 0, len(program), threads, worked)
    run = threading.Thread(target=execute, args=arguments, daemon=True)
    run.start()
    run.join(300)
    assert np.all(done[:, :-1] == 1), "each piece once"
    assert np.all(done[:, -1] == threads * operators.PIECES)
    assert not run.is_alive()
    began, ended = worked.transpose(2, 0, 1)
    assert np.all((began > 0) == (ended > 0)), "both or none"
    assert np.all(began <= ended)
    assert np.all((began > 0).any(axis=1)), "each step was somebody's work"
