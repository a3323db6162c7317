"""The machine that a measurement was made on: its name, its roofs, and reasons to doubt them."""

import contextlib
import datetime
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from minires.cache import cache_dir
from minires.errors import MiniresError, check_choice
from minires.kernels.compile import source_hash
from minires.kernels.cpu import cpu_quota, get_num_threads, sysctl_text
from minires.kernels.ir import ARM, FAMILY, X86
from minires.kernels.isa import INSTRUCTIONS, ISAS, choose_isa
from minires.kernels.microkernel import Microkernel, assembly
from minires.kernels.operators import FORMATS
from minires.measure import session
from minires.measure.peak import (
    FEWEST,
    OPERANDS,
    PRECISIONS,
    ROUNDS,
    Bandwidth,
    Peak,
    bandwidths,
    doubts_about,
    instructions,
    measure_bandwidths,
    measure_peak,
    peak,
)
from minires.measure.text import format_columns
from minires.measure.trust import mark, verdict
from minires.writing import write_whole

CPUINFO = Path("/proc/cpuinfo")
ROOFS = "roofs.json"  # in minires's cache
# Instructions that `minires peak` shows even on a CPU of the family that lacks them, and the set
# that has each.
WANTED = {
    X86: {
        "fma": "fma",
        "vpmaddubsw": "avx2",
        "vdpbf16ps": "avx512bf16",
        "vpdpbusd": "avx512vnni or avxvnni",
        "tdpbusd": "amx",
    },
    ARM: {
        "bfdot": "neon-bf16",
        "sdot": "neon-dotprod",
        "usdot": "neon-i8mm",
        "usmmla": "neon-mmla",
    },
}
# Cores that Linux on ARM names by a number alone: "CPU part" in /proc/cpuinfo. The numbers are
# those of Linux's arch/arm64/include/asm/cputype.h.
CORES = {
    0xD03: "Cortex-A53",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1",
    0xD40: "Neoverse V1",
    0xD49: "Neoverse N2",
    0xD4F: "Neoverse V2",
}


class Roofs(NamedTuple):
    """The limits of a precision on this machine: the roofline's roofs.

    Examples
    --------
    >>> roofs = minires.measure.measure_roofs("int8")
    >>> roofs.level(2**20).level  # what a mebibyte is read from
    'L2'
    """

    peak: float  # 10^9 operations a second, on all threads
    memory: list[Bandwidth]  # from the fastest level to the slowest
    weights: int = 0  # bytes of the whole network's; the level that holds them feeds each layer
    doubts: tuple[str, ...] = ()  # reasons to doubt these figures; see `minires.measure.trust`

    def level(self, size: float) -> Bandwidth:
        """Find the first level of the memory that holds so many bytes."""
        # Half of each level was read to measure it, so it holds twice that size.
        holds = (b for b in self.memory if size <= 2 * b.size * b.threads)
        return next(holds, self.memory[-1])


def measure_roofs(precision: str) -> Roofs:
    """Measure the roofs of a precision, once on a machine: they are kept in minires's cache.

    Parameters
    ----------
    precision : str
        fp32, bf16, int8 or int8-simulated.

    Returns
    -------
    Roofs
        Those kept from an earlier measurement, if there are any. Roofs in doubt are not kept.

    Examples
    --------
    >>> roofs = minires.measure.measure_roofs("int8")  # some seconds, once
    >>> print(f"{roofs.peak:.0f} GOP/s, and the memory gives {roofs.memory[-1].all:.0f} GB/s")
    1920 GOP/s, and the memory gives 21 GB/s
    """
    check_choice("precision", precision, OPERANDS)
    known = known_roofs(precision)
    if known:
        return known
    found = peak(precision)
    memory = bandwidths()
    doubts = (*found.doubts, *doubts_about(memory))
    roofs = Roofs(found.all_gops, memory, doubts=doubts)
    if not (doubts or session.in_a_hurry()):
        _keep(precision, roofs)
    return roofs


def known_roofs(precision: str) -> Roofs | None:
    """Look for roofs that `measure_roofs` has kept; None if there are none for this machine."""
    try:
        kept = _kept_roofs()[_key(precision)]
        memory = [Bandwidth(*level) for level in kept["memory"]]
        rates = [kept["peak"], *(rate for level in memory for rate in (level.one, level.all))]
        return Roofs(kept["peak"], memory) if memory and min(rates) > 0 else None
    except (KeyError, TypeError):  # not there, or not written by minires
        return None


def _key(precision: str) -> str:
    """Name everything that roofs depend on: CPU, instruction set, threads, and this code."""
    sources = f"{source_hash()} {source_hash(Path(__file__).parent)}"
    return f"{precision}, {describe_machine()}, sources {sources}"


def _kept_roofs() -> dict[str, Any]:
    try:
        kept = json.loads((cache_dir() / ROOFS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged: measured again
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(precision: str, roofs: Roofs) -> None:
    """Write roofs down for the next process, which measures again if that fails."""
    kept = _kept_roofs() | {_key(precision): {"peak": roofs.peak, "memory": roofs.memory}}
    with contextlib.suppress(OSError, MiniresError):
        cache_dir().mkdir(parents=True, exist_ok=True)
        write_whole(cache_dir() / ROOFS, json.dumps(kept, indent=2).encode())


def describe_machine() -> str:
    """Describe the machine in a line: the CPU, the instruction set in use, the threads."""
    threads = get_num_threads()
    return f"{cpu_name()}, {choose_isa().name}, {threads} thread{'s' if threads > 1 else ''}"


def cpu_name() -> str:
    """Ask the system what CPU this is; platform knows only its family on most of them."""
    name = sysctl_text("machdep.cpu.brand_string") or platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux
        info = CPUINFO.read_text(encoding="utf-8", errors="replace")
        lines = (line.partition(":") for line in info.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        part = int(fields.get("CPU part", "0"), 16)
        name = fields.get("model name") or CORES.get(part) or name
    return name


def describe_measurement(machine: str = "") -> str:
    """Describe where and when something is measured: the machine, the date, the version.

    The machine is this one unless given.
    """
    try:
        version = metadata.version("minires")
    except metadata.PackageNotFoundError:  # a checkout that is not installed has none
        version = "not installed"
    today = datetime.datetime.now(datetime.UTC).date()
    pace = ", measured quickly" if session.in_a_hurry() else ""
    return f"{machine or describe_machine()}, {today}, minires {version}{pace}"


def warnings_about(peaks: list[Peak]) -> list[str]:
    """List the reasons to doubt this machine's figures, given the peaks measured just now."""
    doubts = [doubt for p in peaks for doubt in p.doubts]
    found = [verdict(doubts)] if doubts else []
    quota = cpu_quota()
    cores = os.cpu_count() or 1
    if quota is not None and quota < get_num_threads():
        found.append(
            f"a container's quota allows {quota:g} of {cores} cores' time: threads beyond that "
            "wait; OMP_NUM_THREADS sets how many there are"
        )
    return found


def measure_machine() -> tuple[list[Peak], list[Bandwidth]]:
    """Measure all multiplying instructions of this CPU, and how fast its memory is read."""
    isa = choose_isa()
    peaks = [measure_peak(instruction, isa) for instruction in instructions(isa)]
    return peaks, measure_bandwidths(get_num_threads())


def _elsewhere(name: str) -> str:
    """Show an instruction as it stands in a microkernel for a CPU that has it."""
    instruction = INSTRUCTIONS[name]
    operands = instruction.operands
    isa = next(i for i in ISAS.values() if i.instructions[operands].name.partition(",")[0] == name)
    epilogue = next(form.epilogue for form in FORMATS.values() if form.operands == operands)
    text = assembly(Microkernel.of(isa, operands, epilogue))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return next(line for line in lines if re.match(instruction.mnemonics[0], line))


def format_machine(peaks: list[Peak], memory: list[Bandwidth]) -> str:
    """Lay out the answers of `measure_machine`, the arithmetic, and the loops that were timed."""
    fp32 = next((p for p in peaks if PRECISIONS[p.instruction.operands] == "fp32"), None)
    of_all = f"{peaks[0].threads} threads"
    of_memory = doubts_about(memory)
    doubts = [*(doubt for p in peaks for doubt in p.doubts), *of_memory]
    title = f"{describe_measurement()}: registers only, no loads; the best of "
    title += f"{session.rounds(ROUNDS, FEWEST)} rounds"
    head = ["instruction", "precision", "GOP/s", "of fp32", "arithmetic", "reached", "spread"]
    arithmetic = ["arithmetic = lanes x products x 2 x rate x clock, of one core:"]
    arithmetic += [_arithmetic(p) for p in peaks]
    measured = {p.instruction.name for p in peaks}
    arithmetic += [
        f"  {name}: not on this CPU, or not allowed; with {wanted} it is {_elsewhere(name)}"
        for name, wanted in WANTED.get(FAMILY, {}).items()
        if name not in measured
    ]
    blocks = [
        f"{title}\n{verdict(doubts)}" if doubts else title,
        format_columns([*head, of_all, "of one"], [_peak_cells(p, fp32) for p in peaks]),
        "\n".join(arithmetic),
        format_columns(
            ["read from", "KiB", "GB/s", of_all, "of one"],
            [_memory_cells(b, of_memory) for b in memory],
        ),
        *(f"{p.instruction.name}, what was timed:\n{p.assembly}" for p in peaks),
    ]
    return "\n\n".join(blocks)


def _peak_cells(p: Peak, fp32: Peak | None) -> list[str]:
    return [
        p.instruction.name,
        PRECISIONS[p.instruction.operands],
        mark(f"{p.gops:.1f}", p.doubts),
        f"{p.gops / fp32.gops:.2f}x" if fp32 else "",
        f"{p.arithmetic:.1f}" if p.arithmetic else "?",
        f"{p.gops / p.arithmetic:.0%}" if p.arithmetic else "?",
        f"{p.spread:.1%}",
        mark(f"{p.all_gops:.1f}", p.doubts),
        f"{p.all_gops / p.gops:.2f}x",
    ]


def _memory_cells(b: Bandwidth, doubts: list[str]) -> list[str]:
    return [
        b.level,
        f"{b.size / 1024:.0f}",
        mark(f"{b.one:.1f}", doubts),
        mark(f"{b.all:.1f}", doubts),
        f"{b.all / b.one:.2f}x",
    ]


def _arithmetic(p: Peak) -> str:
    rate = f"{p.likely_rate:.3g}" if p.likely_rate else "no likely number (busy, throttled?)"
    return (
        f"  {p.instruction.name}: {p.lanes} lanes x {p.instruction.products} x 2 x {rate} "
        f"a cycle (measured: {p.rate:.3g}) x {p.clock:.2f} GHz"
    )
