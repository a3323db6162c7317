"""Hand minires mutated inputs, and count how each ended: python -m tests.fuzz.campaign --help.

A child process reads one after another, under a limit on its memory. An input is made of the seed,
its target's name and its number, so that whatever falls can be made again.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

from minires.errors import MiniresError
from tests.fuzz import images, pickles, weights

ALL = [*pickles.TARGETS, *weights.TARGETS, *images.TARGETS]
TARGETS = {target.name: target for target in ALL}
FINE = ("read", "refused")
ADDRESS_SPACE = 4 * 2**30  # bytes a child may ask for
MOST_MEMORY = 500 * 2**20  # bytes that reading may take; weights and an INT8 file take 150 MB
MOST_SECONDS = 30.0  # for one input
AT_ONCE = 500  # inputs that a child is told of before it answers
# Where inputs are written: on a disk each takes milliseconds.
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
LONGEST = 700  # characters of an error


def judge(name: str, seed: int, number: int, scratch: Path) -> tuple[str, str]:
    """Make one input and read it; tell how it ended, and what was said."""
    target = TARGETS[name]
    path = scratch / "input"
    path.write_bytes(target.make(Random(f"{seed} {name} {number}"), scratch))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
    except MiniresError as error:
        text = str(error)
        plain = text.isprintable() and len(text) <= LONGEST
        return ("refused" if plain else "refused at length"), ascii(text[:LONGEST])
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"raw {type(error).__name__}", ascii(
            f"{error} ({where.name}:{where.lineno})"[:LONGEST]
        )
    return "read", ""


def peak() -> int:
    """Tell how many bytes this process has had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def work(seed: int) -> None:
    """Read inputs for as long as their names and numbers come on stdin; answer on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as scratch:
        for target in TARGETS.values():  # what mutants are made of takes memory too
            target.make(Random(0), Path(scratch))
        before = peak()
        for line in sys.stdin:
            name, number = line.split()
            signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)  # whose signal ends the process
            ended, text = judge(name, seed, int(number), Path(scratch))
            signal.setitimer(signal.ITIMER_REAL, 0)
            if peak() - before > MOST_MEMORY:
                ended, text = "greedy", f"{(peak() - before) >> 20} MB"
                before = peak()
            print(ended, "" if ended in FINE else text, sep="\t", flush=True)


class Child:
    """A process that reads inputs."""

    def __init__(self, seed: int) -> None:
        command = [sys.executable, "-m", "tests.fuzz.campaign", "--work", "--seed", str(seed)]
        self.process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where libtiff tells of each image that is damaged
            env={**os.environ, "MINIRES_OFFLINE": "1"}, text=True,
        )  # fmt: skip

    def ask(self, inputs: Sequence[tuple[str, int]]) -> Iterator[tuple[str, str]]:
        """Have inputs read; the last answer is of that one of which the process dies."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.writelines(f"{name} {number}\n" for name, number in inputs)
        self.process.stdin.flush()
        for _ in inputs:
            answer = self.process.stdout.readline()
            if not answer:
                status = self.process.wait()
                yield ("hung" if status == -signal.SIGALRM else f"died with {status}"), ""
                return
            ended, _, text = answer.rstrip("\n").partition("\t")
            yield ended, text

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def run(
    names: list[str], seed: int, seconds: float, count: int
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Go round the targets until the time or the count is over.

    Returns
    -------
    dict
        How often inputs of each target ended in which way.
    list of str
        Each way that is not fine with its first input.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    fallen: list[str] = []
    child = Child(seed)
    until = time.monotonic() + seconds
    inputs = ((name, number) for number in range(count) for name in names)
    while time.monotonic() < until and (waiting := list(islice(inputs, AT_ONCE))):
        while waiting:
            answers = list(child.ask(waiting))
            for (name, number), (ended, text) in zip(waiting, answers, strict=False):
                if ended not in FINE and not counts[name][ended]:
                    fallen.append(f"{name} {number}: {ended} {text}")
                counts[name][ended] += 1
            del waiting[: len(answers)]
            if child.process.poll() is not None:
                child.close()
                child = Child(seed)
    child.close()
    return counts, fallen


def main() -> int:
    """Run a campaign, or the child of one; the exit status is 1 where anything fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--one", type=int, metavar="NUMBER", help="show how this one ends")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.seed)
        return 0
    if arguments.one is not None:
        for name in arguments.targets:
            with tempfile.TemporaryDirectory() as scratch:
                print(name, *judge(name, arguments.seed, arguments.one, Path(scratch)))
        return 0
    counts, fallen = run(arguments.targets, arguments.seed, arguments.seconds, 10**9)
    for name, ends in counts.items():
        print(f"{name}: {ends.total()} inputs,", ", ".join(f"{n} {e}" for e, n in ends.items()))
    print(*fallen, sep="\n")
    return int(bool(fallen))


if __name__ == "__main__":
    raise SystemExit(main())
