"""How many threads the kernels use, and what hands work to them.

Numba has threads of its own, from OpenMP or from elsewhere, and a process that has used them may
not fork: its children die, or wait forever. Compiled code needs none of that. It lets go of
Python's global lock, so Python's threads run it side by side.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from minires.errors import MiniresError

_chosen: int | None = None


def _most() -> int:
    """Count the cores that this process may use, unless NUMBA_NUM_THREADS says how many."""
    wanted = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(count: int) -> None:
    """Set how many threads the kernels use from now on.

    Parameters
    ----------
    count : int
        From 1 to the number of cores that this process may use, or to NUMBA_NUM_THREADS.

    Raises
    ------
    MiniresError
        For any other number.
    """
    global _chosen
    if not isinstance(count, int) or not 1 <= count <= _most():
        raise MiniresError(
            f"{count!r} threads cannot be had; wanted 1 to {_most()}, and NUMBA_NUM_THREADS "
            "allows more"
        )
    _chosen = count


def get_num_threads() -> int:
    """Tell how many threads the kernels use.

    Returns
    -------
    int
        What `set_num_threads` was last given; before that OMP_NUM_THREADS, if it is set, and at
        most as many as there are cores, or as NUMBA_NUM_THREADS says.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    default = max(1, int(wanted)) if wanted.isdecimal() else _most()
    return _chosen or min(default, _most())


class Workers:
    """Threads that wait for work, beside the one that asks for it. They start when first needed."""

    def __init__(self) -> None:
        self._queues: list[queue.SimpleQueue[Any]] = []

    def share(self, function: Callable[..., None], threads: int, *arguments: Any) -> None:
        """Have ``function(*arguments, thread)`` called by each of so many threads.

        The caller is thread 0, and comes back when its own call does. A thread that comes late
        must find out by itself that nothing is left to do.

        Parameters
        ----------
        function : callable
            Compiled, so that it runs without Python's global lock.
        threads : int
            How many.
        *arguments : object
            The same for all.
        """
        for thread in range(1, threads):
            self._queue(thread).put((function, arguments, thread))
        function(*arguments, 0)

    def all(self, function: Callable[..., None], threads: int, *arguments: Any) -> None:
        """Do as `share`, and come back when every call has."""
        left = threading.Semaphore(0)

        def run(*arguments: Any) -> None:
            function(*arguments)
            left.release()

        self.share(run, threads, *arguments)
        for _ in range(threads):
            left.acquire()

    def _queue(self, thread: int) -> "queue.SimpleQueue[Any]":
        while len(self._queues) < thread:
            jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(target=_work, args=(jobs,), name="minires", daemon=True).start()
            self._queues.append(jobs)
        return self._queues[thread - 1]


def _work(jobs: "queue.SimpleQueue[Any]") -> None:
    """Do what comes, for as long as the process lives."""
    while True:
        function, arguments, thread = jobs.get()
        function(*arguments, thread)
        # Nothing is held on to while waiting: a network that is deleted lets go of its memory.
        del function, arguments


WORKERS = Workers()


def _forget() -> None:
    """Begin anew in a child that was forked: it has none of its parent's threads."""
    WORKERS._queues = []


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
