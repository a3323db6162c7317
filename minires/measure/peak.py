"""The limits of this machine, by microbenchmarks: multiplying in registers, and reading memory.

An instruction's peak is lanes x products x 2 x instructions a cycle x clock. Clock and instructions
a cycle are measured here, in the same run: the clock by a chain of instructions that take one cycle
each, the instructions a cycle by a loop that has no others.
"""

import functools
import itertools
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from minires.kernels.compile import compile_for
from minires.kernels.cpu import caches, get_num_threads
from minires.kernels.isa import ISA, ISAS, Instruction, available_isas, choose_isa
from minires.kernels.pack import aligned
from minires.kernels.threads import WORKERS
from minires.measure import session
from minires.measure.spin import CHAIN, CLOCK, spin
from minires.measure.trust import (
    HIGHEST,
    Cores,
    doubt_others,
    doubt_pair,
    doubt_spread,
    measure_until_steady,
)

# A measurement of one core is shorter than the slice of time that a scheduler gives a thread, so
# even on a busy machine some pass undisturbed. One of all threads is longer, because it can take
# milliseconds until each has started on a core of its own.
SECONDS = 0.002  # of one core
LONGER = 4  # times as long for all threads
LONGEST = 1.0  # seconds for all rounds on a busy machine, unless 6 rounds take longer
ROUNDS, FEWEST = 20, 6
FITS = 0.12  # how far a measured rate may lie from one that CPUs have, as a share of that
PRECISIONS = {"f32": "fp32", "bf16": "bf16", "u8s8": "int8"}  # by the operands
OPERANDS = {"fp32": "f32", "int8-simulated": "f32", "bf16": "bf16", "int8": "u8s8"}


class Peak(NamedTuple):
    """The peak of one instruction, or of a sequence of them."""

    instruction: Instruction
    lanes: int
    gops: float  # 10^9 multiplications and additions a second, on one core, in the best round
    all_gops: float  # on all threads
    threads: int
    spread: float  # how far apart the best of the even rounds and the best of the odd ones lie
    clock: float  # 10^9 cycles a second, measured in the same rounds
    assembly: str  # of the loop that was timed
    others: float = 0.0  # the share of the cores' time that all threads together did not get

    @property
    def rate(self) -> float:
        """The measured instructions, or sequences, a cycle."""
        return self.gops / (2 * self.instruction.products * self.lanes * self.clock)

    @property
    def likely_rate(self) -> float | None:
        """The possible rate next to the measured one; None if none is near."""
        rates = self.instruction.rates
        best = min(rates, key=lambda rate: abs(math.log(rate / self.rate)), default=math.inf)
        return best if abs(self.rate / best - 1) <= FITS else None

    @property
    def arithmetic(self) -> float | None:
        """Lanes x products x 2 x rate x clock, in 10^9 a second, at the likely rate."""
        once = 2 * self.instruction.products * self.lanes * self.clock
        return once * self.likely_rate if self.likely_rate else None

    @property
    def doubts(self) -> list[str]:
        """The reasons to doubt this measurement; see `minires.measure.trust`."""
        name = self.instruction.name
        found = [*doubt_spread(name, self.spread), *doubt_others(name, self.others)]
        if self.all_gops > HIGHEST * self.threads * self.gops:
            found.append(f"{name} is faster on {self.threads} threads than so many cores can be")
        if self.all_gops * HIGHEST < self.gops:
            found.append(f"{name} is slower on {self.threads} threads than on one")
        return found


class Bandwidth(NamedTuple):
    """How fast one level of the memory can be read."""

    level: str  # L1, L2, L3 or memory
    size: int  # bytes that were read over and over by each thread
    one: float  # 10^9 bytes a second, by one core
    all: float  # by all threads
    threads: int
    spread: float = 0.0  # how far apart the best of the even rounds and of the odd ones lie
    others: float = 0.0  # the share of the cores' time that all threads together did not get


def doubts_about(memory: list[Bandwidth]) -> list[str]:
    """List the reasons to doubt bandwidths, which come from the fastest level to the slowest."""
    found = []
    for b in memory:
        found += doubt_spread(f"reading {b.level}", b.spread)
        found += doubt_others(f"reading {b.level}", b.others)
        if b.all * HIGHEST < b.one:
            found.append(f"{b.level} is read more slowly by {b.threads} threads than by one")
    for nearer, farther in itertools.pairwise(memory):
        if farther.one > HIGHEST * nearer.one or farther.all > HIGHEST * nearer.all:
            found.append(f"{farther.level} is read faster than {nearer.level}, which is nearer")
    return found


def instructions(isa: ISA) -> list[Instruction]:
    """List a set's multiplying instructions, including those that the kernels do not use."""
    found = [*isa.others, *isa.instructions.values()]
    order = ["f32", "bf16", "u8s8"]
    return sorted((i for i in found if not i.composed), key=lambda i: order.index(i.operands))


@functools.cache
def spinner(isa: str, name: str) -> Any:
    """Compile a loop that only multiplies: a function of operands, a count, and a thread."""
    lanes = ISAS[isa].lanes
    spec = f"{name}/{lanes}"
    size = 4 * 4 * lanes

    def run(operands: int, count: int, thread: int) -> None:
        spin(spec, operands + size * thread, count)

    integer = types.int64
    signature = types.void(integer, integer, integer)
    # Not kept on the disk, because the assembly of code from there cannot be shown.
    return compile_for(ISAS[isa], run, signature, spec, keep=False)


def _time(run: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def _shortest(rounds: int, run: Callable[..., Any], *arguments: Any) -> float:
    return min(_time(run, *arguments) for _ in range(rounds))


def _rounds(one_round: Callable[[], tuple[float, ...]]) -> list[Any]:
    started = time.perf_counter()
    found: list[Any] = []
    while len(found) < 6 or (
        len(found) < session.rounds(ROUNDS, 6) and time.perf_counter() < started + LONGEST
    ):
        found.append(one_round())
    return found


def _best(runs: list[Any]) -> tuple[Any, float]:
    """Find the shortest times, and how far apart those of the even and of the odd rounds lie.

    Other programs can only make a round slower. So if both halves of the rounds have nearly the
    same best time, this is what the machine can do.
    """
    even = np.min(runs[::2], axis=0)
    odd = np.min(runs[1::2], axis=0)
    apart = np.maximum(even, odd) / np.minimum(even, odd) - 1
    return np.minimum(even, odd), float(np.max(apart))


def measure_peak(instruction: Instruction, isa: ISA, threads: int | None = None) -> Peak:
    """Time an instruction in registers: no loads, no stores.

    One core, the clock and all threads take turns. There are `get_num_threads()` threads unless you
    say how many. Doubts that remain after a few tries are in the answer's `doubts`.
    """
    threads = threads or get_num_threads()
    lanes, sums = isa.lanes, instruction.sums
    one = spinner(isa.name, instruction.name)
    clock = spinner(isa.name, CLOCK)
    operands = np.zeros(4 * lanes * threads, np.float32)
    at = operands.ctypes.data
    count = 2**12
    while _shortest(3, one, at, count, 0) < SECONDS:
        count *= 2
    # The clock runs about as long as the instruction, if that is done twice a cycle.
    chain = max(1, count * sums // (2 * CHAIN))
    work = 2 * instruction.products * lanes * sums * count / 1e9
    cycles = chain * CHAIN / 1e9
    listing = next(iter(one.inspect_asm().values()))
    loop = inner_loop(listing, instruction.mnemonics[0])
    runs: list[Any] = []

    def measure() -> Peak:
        cores = Cores(threads)

        def one_round() -> tuple[float, ...]:
            alone = _time(one, at, count, 0)
            chained = _time(clock, at, chain, 0)
            with cores:
                together = _time(WORKERS.all, one, threads, at, LONGER * count)
            return alone, chained, together / LONGER

        # Threads that have just woken may share a core for a while, so a long run comes first.
        WORKERS.all(one, threads, at, 16 * count)
        runs.extend(_rounds(one_round))
        seconds, spread = _best(runs)
        gops, ghz, every = (np.array([work, cycles, work * threads]) / seconds).tolist()
        return Peak(instruction, lanes, gops, every, threads, spread, ghz, loop, cores.others)

    found, _ = measure_until_steady(measure, lambda peak: peak.doubts)
    together = f", {found.all_gops:.1f} on {threads}" if threads > 1 else ""
    session.say(f"the peak of {instruction.name}: {found.gops:.1f} GOP/s on one core{together}")
    return found


def doubt_gain(faster: Any, slower: Any) -> list[str]:
    """Doubt two peaks if one core and all of them disagree on how much faster one of them is."""
    gain = f"{faster.instruction.name}'s gain over {slower.instruction.name}"
    ratios = faster.gops / slower.gops, faster.all_gops / slower.all_gops
    return doubt_pair(f"{gain}, by one core and by {slower.threads},", *ratios)


def best_instruction(precision: str, isa: ISA | None = None) -> Instruction:
    """Choose the instruction that bounds a precision from above on this machine.

    The instruction set is `choose_isa()` unless given.
    """
    # INT8 without VNNI gets vpmaddubsw as its bound. It saturates; an exact way takes longer.
    isa = isa or choose_isa()
    used = isa.instructions.values()
    found = instructions(isa)
    best = [i for i in found if i.operands == OPERANDS[precision]]
    # On a CPU without an instruction for bfloat16, this is multiplied as float32.
    best = best or [i for i in found if i.operands == "f32"]
    return max(best, key=lambda i: (i.products, max(i.rates, default=0), i in used))


def peak(precision: str) -> Peak:
    """Measure the peak of a precision's `best_instruction`, once in a process."""
    isa = choose_isa()
    return _peak_once(best_instruction(precision, isa), isa, get_num_threads())


def peak_of(operands: str) -> Peak:
    """Measure the peak of the instruction that the kernels use, once in a process.

    For u8s8 without VNNI, this instruction is exact, and slower than the one of `peak`.
    """
    isa = choose_isa()
    return _peak_once(isa.instructions[operands], isa, get_num_threads())


_peak_once = functools.cache(measure_peak)


def inner_loop(assembly: str, mnemonic: str) -> str:
    """Cut the innermost loop with the most of one instruction out of a listing.

    `mnemonic` is a regular expression for the instruction's name. The loop goes from its label to
    the jump back. The answer is empty if no loop has that instruction.
    """
    # A comment begins with # on x86, where ARM has numbers: #16. There it is // or, on macOS, ;.
    lines = [
        re.split(r"#(?![\d:-])|//|;", line)[0].expandtabs(8).rstrip()
        for line in assembly.splitlines()
    ]
    labels: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        words = line.split()
        if line.endswith(":"):
            labels[line[:-1].strip()] = i
        elif words and words[-1] in labels and words[0] != "bl":  # a jump back, and no call
            loops.append(range(labels[words[-1]], i + 1))
    # A loop around another one has its instructions, too, and is not meant.
    innermost = [
        lines[loop.start : loop.stop]
        for loop in loops
        if not any(
            other != loop and loop.start <= other.start < other.stop <= loop.stop for other in loops
        )
    ]

    def most_then_shortest(loop: list[str]) -> tuple[int, int]:
        return len(re.findall(mnemonic, "\n".join(loop))), -len(loop)

    best = max(innermost, key=most_then_shortest, default=[])
    kept = [line for line in best if line.strip() and not line.startswith((" .", "        ."))]
    text = "\n".join(kept)
    return text if re.search(mnemonic, text) else ""


@functools.cache
def _reader() -> Callable[..., None]:
    def read(x: Any, times: int, sums: Any, thread: int) -> None:
        part = x[thread]
        total = 0  # here, since the threads' places in `sums` share a cache line
        for again in range(times):
            # So that LLVM cannot compute one sum and use it each time. In the middle, because the
            # CPU fetches ahead, beyond the end of the part of the thread before.
            part[len(part) // 2] = again
            total += part.sum()
        sums[thread] = total

    integer = types.int64
    signature = types.void(integer[:, ::1], integer, integer[::1], integer)
    # With all that this CPU has, whichever set was chosen: this measures the memory.
    return compile_for(available_isas()[0], read, signature, keep=False)


def bandwidths() -> list[Bandwidth]:
    """Measure how fast all threads that the kernels use read the memory, once in a process."""
    return _bandwidths_once(get_num_threads())


def measure_bandwidths(threads: int) -> list[Bandwidth]:
    """Measure how fast each level of the memory is read, from L1 to memory.

    `doubts_about` lists the doubts that remain after a few tries.
    """
    # Half of a core's share of a cache surely fits; four times the last cache surely does not.
    levels = [(cache.level, cache.size // cache.sharers // 2) for cache in caches()]
    last = max(cache.size for cache in caches())
    levels.append(("memory", max(2**25, 4 * last)))
    runs: dict[str, list[Any]] = {}

    def measure() -> list[Bandwidth]:
        return [_read_level(level, size, threads, runs) for level, size in levels]

    found, _ = measure_until_steady(measure, doubts_about)
    return found


_bandwidths_once = functools.cache(measure_bandwidths)


def _read_level(level: str, size: int, threads: int, runs: dict[str, list[Any]]) -> Bandwidth:
    """Read one level by one core and by all; `runs` keeps the times of all tries."""
    read = _reader()
    sums = np.zeros(threads, np.int64)
    each = size // threads if level == "memory" else size
    # Ones, because pages of zeros that nobody wrote to are all one page, which stays in the cache.
    x = aligned((threads, each // 8), np.int64, 1)
    alone = aligned((1, size // 8), np.int64, 1)
    times = 1
    while _shortest(3, read, alone, times, sums, 0) < SECONDS:
        times *= 2

    cores = Cores(threads)

    def one_round() -> tuple[float, ...]:
        alone_seconds = _time(read, alone, times, sums, 0)
        with cores:
            all_seconds = _time(WORKERS.all, read, threads, x, LONGER * times, sums)
        return alone_seconds / (alone.nbytes * times), all_seconds / (x.nbytes * LONGER * times)

    seconds = runs.setdefault(level, [])  # for each byte
    seconds += _rounds(one_round)
    best, spread = _best(seconds)
    one, every = (1 / best / 1e9).tolist()
    session.say(f"reading {level}: {one:.1f} GB/s by one core, {every:.1f} by {threads}")
    return Bandwidth(level, size, one, every, threads, spread, cores.others)
