"""Measure minires in several processes and threads: the tables of docs/processes.md.

    python benchmarks/processes.py            # all of them, in two minutes
    python benchmarks/processes.py threads    # one, such as in a container that has a quota

The network is the one of the package, in INT8, on one image of 64x64.
"""

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import minires

SECONDS = 5.0  # of each measurement
WAYS = ["fork", "forkserver", "spawn"]
THREADS_HEAD = "| threads | half took at most, ms | 99% took at most, ms | cores in use |"
PROCESSES_HEAD = "| processes x threads | images/s | half took at most, ms | 99% took at most, ms |"
STARTS_HEAD = "| start | s until a child has answered | MB of its own |"
LOOP_HEAD = "| a batch of 32, called | ms that the event loop stands still |"
MODEL: Any = None  # what a forked child finds


def load() -> Any:
    """Load the network that all tables are about."""
    return minires.resnet50("CIFAR10", "int8")


def image() -> Any:  # (1, 3, H, W)
    """Make an image: speed does not depend on what it shows."""
    return np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)


def latencies(run: Callable[[], object], seconds: float = SECONDS) -> Any:  # milliseconds
    """Time one run after the other."""
    run()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        run()
        found.append((time.perf_counter() - started) * 1e3)
    return np.array(found)


def head(titles: str) -> None:
    """Begin a table in Markdown."""
    print(f"{titles}\n{'| --- ' * (titles.count('|') - 1)}|")


def quantiles(found: Any) -> str:
    """Write the median and the 99th percentile as two cells."""
    return " | ".join(f"{value:.1f}" for value in np.percentile(found, [50, 99]))


def threads() -> None:
    """Count threads up, in this process."""
    model, x = load(), image()
    head(THREADS_HEAD)
    for count in range(1, minires.get_num_threads() + 1):
        minires.set_num_threads(count)
        wall, cpu = time.perf_counter(), time.process_time()
        found = latencies(lambda: model(x))
        used = (time.process_time() - cpu) / (time.perf_counter() - wall)
        print(f"| {count} | {quantiles(found)} | {used:.2f} |")


def _work(count: int, ready: Any, answers: Any) -> None:
    minires.set_num_threads(count)
    model, x = load(), image()
    model(x)
    ready.wait()
    answers.put(latencies(lambda: model(x)))


def processes() -> None:
    """Have several processes compute side by side."""
    cores = minires.get_num_threads()
    head(PROCESSES_HEAD)
    context = multiprocessing.get_context("spawn")
    for number, count in [(1, cores), (cores, 1), (cores, cores), (2 * cores, 1)]:
        ready, answers = context.Barrier(number), context.Queue()
        started = [
            context.Process(target=_work, args=(count, ready, answers)) for _ in range(number)
        ]
        for process in started:
            process.start()
        found = np.concatenate([answers.get() for _ in started])
        for process in started:
            process.join()
        print(f"| {number} x {count} | {len(found) / SECONDS:.1f} | {quantiles(found)} |")


def _own_memory() -> float:
    """Return the MB of this process that no other one shares; NaN where nothing tells."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return float("nan")
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1e3


def _first_answer(_: object) -> float:
    model = MODEL or load()
    model(image())
    return _own_memory()


def starts() -> None:
    """Start a child that answers, in each way there is."""
    global MODEL
    MODEL = load()
    MODEL(image())
    head(STARTS_HEAD)
    for way in WAYS:
        if way in multiprocessing.get_all_start_methods():
            started = time.perf_counter()
            with multiprocessing.get_context(way).Pool(1) as pool:
                memory = pool.apply(_first_answer, (None,))
                print(f"| {way} | {time.perf_counter() - started:.2f} | {memory:.0f} |")


async def _longest_gap(work: Callable[[], Any]) -> float:
    """Measure for how long an event loop does nothing else, in ms, while a coroutine computes."""
    longest, last = 0.0, time.perf_counter()
    task = asyncio.create_task(work())
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest * 1e3


def loop() -> None:
    """Call a network from a coroutine: directly, and in a thread."""
    model, x = load(), np.repeat(image(), 32, axis=0)
    model(x)

    async def directly() -> None:
        model(x)

    async def in_a_thread() -> None:
        await asyncio.to_thread(model, x)

    head(LOOP_HEAD)
    for name, work in [("directly", directly), ("by asyncio.to_thread", in_a_thread)]:
        found = [asyncio.run(_longest_gap(work)) for _ in range(10)]
        print(f"| {name} | {np.median(found):.1f} |")


TABLES = {"threads": threads, "processes": processes, "starts": starts, "loop": loop}

if __name__ == "__main__":
    for table in sys.argv[1:] or TABLES:
        print(f"\n{table}: {TABLES[table].__doc__}\n")
        TABLES[table]()
