"""Tell of a rung in chapters 10 and 11: its lines, its traffic with the memory, its gain."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from access import draw
from recorded import WIDTH, banner, runs, worked_out

import minires
from minires.kernels.isa import ISA, ISAS
from minires.kernels.isa.generic import GENERIC
from minires.kernels.isa.instruction import PER_GROUP
from minires.ladder import tiled
from minires.ladder.climb import LAYER, Result, doubts_about, problem, rungs
from minires.layers import OPERATORS
from minires.measure.machine import describe_measurement
from minires.measure.peak import OPERANDS
from minires.measure.plots import COLORS, GREY
from minires.measure.trust import HIGHEST, mark, percent

M, N, K = 28 * 28, LAYER.out_c, LAYER.kernel**2 * LAYER.in_c  # of the matrix product
PRODUCTS = M * N * K
PIXELS = (28 + 2) ** 2 * LAYER.in_c  # values of the padded input
SECOND_CACHE = 512 * 1024  # bytes: Zen 3's
AVX2 = ISAS["avx2"]

# The lines that are new in a rung: a file of minires/, a text in the first line, and one in the
# last. They are read when the page is built, so they are the code that runs.
LINES = {
    "loops": [("ladder/loops.py", "for m in range(", "c[m, n] +=")],
    "ordered": [("ladder/ordered.py", "for m in range(", "c[m, n] +=")],
    "tiled": [("ladder/tiled.py", "for n in range(", "c3[n] =")],
    "panels": [("ladder/panels.py", "def step(", "return [after(")],
    "vector": [("kernels/isa/generic.py", "def fma(", "return call(")],
    "fused": [("kernels/epilogue.py", "def _activate(", "return builder.select(")],
    "blocks": [
        ("ladder/blocks.py", "block = max(", "block = max("),
        ("ladder/blocks.py", "for top in range(", "for panel in range("),
        ("ladder/blocks.py", "for row in range(", "for row in range("),
    ],
    "threads": [
        ("ladder/threads.py", "begin = tiles", "for top in range("),
        ("ladder/threads.py", "WORKERS.all(", "WORKERS.all("),
    ],
    "implicit": [
        ("ladder/implicit.py", "pixels = np.indices(", "first = strides"),
        ("ladder/implicit.py", "padded[:, pad", "padded[:, pad"),
    ],
    "engine": [("kernels/microkernel.py", "for address in (later", "prefetch(")],
    "mul, add of bytes": [("kernels/isa/generic.py", "for byte in range(4)", "acc = builder.add(")],
    "vpmaddubsw": [
        ("kernels/isa/x86.py", "pairs = call(", "quads = call("),
        ("kernels/isa/x86.py", "low = builder.and_(", "return builder.add(vpmaddubsw"),
    ],
    "vpmaddwd": [("kernels/isa/x86.py", "even = builder.and_(", "acc = builder.add(acc")],
    "vpdpbusd": [("kernels/isa/x86.py", "def vpdpbusd(", "return call(")],
    "requantize": [("kernels/epilogue.py", "def _requantize(", "return builder.trunc(")],
}


def new_lines(name: str) -> str:
    """Read the lines that are new in a rung."""
    pieces = []
    for file, first, last in LINES[name]:
        path = Path(minires.__file__).parent / file
        lines = path.read_text(encoding="utf-8").splitlines()
        start = next(i for i, line in enumerate(lines) if first in line)
        end = next(i for i in range(start, len(lines)) if last in lines[i])
        pieces.append(textwrap.dedent("\n".join(lines[start : end + 1])))
    return f"# minires/{LINES[name][0][0]}\n" + "\n...\n".join(pieces)


def show(rung: str) -> None:
    """Print a rung's lines, and draw what an inner step of it touches."""
    print(new_lines(rung))
    draw(rung)


class Step(NamedTuple):
    """How many values an inner step loads and stores, and how many products it makes of them."""

    a: int
    b: int
    sums_in: int
    sums_out: int
    products: int


def step_of(rung: str, precision: str, isa: ISA = AVX2) -> Step:
    """Count an inner step's values; from `panels` on it is a tile, for all of K."""
    operands = OPERANDS[precision]
    if rung == "loops":  # a sum in float32 is stored each time; a sum of integers is a register
        return Step(1, 1, 0, int(precision == "fp32"), 1)
    if rung == "ordered":
        return Step(0, 1, 1, 1, 1)
    if rung == "tiled":
        return Step(0, tiled.STEPS, tiled.ROWS, tiled.ROWS, tiled.STEPS * tiled.ROWS)
    rows, vectors = (GENERIC if rung == "panels" else isa).tiles[operands]
    columns = vectors * isa.lanes
    return Step(rows * K, columns * K, 0, rows * columns, rows * columns * K)


def bytes_near(rung: str, precision: str, isa: ISA = AVX2) -> float:
    """Count the bytes between registers and the first cache for one multiply-add."""
    step, size = step_of(rung, precision, isa), 4 // PER_GROUP[OPERANDS[precision]]
    return (size * (step.a + step.b) + 4 * (step.sums_in + step.sums_out)) / step.products


def bytes_far(rung: str, precision: str, isa: ISA = AVX2) -> float:
    """Count the bytes from and to places behind the second cache for one multiply-add.

    The im2col matrix is written once, then read for each panel or once; the weights are read once
    or for each block. What was read before is no longer in the cache, unless it is a block.
    """
    size = 4 // PER_GROUP[OPERANDS[precision]]
    rows, vectors = isa.tiles[OPERANDS[precision]]
    panels = N / (vectors * isa.lanes)
    block = min(M, SECOND_CACHE // 2 // (size * K * rows) * rows)
    values = {
        "fused": M * K * (1 + panels) + K * N,
        "blocks": M * K * (1 + 1) + K * N * M / block,
        "implicit": PIXELS * (1 + 1) + K * N * M / block,
    }
    return size * values[rung] / (M * N * K)


def traffic(rung: str, precision: str) -> str:
    """Say in a line what a rung changes in the traffic for one multiply-add, on AVX2."""
    near, far = ["loops", "ordered", "tiled", "panels", "vector"], ["fused", "blocks", "implicit"]
    unit = "bytes a multiply-add"
    if rung == "loops":
        return f"{bytes_near(rung, precision):.2f} {unit}"
    if rung in near:
        before, after = (bytes_near(r, precision) for r in (near[near.index(rung) - 1], rung))
        return f"{before:.2f} to {after:.2f} {unit}"
    if rung in far[1:]:
        before, after = (bytes_far(r, precision) for r in (far[far.index(rung) - 1], rung))
        return f"{before:.3f} to {after:.3f} {unit}, far"
    if (rung, precision) == ("fused", "fp32"):
        # Three passes write a float32 for each sum, and the later two read one.
        return f"{20 / K:.4f} to {4 / K:.4f} {unit}, after the loop"
    return "fewer bytes after the loop" if rung == "fused" else f"as many {unit} as before"


def pair(results: Sequence[Result], rung: str) -> tuple[Result, Result] | None:
    """Find a rung's result, and that of the rung before it; None where there is no such rung.

    `vector` is the rung of the best vector instruction, the last one before `fused`.
    """
    names = [result.rung.name for result in results]
    if rung == "vector":
        rung = names[names.index("fused") - 1]
        if rung == "panels":  # a CPU without such an instruction
            return None
    if rung not in names[1:]:
        return None
    place = names.index(rung)
    return results[place - 1], results[place]


def find(results: Sequence[Result], rung: str) -> Result:
    """Find a rung's result by its name."""
    return next(result for result in results if result.rung.name == rung)


def gain(results: Sequence[Result], rung: str) -> float:
    """Tell how many times as fast a rung is as the one before it; NaN where it is not there."""
    found = pair(results, rung)
    return found[0].seconds / found[1].seconds if found else float("nan")


def list_rungs(precision: str) -> None:
    """Print the rungs of this machine's ladder, and how far the last is from the definition."""
    for rung in rungs(precision):
        print(textwrap.fill(f"{rung.name:<11}{rung.idea}", WIDTH, subsequent_indent=11 * " "))
    layer, params, x = problem(precision)
    y, defined = rung.prepare(layer, params)(x), OPERATORS[precision]["conv"](layer, params, x)
    apart = abs(y.astype(np.float64) - defined).max()
    print(f"The last one and the definition are {apart:.1g} apart.")


def introduce(precision: str, yours: Sequence[Result]) -> None:
    """Print whose figures these are, and which are in doubt."""
    told = []
    for run in runs("ladders"):
        doubted = [result.rung.name for result in run.ladders[precision] if result.doubts]
        told += [f"{run.name}: {run}. {run.note}".rstrip()]
        told += [f"  In doubt: {', '.join(doubted)}."] if doubted else []
    told += [f"yours: {describe_measurement()}.", f"  {banner(doubts_about(yours))}"]
    for line in told:
        print(textwrap.fill(line, WIDTH, subsequent_indent="  "))


def gains(rung: str, precision: str, yours: Sequence[Result]) -> None:
    """Print what a rung gains: in the recorded runs, and on this machine."""
    print(traffic(rung, precision))
    print(f"{'ms':<10}{'before':>7}{'after':>8}{'':3}{'gain':>8}")
    recorded = [(run.name, run.ladders[precision]) for run in runs("ladders")]
    for name, results in [*recorded, ("yours", yours)]:
        found = pair(results, rung)
        if not found:
            print(f"{name:<10}{'this rung is not there':>26}")
            continue
        doubts = [doubt for result in found for doubt in result.doubts]
        # A ratio of doubtful figures is marked in a recorded run, and not told of this machine.
        told = (worked_out if name == "yours" else mark)(f"{gain(results, rung):.2f}x", doubts)
        before, after = (mark(f"{1e3 * of.seconds:.2f}", of.doubts) for of in found)
        which = f"  {found[1].rung.name}" if rung == "vector" else ""
        print(f"{name:<10}{before:>7}{after:>8}{'':3}{told:>8}{which}")


def plot_shares(precision: str, yours: Sequence[Result]) -> None:
    """Draw each rung's share of the peak: of the recorded runs, and of this machine."""
    recorded = [(f"{run.name}, recorded", run.ladders[precision]) for run in runs("ladders")]
    every = [*recorded, ("yours", yours)]
    size = 5.6, 0.7 + sum(0.35 + 0.19 * len(results) for _, results in every)
    _, of_all = plt.subplots(len(every), figsize=size, sharex=True, layout="constrained")
    for axes, (title, results) in zip(of_all, every, strict=True):
        # A share that is impossible gets no bar, and one in doubt a pale one.
        shares = [r.share if r.share <= HIGHEST else 0 for r in results]
        bars = axes.barh([r.rung.name for r in results], [100 * share for share in shares])
        axes.bar_label(bars, [percent(r.share, r.doubts) for r in results], padding=3)
        for bar, result in zip(bars, results, strict=True):
            bar.set(color=COLORS[precision], alpha=0.45 if result.doubts else 1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.axvline(100, color=GREY, linewidth=1)
        axes.invert_yaxis()
    of_all[-1].set(xlim=(0, 112), xlabel="% of the peak of as many cores as it uses")
