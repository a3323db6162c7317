"""What this machine can do at most, by microbenchmarks: in registers alone, and reading memory.

An instruction's peak is lanes x products x 2 x instructions a cycle x clock. All of these but the
first two are measured here, in the same run: the clock by a chain of instructions that take one
cycle each, the instructions a cycle by doing nothing else.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange, types

from minires.kernels.simd import CHAIN, ISA, choose_isa, spin
from minires.kernels.threads import get_num_threads

SECONDS = 0.01  # a measurement takes about as long: many times what starting a thread does
ROUNDS = 9
# How many of an instruction, or of a sequence, can be issued in a cycle on the CPUs there are.
RATES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 4 / 3, 3 / 2, 2, 3, 4)


class Instruction(NamedTuple):
    """What multiplies and adds, as the reader of an article would call it."""

    name: str  # a key of `simd.MULTIPLY_ADD`
    precision: str
    products: int  # a lane of 32 bits
    mnemonics: tuple[str, ...]
    sums: int = 12  # beside each other: enough for the latency, and they fit the registers


INSTRUCTIONS = [
    Instruction("fma", "fp32", 1, ("vfmadd",)),
    Instruction("mul, add", "fp32", 1, ("mulps", "addps"), sums=8),
    Instruction("vdpbf16ps", "bf16", 2, ("vdpbf16ps",)),
    Instruction("vpmaddubsw", "int8", 4, ("vpmaddubsw", "vpmaddwd", "vpaddd")),
    Instruction("vpmaddwd", "int8", 4, ("vpmaddwd",), sums=8),
    Instruction("mul, add of bytes", "int8", 4, ("pmul",), sums=4),
    Instruction("vpdpbusd", "int8", 4, ("vpdpbusd",)),
]


class Peak(NamedTuple):
    """What one instruction, or sequence, reached."""

    instruction: Instruction
    lanes: int
    gops: float  # 10^9 multiplications and additions a second, on one core: the median
    all_gops: float  # on all threads
    threads: int
    spread: float  # third quartile less first, as a share of the median
    clock: float  # 10^9 cycles a second, measured in between
    assembly: str  # of the loop that was timed

    @property
    def rate(self) -> float:
        """Instructions, or sequences, a cycle: as measured."""
        return self.gops / (2 * self.instruction.products * self.lanes * self.clock)

    @property
    def arithmetic(self) -> float:
        """Lanes x products x 2 x rate x clock, in 10^9 a second, at the likely rate."""
        return 2 * self.instruction.products * self.lanes * self.likely_rate * self.clock

    @property
    def likely_rate(self) -> float:
        """The nearest rate that a CPU can have."""
        return min(RATES, key=lambda rate: abs(math.log(rate / self.rate)))


class Bandwidth(NamedTuple):
    """How fast one level of the memory can be read."""

    level: str  # L1, L2, L3 or memory
    size: int  # bytes that were read over and over by each thread
    one: float  # 10^9 bytes a second, by one core
    all: float  # by all threads
    threads: int


def instructions(isa: ISA) -> list[Instruction]:
    """List what an instruction set multiplies with: also what it could, and what came before."""
    names = {isa.instructions["f32"], isa.instructions["u8s8"], isa.instructions["bf16"]}
    if isa.name != "generic":
        names.add("vpmaddubsw")
    return [i for i in INSTRUCTIONS if i.name in names]


@functools.cache
def _spinner(name: str, lanes: int, sums: int) -> Callable[..., None]:
    spec = f"{name}/{lanes}/{sums}"

    @njit(types.void(types.int64, types.int64), nogil=True)
    def run(operands: int, count: int) -> None:
        spin(spec, operands, count)

    return run


@functools.cache
def _spinners(name: str, lanes: int, sums: int) -> Callable[..., None]:
    spec, size = f"{name}/{lanes}/{sums}", 4 * 4 * lanes

    @njit(types.void(types.int64, types.int64, types.int64), nogil=True, parallel=True)
    def run(operands: int, count: int, threads: int) -> None:
        for thread in prange(threads):
            spin(spec, operands + size * thread, count)

    return run


def _time(run: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def measure_peak(instruction: Instruction, isa: ISA, threads: int | None = None) -> Peak:
    """Time an instruction in registers: no loads, no stores.

    Parameters
    ----------
    instruction : Instruction
        One of `instructions`.
    isa : ISA
        One that this machine has.
    threads : int, optional
        How many beside each other; `get_num_threads` tells unless given.

    Returns
    -------
    Peak
        One core and all threads take turns, with the clock in between.
    """
    threads, lanes = threads or get_num_threads(), isa.lanes
    name, sums = instruction.name, instruction.sums
    one, clock = _spinner(name, lanes, sums), _spinner("chain", lanes, 1)
    every = _spinners(name, lanes, sums)
    operands = np.zeros(4 * lanes * threads, np.float32)
    at, count = operands.ctypes.data, 2**12
    while _time(one, at, count) < SECONDS:
        count *= 2
    every(at, 1, threads)
    chain = count * CHAIN // 4  # about as long
    work = 2 * instruction.products * lanes * sums * count / 1e9
    runs = [
        (_time(one, at, count), _time(clock, at, chain), _time(every, at, count, threads))
        for _ in range(ROUNDS)
    ]
    alone, chained, together = np.array(runs).T
    low, seconds, high = np.percentile(alone, [25, 50, 75])
    return Peak(
        instruction, lanes, work / seconds, work * threads / float(np.median(together)), threads,
        (high - low) / seconds, chain * CHAIN / float(np.median(chained)) / 1e9,
        inner_loop(next(iter(one.inspect_asm().values())), instruction.mnemonics[0]),  # type: ignore[attr-defined]
    )  # fmt: skip


def best_instruction(precision: str, isa: ISA | None = None) -> Instruction:
    """Choose what bounds a precision from above on this machine.

    Parameters
    ----------
    precision : str
        fp32, bf16, int8 or int8-simulated, which computes in float32.
    isa : ISA, optional
        `choose_isa` chooses unless given.

    Returns
    -------
    Instruction
        Of INT8 without VNNI it is vpmaddubsw, which saturates: the exact way has to do more. Of
        bfloat16 without an instruction of its own it is float32's.
    """
    isa = isa or choose_isa()
    wanted = "fp32" if precision == "int8-simulated" else precision
    found = [i for i in instructions(isa) if i.precision == wanted]
    found = found or [i for i in instructions(isa) if i.precision == "fp32"]
    return max(found, key=lambda i: (i.name == "vpdpbusd", i.name == "vpmaddubsw"))


@functools.cache
def peak(precision: str) -> Peak:
    """Measure the peak of a precision, once in a process.

    Parameters
    ----------
    precision : str
        As for `best_instruction`.
    """
    return measure_peak(best_instruction(precision), choose_isa())


def inner_loop(assembly: str, mnemonic: str) -> str:
    """Cut out of an assembly listing the innermost loop that has most of one instruction.

    Parameters
    ----------
    assembly : str
        In AT&T syntax, as LLVM prints it.
    mnemonic : str
        How the instruction's name begins.

    Returns
    -------
    str
        From the loop's label to the jump back to it; empty where there is none.
    """
    lines = [line.partition("#")[0].expandtabs(8).rstrip() for line in assembly.splitlines()]
    labels: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        words = line.split()
        if line.endswith(":"):
            labels[line[:-1].strip()] = i
        elif words and words[0].startswith("j") and words[-1] in labels:
            loops.append(lines[labels[words[-1]] : i + 1])
    # A loop around another has its instructions too: the shortest of those that have most wins.
    best = max(loops, key=lambda loop: (sum(mnemonic in line for line in loop), -len(loop)),
               default=[])  # fmt: skip
    kept = (line for line in best if line.strip() and not line.startswith((" .", "        .")))
    return "\n".join(kept)


@njit(types.int64(types.int64[:, ::1], types.int64), nogil=True, parallel=True)
def _read(x: Any, times: int) -> int:
    """Sum each row, over and over: one thread a row."""
    total = 0
    for row in prange(len(x)):
        part = x[row]
        for again in range(times):
            part[0] = again  # so that the sums are not all one
            total += part.sum()
    return total


def cache_sizes() -> dict[str, int]:
    """Tell how many bytes a core's caches hold, its share of a common one; Linux alone tells."""
    sizes = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size, shared = (
                (cache / name).read_text().strip()
                for name in ("level", "type", "size", "shared_cpu_map")
            )
        except OSError:
            continue
        if kind != "Instruction":
            sharers = max(1, bin(int(shared.replace(",", ""), 16)).count("1"))
            sizes[f"L{level}"] = int(size.rstrip("K")) * 1024 // sharers
    return sizes or {"L1": 2**15, "L2": 2**18}


def measure_bandwidths(threads: int | None = None) -> list[Bandwidth]:
    """Measure how fast each level of the memory is read: half of each cache, eight times the last.

    Parameters
    ----------
    threads : int, optional
        How many beside each other; `get_num_threads` tells unless given.

    Returns
    -------
    list of Bandwidth
        From L1 to memory.
    """
    threads = threads or get_num_threads()
    found, sizes = [], {level: size // 2 for level, size in cache_sizes().items()}
    sizes["memory"] = max(2**25, min(2**28, 8 * max(sizes.values())))
    for level, size in sizes.items():
        rates = []
        for count in (1, threads):
            x = np.zeros((count, size // 8), np.int64)
            times = 1
            while _time(_read, x, times) < SECONDS and times < 2**20:
                times *= 2
            seconds = float(np.median([_time(_read, x, times) for _ in range(ROUNDS)]))
            rates.append(x.nbytes * times / seconds / 1e9)
        found.append(Bandwidth(level, size, rates[0], rates[1], threads))
    return found


@functools.cache
def bandwidths() -> list[Bandwidth]:
    """Measure the bandwidths, once in a process."""
    return measure_bandwidths()
