"""Threads that the kernels run on.

Numba has threads of its own, from OpenMP or another library. But a process that has used them must
not fork, because its children die or wait forever. Compiled code releases Python's global lock, so
Python's own threads can run it side by side, and forking works.
"""

import functools
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from minires.kernels.compile import compile_for
from minires.kernels.isa.generic import GENERIC
from minires.kernels.sync import wait_for


class Workers:
    """Threads that wait for work. They start when first needed; the caller works, too."""

    def __init__(self) -> None:
        self._queues: list[queue.SimpleQueue[Any]] = []

    def share(self, function: Callable[..., None], threads: int, *arguments: Any) -> None:
        """Call ``function(*arguments, thread)`` in each of so many threads.

        The caller is thread 0, and returns as soon as its own call does. So a thread that comes
        late must find out by itself that nothing is left to do. The function has to be compiled
        code, which runs without Python's global lock.
        """
        for thread in range(1, threads):
            self._queue(thread).put((function, arguments, thread))
        function(*arguments, 0)

    def all(self, function: Callable[..., None], threads: int, *arguments: Any) -> None:
        """Do as `share`, but return when every call has. The caller waits as in `wait_for`."""
        done = np.zeros(threads, np.int64)

        def run(*arguments: Any) -> None:
            function(*arguments)
            done[arguments[-1]] = 1

        self.share(run, threads, *arguments)
        _waiter()(done)

    def _queue(self, thread: int) -> "queue.SimpleQueue[Any]":
        while len(self._queues) < thread:
            jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
            name = f"minires {len(self._queues) + 1}"  # as a trace calls it
            threading.Thread(target=_work, args=(jobs,), name=name, daemon=True).start()
            self._queues.append(jobs)
        return self._queues[thread - 1]


def _work(jobs: "queue.SimpleQueue[Any]") -> None:
    """Run each job that comes, for as long as the process lives."""
    while True:
        function, arguments, thread = jobs.get()
        function(*arguments, thread)
        # Otherwise a waiting thread would keep the memory of a network that is deleted meanwhile.
        del function, arguments


@functools.cache
def _waiter() -> Callable[..., None]:
    def wait(done: Any) -> None:
        for thread in range(len(done)):
            wait_for(done[thread:].ctypes.data, 1)

    return compile_for(GENERIC, wait, types.void(types.int64[::1]), keep=False)


WORKERS = Workers()


def _forget() -> None:
    """Begin anew in a forked child, which has none of its parent's threads."""
    WORKERS._queues = []


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
