"""The GPU's ladder as data: its rungs, from a thread an output to the engine's own kernel.

It is climbed as `minires.ladder.climb` climbs the CPU's: on the same layer, with more images, each
rung checked against the definition before it is timed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import cuda

from minires.errors import MiniresError
from minires.kernels.cuda import driver
from minires.kernels.cuda.driver import Gpu, open_gpu
from minires.kernels.cuda.instructions import DP4A, FMA, INSTRUCTIONS, MMA_U8S8, Instruction
from minires.ladder.climb import (
    LAYER,
    SHAPE,
    Result,
    check,
    describe_problem,
    doubts_about,
    problem,
)
from minires.ladder.climb import plot as plot_shares
from minires.ladder.cuda import dp4a, loop, mma, stages, tiles
from minires.ladder.cuda.convolution import Convolution, Launch, convolution_of
from minires.layers import OPERATORS
from minires.measure.gpu import describe_gpu, measure_peak, repeated, time_on_gpu, warm_up
from minires.measure.machine import describe_measurement
from minires.measure.trust import (
    doubt_pair,
    doubt_share,
    doubt_spread,
    mark,
    measure_until_steady,
    percent,
    spread_of,
    verdict,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = (32, *SHAPE[1:])  # so many that there is work for all multiprocessors
ROUNDS = 15


class Rung(NamedTuple):
    """A way to compute a convolution on a GPU."""

    name: str
    precision: str
    instruction: Instruction  # whose peak bounds it
    idea: str  # the one thing that is new in it
    prepare: Callable[[Convolution], Launch]


RUNGS = (
    Rung("loop", "fp32", FMA, "a thread an output, with the loops of its sum", loop.prepare),
    Rung("tiles", "fp32", FMA, "tiles in shared memory; a thread has 8 x 8 outputs", tiles.prepare),
    Rung("dp4a", "int8", DP4A, "the same tiles, four products an instruction", dp4a.prepare),
    Rung("mma", "int8", MMA_U8S8, "tensor cores: a warp multiplies matrices", mma.prepare),
    Rung("stages", "int8", MMA_U8S8, "the engine's kernel: copies run ahead", stages.prepare),
)


def rungs(precision: str) -> list[Rung]:
    """List the rungs of a precision, fp32 or int8, from the first up."""
    found = [rung for rung in RUNGS if rung.precision == precision]
    if not found:
        known = " and ".join(dict.fromkeys(rung.precision for rung in RUNGS))
        raise MiniresError(f"the GPU's ladder has {known}, not {precision}; leave it out")
    return found


def climb(precision: str, rounds: int = ROUNDS) -> list[Result]:
    """Check each rung, then time all of them in turns, between two measures of the peak.

    Rungs whose instruction the GPU has not are left out.
    Where something is in doubt, all are timed once more; doubts that remain are in the results.
    """
    gpu = open_gpu()
    climbed = [r for r in rungs(precision) if r.instruction.capability <= gpu.capability]
    layer, p, x = problem(precision, LAYER, IMAGES)
    expected = OPERATORS[precision]["conv"](layer, p, x)
    conv = convolution_of(layer, p, x)
    with driver.errors("the ladder"):
        found = [(rung, rung.prepare(conv)) for rung in climbed]
        for rung, launch in found:
            try:
                check(launch.answer(conv.shape), expected, layer, precision)
            except MiniresError as error:
                raise MiniresError(f"rung {rung.name}: {error}") from error
        results, _ = measure_until_steady(
            lambda: _time_all(found, 2 * layer.macs(expected.shape), gpu, rounds),
            doubts_about,
            tries=2,
        )
    return results


def _time_all(
    found: list[tuple[Rung, Launch]], operations: int, gpu: Gpu, rounds: int
) -> list[Result]:
    """Time all rungs in turns, and the peaks of their instructions before and after."""
    stream = cuda.stream()
    used = list(dict.fromkeys(rung.instruction.name for rung, _ in found))
    before = [measure_peak(INSTRUCTIONS[name], gpu).tops for name in used]
    work = [repeated(stream, launch.start) for _, launch in found]
    for run, _ in work:
        warm_up(stream, run)
    times: list[list[float]] = [[] for _ in found]
    for _ in range(rounds):
        for of_rung, (run, count) in zip(times, work, strict=True):
            of_rung += [seconds / count for seconds in time_on_gpu(stream, run)]
    after = [measure_peak(INSTRUCTIONS[name], gpu).tops for name in used]
    peaks = dict(zip(used, zip(before, after, strict=True), strict=True))
    return [
        result_of(rung, of_rung, operations, peaks[rung.instruction.name])
        for (rung, _), of_rung in zip(found, times, strict=True)
    ]


def result_of(
    rung: Rung, times: list[float], operations: int, peaks: tuple[float, float]
) -> Result:
    """Judge a rung's times, in seconds, by two measures of its peak, in 10^12 a second."""
    seconds = float(np.median(times))
    spread = spread_of(times)
    share = operations / seconds / 1e12 / max(peaks)
    doubts = [
        *doubt_pair("the peak", *peaks),
        *doubt_spread(rung.name, spread),
        *doubt_share(rung.name, share),
    ]
    return Result(rung, seconds, spread, operations / seconds / 1e9, share, tuple(doubts))


def format_table(results: dict[str, list[Result]], gpu: Gpu) -> str:
    """Lay out the results of `climb`, by precision, as a Markdown table, and what is in doubt."""
    head = "| precision | rung | its idea | µs | TOP/s | spread | of peak |"
    lines = [head, "| --- " * 7 + "|"]
    for precision, climbed in results.items():
        for r in climbed:
            lines.append(
                f"| {precision} | {r.rung.name} | {r.rung.idea} | "
                f"{mark(f'{1e6 * r.seconds:.1f}', r.doubts)} | "
                f"{mark(f'{r.gops / 1e3:.2f}', r.doubts)} | {r.spread:.1%} | "
                f"{percent(r.share, r.doubts)} of {r.rung.instruction.name} |"
            )
    doubts = doubts_about(r for climbed in results.values() for r in climbed)
    where = describe_measurement(describe_gpu(gpu))
    told = f"{describe_problem(IMAGES)}, on {where}."
    return "\n".join([*lines, "", told, *([verdict(doubts)] if doubts else [])])


def plot(
    results: dict[str, list[Result]], gpu: Gpu, path: str | None = None, dark: bool = False
) -> "Figure":
    """Draw each ladder as shares of its instructions' peaks; needs matplotlib."""
    title = f"{describe_problem(IMAGES)}, on {describe_measurement(describe_gpu(gpu))}"
    return plot_shares(results, path, title, "its instruction's peak", dark)
