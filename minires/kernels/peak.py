"""What this machine can do at most, by microbenchmarks: in registers alone, and reading memory.

An instruction's peak is lanes x products x 2 x instructions a cycle x clock. All of these but the
first two are measured here, in the same run: the clock by a chain of instructions that take one
cycle each, the instructions a cycle by doing nothing else.
"""

import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from minires.kernels.cpu import caches
from minires.kernels.compile import compile_for
from minires.kernels.simd import CHAIN, ISA, ISA_NAMED, available_isas, choose_isa, spin
from minires.kernels.cpu import get_num_threads
from minires.kernels.threads import WORKERS

SECONDS = 0.01  # a measurement takes about as long: many times what starting a thread does
ROUNDS = 15
FITS = 0.12  # how far from a rate that a CPU can have a measured one may lie, as a share of it
ONCE = (1 / 2, 1, 2)  # how many a cycle: by the number and the width of the vector units
THIRDS, QUARTERS = (1 / 3, 2 / 3, 1), (1 / 4, 1 / 2, 2 / 3, 1)  # of what takes more than one


class Instruction(NamedTuple):
    """What multiplies and adds, as the reader of an article would call it."""

    name: str  # a key of `simd.MULTIPLY_ADD` or `simd.MULTIPLY_TILES`
    precision: str
    products: int  # a lane of 32 bits; a matrix instruction counts as 16 lanes
    mnemonics: tuple[str, ...]  # regular expressions
    sums: int = 12  # beside each other: enough for the latency, and they fit the registers
    rates: tuple[float, ...] = ONCE  # that CPUs have


INSTRUCTIONS = [
    Instruction("fma", "fp32", 1, ("vfmadd",)),
    Instruction("mul, add", "fp32", 1, ("mulps", "addps"), sums=8),
    Instruction("vdpbf16ps", "bf16", 2, ("vdpbf16ps",)),
    Instruction("vpmaddubsw", "int8", 4, ("vpmaddubsw", "vpmaddwd", "vpaddd"), rates=THIRDS),
    Instruction("vpmaddwd", "int8", 4, ("vpmaddwd",), sums=8, rates=QUARTERS),
    Instruction("mul, add of bytes", "int8", 4, ("pm",), sums=4, rates=()),
    Instruction("vpdpbusd", "int8", 4, ("vpdpbusd",)),
    Instruction("tdpbf16ps", "bf16", 2 * 16 * 16, ("tdpbf16ps",), sums=6, rates=(1 / 16,)),
    Instruction("tdpbusd", "int8", 4 * 16 * 16, ("tdpbusd",), sums=6, rates=(1 / 16,)),
]


class Peak(NamedTuple):
    """What one instruction, or sequence, reached."""

    instruction: Instruction
    lanes: int
    gops: float  # 10^9 multiplications and additions a second, on one core, in the best round
    all_gops: float  # on all threads
    threads: int
    spread: float  # how much longer the median round took: of one core, of all, of the clock's
    clock: float  # 10^9 cycles a second, measured in between
    assembly: str  # of the loop that was timed

    @property
    def rate(self) -> float:
        """Instructions, or sequences, a cycle: as measured."""
        return self.gops / (2 * self.instruction.products * self.lanes * self.clock)

    @property
    def likely_rate(self) -> float | None:
        """The rate that this CPU must have; None where none is near what was measured."""
        rates = self.instruction.rates
        best = min(rates, key=lambda rate: abs(math.log(rate / self.rate)), default=math.inf)
        return best if abs(self.rate / best - 1) <= FITS else None

    @property
    def arithmetic(self) -> float | None:
        """Lanes x products x 2 x rate x clock, in 10^9 a second, at the likely rate."""
        once = 2 * self.instruction.products * self.lanes * self.clock
        return once * self.likely_rate if self.likely_rate else None


class Bandwidth(NamedTuple):
    """How fast one level of the memory can be read."""

    level: str  # L1, L2, L3 or memory
    size: int  # bytes that were read over and over by each thread
    one: float  # 10^9 bytes a second, by one core
    all: float  # by all threads
    threads: int


def instructions(isa: ISA) -> list[Instruction]:
    """List what an instruction set multiplies with: also what it could, and what came before."""
    before = {"generic": (), "amx": ("vpmaddubsw", "vpdpbusd", "vdpbf16ps")}
    names = {*isa.instructions.values(), *before.get(isa.name, ("vpmaddubsw",))}
    return [i for i in INSTRUCTIONS if i.name in names]


@functools.cache
def spinner(isa: str, name: str, sums: int) -> Any:
    """Compile a loop that does nothing but multiply: its count, and which thread runs it."""
    lanes = ISA_NAMED[isa].lanes
    spec, size = f"{name}/{lanes}/{sums}", 4 * 4 * lanes

    def run(operands: int, count: int, thread: int) -> None:
        spin(spec, operands + size * thread, count)

    integer = types.int64
    signature = types.void(integer, integer, integer)
    # Not kept on the disk: what was timed is listed, too.
    return compile_for(ISA_NAMED[isa], run, signature, spec, keep=False)


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
    one, clock = spinner(isa.name, name, sums), spinner(isa.name, "chain", 1)
    operands = np.zeros(4 * lanes * threads, np.float32)
    at, count = operands.ctypes.data, 2**12
    while min(_time(one, at, count, 0) for _ in range(3)) < SECONDS:
        count *= 2
    WORKERS.all(one, threads, at, 1)
    chain = count * CHAIN // 4  # about as long
    work = 2 * instruction.products * lanes * sums * count / 1e9
    runs = [
        (
            _time(one, at, count, 0),
            _time(clock, at, chain, 0),
            _time(WORKERS.all, one, threads, at, count),
        )
        for _ in range(ROUNDS)
    ]
    # A peak is what was reached: whatever else runs can only make a round slower.
    alone, chained, together = best = np.min(runs, axis=0)
    spread = float((np.median(runs, axis=0) / best - 1).max())
    listing = next(iter(one.inspect_asm().values()))
    return Peak(
        instruction, lanes, float(work / alone), float(work * threads / together), threads, spread,
        float(chain * CHAIN / chained / 1e9), inner_loop(listing, instruction.mnemonics[0]),
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
    return max(found, key=lambda i: (i.products, i.name == "vpdpbusd", i.name == "vpmaddubsw"))


def peak(precision: str) -> Peak:
    """Measure the peak of a precision, once in a process.

    Parameters
    ----------
    precision : str
        As for `best_instruction`.
    """
    isa = choose_isa()
    return _peak_once(best_instruction(precision, isa), isa.name, get_num_threads())


def peak_of(kind: str) -> Peak:
    """Measure the peak of the instruction that the kernels use, once in a process.

    Parameters
    ----------
    kind : str
        A key of `ISA.instructions`. Without VNNI that of u8s8 is an exact way, and slower than
        `peak` has it.
    """
    isa = choose_isa()
    used = next(i for i in INSTRUCTIONS if i.name == isa.instructions[kind])
    return _peak_once(used, isa.name, get_num_threads())


@functools.cache
def _peak_once(instruction: Instruction, isa: str, threads: int) -> Peak:
    return measure_peak(instruction, choose_isa(), threads)


def inner_loop(assembly: str, mnemonic: str) -> str:
    """Cut out of an assembly listing the innermost loop that has most of one instruction.

    Parameters
    ----------
    assembly : str
        In AT&T syntax, as LLVM prints it.
    mnemonic : str
        A regular expression for the instruction's name.

    Returns
    -------
    str
        From the loop's label to the jump back to it; empty where there is none.
    """
    lines = [re.split("#|//", line)[0].expandtabs(8).rstrip() for line in assembly.splitlines()]
    labels: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        words = line.split()
        if line.endswith(":"):
            labels[line[:-1].strip()] = i
        elif words and words[-1] in labels:  # a jump back
            loops.append(lines[labels[words[-1]] : i + 1])
    # A loop around another has its instructions too: the shortest of those that have most wins.
    best = max(loops, key=lambda loop: (len(re.findall(mnemonic, "\n".join(loop))), -len(loop)),
               default=[])  # fmt: skip
    kept = (line for line in best if line.strip() and not line.startswith((" .", "        .")))
    return "\n".join(kept)


@functools.cache
def _reader() -> Callable[..., None]:
    def read(x: Any, times: int, sums: Any, thread: int) -> None:
        part = x[thread]
        for again in range(times):
            part[0] = again  # so that the sums are not all one
            sums[thread] += part.sum()

    integer = types.int64
    signature = types.void(integer[:, ::1], integer, integer[::1], integer)
    # By the widest vectors there are, whatever set was chosen: this is about the memory.
    return compile_for(available_isas()[0], read, signature)


def measure_bandwidths(threads: int | None = None) -> list[Bandwidth]:
    """Measure how fast each level of the memory is read: by halves of a core's share of a cache.

    Parameters
    ----------
    threads : int, optional
        How many beside each other; `get_num_threads` tells unless given.

    Returns
    -------
    list of Bandwidth
        From L1 to memory, of which four times as much is read as the last cache holds.
    """
    threads, read = threads or get_num_threads(), _reader()
    levels = [(cache.level, cache.size // cache.sharers // 2) for cache in caches()]
    last = max(cache.size for cache in caches())
    found = []
    for level, size in [*levels, ("memory", max(2**25, 4 * last))]:
        rates = []
        for count in (1, threads):
            each = size // count if level == "memory" else size
            # Written, not zeros: pages that nobody has written are all one page, in the cache.
            x = np.ones((count, each // 8), np.int64)
            sums, times = np.zeros(count, np.int64), 1
            while _time(WORKERS.all, read, count, x, times, sums) < SECONDS and times < 2**20:
                times *= 2
            seconds = min(_time(WORKERS.all, read, count, x, times, sums) for _ in range(ROUNDS))
            rates.append(x.nbytes * times / seconds / 1e9)
        found.append(Bandwidth(level, size, rates[0], rates[1], threads))
    return found


def bandwidths() -> list[Bandwidth]:
    """Measure the bandwidths, once in a process."""
    return _bandwidths_once(get_num_threads())


_bandwidths_once = functools.cache(measure_bandwidths)
