"""The ladder as data: from a convolution's definition to the engine, one idea a rung.

`rungs` lists the rungs for a precision. `climb` checks each against the definition, then times it.
The tests, the command line and the README's table all use this list.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.kernels.cpu import get_num_threads
from minires.kernels.engine import Engine
from minires.kernels.ir import X86
from minires.kernels.isa import ISA, ISAS, available_isas, choose_isa
from minires.kernels.isa.generic import GENERIC
from minires.ladder import blocks, fused, implicit, loops, ordered, panels, tiled
from minires.ladder import threads as of_threads
from minires.ladder.product import Product, from_memory, in_memory, product_of
from minires.layers import OPERATORS, Array, FloatParams, Int8Params, Layer
from minires.measure import plots, session
from minires.measure.machine import describe_measurement
from minires.measure.peak import OPERANDS, best_instruction, measure_peak
from minires.measure.trust import (
    Cores,
    doubt_others,
    doubt_pair,
    doubt_share,
    doubt_spread,
    mark,
    measure_until_steady,
    percent,
    spread_of,
    verdict,
)
from minires.reference import QParams, im2col_ref, requantize_ref, round_bf16_ref

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Conv = Callable[[Array], Array]
Prepare = Callable[[Product], Callable[[Array], Array]]
LAYER = Layer("layer2.1.conv2", "conv", ("input",), 128, 128, 3, 1, 1, relu=True)
SHAPE = (1, 28, 28, 128)  # of the input; 231 million operations
PAUSE = 0.1  # seconds until the threads of the last rung sleep; NumPy's BLAS keeps some awake
WARM_UP = 0.03  # seconds after which threads that have just woken may have a core each
EPS = float(np.finfo(np.float32).eps)


class Rung(NamedTuple):
    """A way to compute a convolution."""

    name: str
    idea: str  # the one thing that is new in it
    prepare: Callable[[Layer, Any], Conv]  # lays the weights out, once for a layer
    threads: int = 1


class Result(NamedTuple):
    """A rung's measurements."""

    rung: Any  # a `Rung`, or one of the GPU's
    seconds: float  # the median
    spread: float  # third quartile less first, as a share of the median
    gops: float  # 10^9 multiplications and additions a second
    share: float  # of the peak: of as many threads as it uses, or of the GPU
    doubts: tuple[str, ...] = ()  # reasons to doubt these figures; see `minires.measure.trust`


def _finish(product: Product, acc: Array) -> Array:
    """Apply the definition's epilogue to the sums, in NumPy."""
    t = acc + product.bias  # (M, N)
    if product.precision == "int8":
        assert product.layer.qparams is not None
        return requantize_ref(t, product.m, product.layer.qparams.zero_point)
    y = np.maximum(t, 0) if product.layer.relu else t
    return round_bf16_ref(y) if product.precision == "bf16" else y


def _rung(
    precision: str, isa: ISA, prepare: Prepare, threads: int = 1, sums: bool = False
) -> Callable[..., Conv]:
    """Give a rung its im2col matrix, and if it returns sums, finish them in NumPy."""

    def of_layer(layer: Layer, p: Any) -> Conv:
        product = product_of(layer, p, precision, isa, threads)
        multiply = prepare(product)

        def run(x: Array) -> Array:
            k, s, padding = layer.kernel, layer.stride, layer.padding
            a = im2col_ref(in_memory(x, precision), k, k, s, padding, product.zero_point)  # (M, K)
            c = multiply(a)  # (M, N)
            y = _finish(product, c) if sums else from_memory(c, precision)
            return y.reshape(layer.output_shape(x.shape))

        return run

    return of_layer


def _implicit(precision: str, isa: ISA, threads: int) -> Callable[..., Conv]:
    """Give rung `implicit` the input itself."""

    def of_layer(layer: Layer, p: Any) -> Conv:
        convolve = implicit.prepare(product_of(layer, p, precision, isa, threads))
        return lambda x: from_memory(convolve(in_memory(x, precision)), precision)

    return of_layer


def _engine(precision: str, isa: ISA, threads: int = 1) -> Callable[..., Conv]:
    """Let the engine compute the layer, as a network of one layer."""

    def of_layer(layer: Layer, p: Any) -> Conv:
        image = Layer("input", "input", (), layer.in_c, layer.in_c)
        if isinstance(p, Int8Params):
            image = replace(image, qparams=p.x_qparams)
        inner = replace(layer, inputs=("input",))
        engine = Engine([image, inner], {layer.name: p}, precision, isa, threads)

        def run(x: Array) -> Array:
            batch, height, width, channels = x.shape
            return engine.run((batch, channels, height, width), inner, x)

        return run

    return of_layer


def vector_isa(operands: str) -> ISA:
    """Choose the best instruction set that multiplies in vectors, for all rungs but the engine's.

    The rungs keep their tiles in vectors, one of columns for each row; a matrix instruction has
    registers of its own, or vectors of two rows.
    """
    chosen = choose_isa()
    if chosen.instructions[operands].rows == 1:
        return chosen
    return next(isa for isa in available_isas() if isa.instructions[operands].rows == 1)


def rungs(precision: str) -> list[Rung]:
    """List the rungs that this machine can climb, from the definition up.

    All are compiled for the same instruction set, so that none is slower for its set's sake. The
    precision is fp32, int8 or bf16, whose ladder is short.
    """
    threads = get_num_threads()
    operands = OPERANDS[precision]
    isa = vector_isa(operands)
    numpy = OPERATORS[precision]["conv"]
    rung = functools.partial(_rung, precision, isa)
    climbed = [
        Rung(
            "numpy",
            "the definition: im2col, NumPy's matrix product, an epilogue",
            lambda layer, p: functools.partial(numpy, layer, p),
            threads,
        )
    ]
    if precision != "bf16":
        idea = "the three loops of a matrix product, compiled"
        climbed.append(Rung("loops", idea, rung(loops.prepare, sums=True)))
        idea = "the loops in an order that sums side by side, not one by one"
        climbed.append(Rung("ordered", idea, rung(ordered.prepare, sums=True)))
        idea = "a tile of 4 rows by 4 steps in registers"
        climbed.append(Rung("tiled", idea, rung(tiled.prepare, sums=True)))
    idea = "prepacked panels: a microkernel keeps its sums in registers"
    climbed.append(Rung("panels", idea, rung(_with(GENERIC, operands), sums=True)))
    for better in _better_isas(isa, operands):
        instruction = better.instructions[operands]
        title = instruction.name.partition(",")[0]
        climbed.append(Rung(title, instruction.idea, rung(_with(better, operands), sums=True)))
    idea = "the epilogue on sums that are still in registers"
    climbed.append(Rung("fused", idea, rung(fused.prepare)))
    idea = "blocks of rows that stay in the cache"
    climbed.append(Rung("blocks", idea, rung(blocks.prepare)))
    idea = f"work shared out to {threads} threads"
    climbed.append(Rung("threads", idea, rung(of_threads.prepare, threads), threads))
    idea = "no im2col matrix: its rows are addresses"
    climbed.append(Rung("implicit", idea, _implicit(precision, isa, threads), threads))
    best = choose_isa()
    idea = f"the engine itself, with {best.instructions[operands].name}"
    climbed.append(Rung("engine", idea, _engine(precision, best, threads), threads))
    return climbed


def _with(isa: ISA, operands: str) -> Prepare:
    """Let rung `panels` multiply with an instruction set's instruction and tile."""
    instruction = isa.instructions[operands]
    tile = isa.tiles[operands]
    return functools.partial(panels.prepare, instruction=instruction, tile=tile)


def _better_isas(isa: ISA, operands: str) -> list[ISA]:
    """List the sets for more rungs like `panels`: without dot products, and the best here."""
    if isa.name == GENERIC.name:
        return []
    name = "neon"
    if isa.family == X86:
        name = f"{'avx512' if isa.lanes == 16 else 'avx2'}-vpmaddubsw"
    before = [ISAS[name]] if operands == "u8s8" and ISAS[name].features <= isa.features else []
    return list(dict.fromkeys([*before, isa]))


def problem(precision: str, layer: Layer = LAYER, x: tuple[int, ...] = SHAPE) -> tuple[Any, ...]:
    """Return a layer with seeded random parameters and input; `x` is the input's shape, NHWC.

    In INT8 the layer that you get has its output's scale.
    """
    random = np.random.default_rng(0)
    K = layer.kernel**2 * layer.in_c
    if precision == "int8":
        x_u8 = random.integers(0, 256, x, dtype=np.uint8)
        w_s8 = random.integers(-128, 128, (layer.out_c, K)).astype(np.int8)
        scale = np.float32(1 / 64)
        one = np.float32(1)
        q = QParams(np.float32(100 * K**0.5), 0)
        layer = replace(layer, qparams=q)
        bias = random.integers(-1000, 1000, layer.out_c).astype(np.int32)
        w_scale = np.full(layer.out_c, one)
        return layer, Int8Params(QParams(scale * 64, 0), w_s8, w_scale, bias), x_u8
    weight = random.uniform(-1, 1, (layer.out_c, K)).astype(np.float32)
    p = FloatParams(weight, random.uniform(-1, 1, layer.out_c).astype(np.float32))
    x_f32 = random.uniform(-1, 1, x).astype(np.float32)
    return layer, p, round_bf16_ref(x_f32) if precision == "bf16" else x_f32


def check(y: Array, expected: Array, layer: Layer, precision: str) -> None:
    """Raise `MiniresError` unless a rung's result is the definition's: in INT8 to the bit.

    In float32 the sums of K products, each at most 1, may lie 2 * K * K * eps apart. In bfloat16
    they may also be rounded to different neighbours.
    """
    K = layer.kernel**2 * layer.in_c + 1
    bound = {"int8": 0.0, "fp32": 2 * K * K * EPS}.get(precision, 2 * K * K * EPS + K * 2.0**-8)
    error = np.abs(y.astype(np.float64) - expected).max() if y.shape == expected.shape else np.nan
    if not (y.dtype == expected.dtype and error <= bound):
        raise MiniresError(f"a rung of the {precision} ladder is wrong by {error:g}; report this")


def _times_in_turn(run: Conv, x: Array, core: Cores) -> list[float]:
    """Time a rung three times, after a pause for other threads and a warm-up of its own."""
    time.sleep(PAUSE)
    for _ in range(10):
        with Cores() as warming:
            start = time.perf_counter()
            while time.perf_counter() < start + WARM_UP:
                run(x)
        if not doubt_others("", warming.others):
            break  # a thread that has just woken may share its waker's core for a while
    times = []
    with core:
        for _ in range(3):
            start = time.perf_counter()
            run(x)
            times.append(time.perf_counter() - start)
    return times


def climb(precision: str, rounds: int = 9) -> Iterator[Result]:
    """Check each rung, then time all of them in turns, the slow ones in fewer rounds.

    Results come in the order of `rungs`. If something is in doubt, all are timed once more. Doubts
    that remain are in the results' `doubts`.
    """
    layer, p, x = problem(precision)
    expected = OPERATORS[precision]["conv"](layer, p, x)
    session.say(f"{precision}: compiling the rungs, and comparing each with the definition")
    found = [(rung, rung.prepare(layer, p)) for rung in rungs(precision)]
    for _, run in found:
        check(run(x), expected, layer, precision)
    operations = 2 * layer.macs(expected.shape)
    results, _ = measure_until_steady(
        lambda: _time_all(precision, found, x, operations, session.rounds(rounds, 3)),
        lambda results: [doubt for result in results for doubt in result.doubts],
        tries=2,  # because it takes long
    )
    yield from results


def _time_all(
    precision: str, found: list[tuple[Rung, Conv]], x: Array, operations: int, rounds: int
) -> list[Result]:
    """Time all rungs in turns, and the peak before and after."""
    before = measure_peak(best_instruction(precision), choose_isa(), threads=1)
    times: list[list[float]] = [[] for _ in found]
    cores = [Cores() for _ in found]
    session.say(f"{precision}: {rounds} rounds of all rungs")
    for i in range(rounds):
        for of_rung, core, (rung, run) in zip(times, cores, found, strict=True):
            if i < 3 or sum(of_rung) < 0.5:
                of_rung += _times_in_turn(run, x, core)
                if i == 0:
                    session.say(f"{precision} {rung.name}: {1e3 * min(of_rung):.3f} ms at first")
    after = measure_peak(best_instruction(precision), choose_isa(), threads=1)
    best = max(before.gops, after.gops)
    doubts = [*before.doubts, *after.doubts, *doubt_pair("the peak", before.gops, after.gops)]
    results = []
    for of_rung, core, (rung, _) in zip(times, cores, found, strict=True):
        seconds = float(np.median(of_rung))
        spread = spread_of(of_rung)
        gops = operations / seconds / 1e9
        share = gops / best / rung.threads
        why = [*doubts, *doubt_spread(rung.name, spread), *doubt_share(rung.name, share)]
        why += doubt_others(rung.name, core.others)
        results.append(Result(rung, seconds, spread, gops, share, tuple(why)))
    return results


def doubts_about(results: Iterable[Result]) -> list[str]:
    """List the reasons to doubt measurements, each once, for `minires.measure.trust.verdict`."""
    return list(dict.fromkeys(doubt for result in results for doubt in result.doubts))


def format_table(results: Mapping[str, list[Result]], title: str = "") -> str:
    """Lay out the results of `climb`, by precision, as a Markdown table, and what is in doubt.

    The title stands beneath; unless given, it tells of this machine, now.
    """
    lines = ["| precision | rung | its idea | ms | GOP/s | of peak |", "| --- " * 6 + "|"]
    for precision, climbed in results.items():
        for r in climbed:
            lines.append(
                f"| {precision} | {r.rung.name} | {r.rung.idea} | "
                f"{mark(f'{1e3 * r.seconds:.3f}', r.doubts)} | {mark(f'{r.gops:.1f}', r.doubts)} | "
                f"{percent(r.share, r.doubts)} |"
            )
    doubts = doubts_about(r for climbed in results.values() for r in climbed)
    told = title or f"{describe_problem()}, on {describe_measurement()}"
    return "\n".join([*lines, "", f"{told}.", *([verdict(doubts)] if doubts else [])])


def describe_problem(shape: tuple[int, ...] = SHAPE) -> str:
    """Say in a few words which convolution the rungs compute, of an input NHWC."""
    return f"{LAYER.name}, {LAYER.kernel}x{LAYER.kernel} convolution of {shape}"


def plot(
    results: Mapping[str, list[Result]],
    path: str | os.PathLike[str] | None = None,
    title: str = "",
    limit: str = "the peak of as many cores as it uses",
    dark: bool = False,
) -> "Figure":
    """Draw each ladder as shares of the peak, which is a line; needs matplotlib."""
    title = title or f"{describe_problem()}, on {describe_measurement()}"
    height = 1.4 + 0.3 * max(map(len, results.values()))
    doubts = doubts_about(r for climbed in results.values() for r in climbed)
    size = 10, height, len(results), dark
    with plots.drawing(path, title, *size, doubts=doubts) as (drawn, of_all):
        for axes, (precision, climbed) in zip(np.atleast_1d(of_all), results.items(), strict=True):
            names = [r.rung.name for r in climbed]
            bars = axes.barh(names, [100 * r.share for r in climbed], color=plots.COLORS[precision])
            speeds = [mark(f"{r.gops:,.{1 if r.gops < 10 else 0}f}", r.doubts) for r in climbed]
            axes.bar_label(bars, speeds, padding=2, fontsize=8)
            axes.axvline(100, color=plots.GREY, linewidth=1)
            axes.set(title=f"{precision}, 10⁹ operations a second")
            axes.set(xlabel=f"% of {limit}", xlim=(0, 120), xticks=range(0, 101, 20))
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
    return drawn


class Ladder(dict[str, list[Result]]):
    """The results of `climb` by precision, which show themselves."""

    @classmethod
    def climb(cls, *precisions: str, rounds: int = 9) -> "Ladder":
        """Climb one precision after another."""
        return cls({precision: list(climb(precision, rounds)) for precision in precisions})

    def __str__(self) -> str:
        return format_table(self)

    def plot(self, path: str | os.PathLike[str] | None = None, dark: bool = False) -> "Figure":
        """Draw the ladders side by side, as the function `plot` does."""
        return plot(self, path, dark=dark)

    def _repr_html_(self) -> str:
        """Show the ladders in a notebook: the picture, and the table to unfold."""
        return plots.page(self.plot, str(self))
