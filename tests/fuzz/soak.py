"""Run networks in many threads for long, and compare each answer's bits with the first.

``python -m tests.fuzz.soak --minutes 10`` exits with 1 where a bit or the memory has not held.
"""

import argparse
import os
import resource
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

import minires
from minires.layers import Array
from tests.fuzz.campaign import peak

THREADS = 8
MOST_GROWTH = 64 * 2**20  # bytes: what an allocator keeps of one answer is less by far
SIZES = {"fp32": [(1, 64, 64), (2, 96, 128)], "int8": [(1, 224, 224), (3, 64, 96)]}  # N, H, W


class Job(NamedTuple):
    """What is done again and again."""

    run: Callable[[Array], Array]
    x: Array


class Result(NamedTuple):
    """What came of it."""

    counts: dict[str, int]  # answers, by the name of the job
    failures: list[str]
    before: int  # bytes in memory, when each thread had done each job once
    after: int


def resident() -> int:
    """Tell how many bytes of this process are in memory; its peak, where that is all one gets."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return peak()


def soak(jobs: Mapping[str, Job], threads: int, seconds: float) -> Result:
    """Do jobs at the same time, each thread in an order of its own.

    A thread ends at its first failure.
    """
    first = {name: job.run(job.x).tobytes() for name, job in jobs.items()}
    counts = dict.fromkeys(jobs, 0)
    failures: list[str] = []
    warm = threading.Barrier(threads + 1)
    lock = threading.Lock()
    begun = time.monotonic()

    def do(name: str) -> bool:
        try:
            fine = jobs[name].run(jobs[name].x).tobytes() == first[name]
            told = "" if fine else "other bits than the first answer's"
        except Exception as error:
            told = repr(error)
        with lock:
            counts[name] += 1
            if told:
                failures.append(f"{name}, after {time.monotonic() - begun:.0f} s: {told}")
        return not told

    def work(number: int) -> None:
        fine = all(map(do, jobs))
        warm.wait()
        random = Random(number)
        until = time.monotonic() + seconds
        while fine and time.monotonic() < until:
            fine = do(random.choice(list(jobs)))

    workers = [threading.Thread(target=work, args=[n], daemon=True) for n in range(threads)]
    for worker in workers:
        worker.start()
    warm.wait()
    before = resident()
    for worker in workers:
        worker.join()
    after = resident()
    if after - before > MOST_GROWTH:
        failures.append(f"memory grew by {(after - before) >> 20} MB")
    return Result(counts, failures, before, after)


def bundled_jobs() -> dict[str, Job]:
    """Take the network of the package, in float32 and INT8, with images of several sizes."""
    jobs = {}
    for precision, sizes in SIZES.items():
        model = minires.resnet50("CIFAR10", precision)
        for n, height, width in sizes:
            x: Any = np.random.RandomState(height).uniform(-2, 2, (n, 3, height, width))
            jobs[f"{precision} {n} x {height} x {width}"] = Job(model, x.astype(np.float32))
    return jobs


def main() -> int:
    """Soak for some minutes, and tell what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=THREADS)
    arguments = parser.parse_args()
    os.environ["MINIRES_OFFLINE"] = "1"
    result = soak(bundled_jobs(), arguments.threads, 60 * arguments.minutes)
    for name, count in result.counts.items():
        print(f"{name}: {count} answers")
    print(f"memory: {result.before / 1e6:.0f} MB before, {result.after / 1e6:.0f} MB after")
    print(*(result.failures or ["all held"]), sep="\n")
    return int(bool(result.failures))


if __name__ == "__main__":
    raise SystemExit(main())
