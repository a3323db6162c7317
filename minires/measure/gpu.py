"""What a GPU can do at most: each multiplying instruction in registers alone, and the memory.

The GPU keeps the time by itself, by events. A loop of one kind of instruction runs in enough warps
for all multiprocessors, with independent sums in each lane, so that none waits for another.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types
from numba.cuda.extending import intrinsic

from minires.kernels.cuda import driver, ptx
from minires.kernels.cuda.driver import Gpu, open_gpu
from minires.kernels.cuda.instructions import FMA, INSTRUCTIONS, Instruction, choose_instruction
from minires.kernels.cuda.operators import FORMATS
from minires.kernels.ir import F32, I32, Builder, Value, loop
from minires.measure import session
from minires.measure.machine import Roofs, describe_measurement
from minires.measure.peak import Bandwidth
from minires.measure.text import format_columns
from minires.measure.trust import doubt_spread, mark, measure_until_steady, spread_of, verdict

SUMS = 8  # of a lane: independent of each other
REPEATS = 16  # instructions a sum in one round of the loop
THREADS, BLOCKS = 256, 4  # of a block, and of a multiprocessor
SECONDS = 0.002  # that one measurement takes
WARM_UP = 0.05  # seconds: an idle GPU's clock is low
ROUNDS = 15
COPIED = 2**29  # bytes: ten times the largest cache


class Peak(NamedTuple):
    """How fast one instruction is, on all multiprocessors."""

    name: str  # a key of `INSTRUCTIONS`
    mnemonic: str
    products: int  # of a lane
    tops: float  # 10^12 multiplications and additions a second, the median
    spread: float  # third quartile less first, as a share of the median

    @property
    def doubts(self) -> list[str]:
        """The reasons to doubt this measurement; see `minires.measure.trust`."""
        return doubt_spread(self.name, self.spread)


class Copying(NamedTuple):
    """How fast the memory is, when a buffer is copied in it."""

    size: int  # bytes of the buffer
    gbs: float  # 10^9 bytes a second, read and written
    spread: float


def time_on_gpu(stream: Any, work: Callable[[], None], rounds: int = 1) -> list[float]:
    """Time what `work` launches on a stream, in seconds, by the GPU's own clock."""
    events = [cuda.event() for _ in range(rounds + 1)]
    events[0].record(stream)
    for event in events[1:]:
        work()
        event.record(stream)
    stream.synchronize()
    pairs = itertools.pairwise(events)
    return [one.elapsed_time(other) / 1000 for one, other in pairs]


def repeated(stream: Any, launch: Callable[[Any], None]) -> tuple[Callable[[], None], int]:
    """Record a launch as often as fits in `SECONDS`; give a function that runs all, and the count.

    Launched one by one, short kernels would wait for the host.
    """
    launch(stream)  # once by hand: a kernel is loaded at its first launch
    stream.synchronize()
    one = min(time_on_gpu(stream, lambda: launch(stream), 3))
    count = max(1, min(math.ceil(SECONDS / one), 500))
    with driver.recording(stream) as graph:
        for _ in range(count):
            launch(stream)
    return functools.partial(graph.launch, stream), count


def warm_up(stream: Any, work: Callable[[], None]) -> None:
    """Keep the GPU busy until its clock is up."""
    spent = 0.0
    while spent < WARM_UP:
        spent += sum(time_on_gpu(stream, work))


@functools.cache
def spinner(name: str) -> tuple[Any, Any]:
    """Write a kernel that does nothing but multiply, and tell its signature.

    It takes the rounds of the loop, a number to make operands of, and an address.
    """
    instruction = INSTRUCTIONS[name]
    signature = types.void(types.int64, types.int32, types.int64)

    @intrinsic
    def multiply(_: Any, count: Any, seed: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Builder, signature: Any, values: Any) -> Value:
            _spin(builder, instruction, *values)
            return context.get_dummy_value()

        return types.none(types.int64, types.int32, types.int64), codegen

    def spin(count: int, seed: int, out: int) -> None:
        multiply(count, seed, out)

    return spin, signature


def _spin(
    builder: Builder, instruction: Instruction, count: Value, seed: Value, out: Value
) -> None:
    """Add to each sum in turn, `SUMS` times `REPEATS` instructions in a round."""
    each = 4 if instruction.warp else 1  # sums of a lane and an instruction
    start = builder.add(seed, ptx.register(builder, "tid.x"))
    words = [builder.add(start, I32(i)) for i in range(6)]
    a, b = (words[:4], words[4:]) if instruction.warp else words[:2]
    # Sums that begin alike would be one sum.
    begin = [instruction.sums(i) for i in range(SUMS) for _ in range(each)]

    def body(*flat: Value) -> list[Value]:
        following = list(flat)
        for _ in range(REPEATS):
            for i in range(0, SUMS * each, each):
                sums = following[i : i + each] if instruction.warp else following[i]
                sums = instruction.multiply(builder, sums, a, b)
                following[i : i + each] = sums if instruction.warp else [sums]
        return following

    total, *others = loop(builder, count, begin, body)
    add = builder.fadd if instruction.sums == F32 else builder.add
    for other in others:  # so that none can be left out
        total = add(total, other)
    with builder.if_then(builder.icmp_signed("==", seed, I32(-1))):  # never: but who knows
        ptx.store(builder, total, out, 4)


@functools.cache
def _compiled_spinner(name: str) -> Any:
    function, signature = spinner(name)
    return cuda.jit(signature)(function)


def operations(instruction: Instruction, count: int, processors: int) -> float:
    """Count the multiplications and additions of a spinner's run."""
    lanes = processors * BLOCKS * THREADS
    return 2.0 * instruction.products * instruction.times * lanes * SUMS * REPEATS * count


def measure_peak(instruction: Instruction, gpu: Gpu) -> Peak:
    """Time an instruction in registers: no loads, no stores."""
    kernel = _compiled_spinner(instruction.name)
    stream = cuda.stream()
    out = cuda.device_array(1, np.float32)
    address = out.__cuda_array_interface__["data"][0]
    count = 64

    def run() -> None:
        kernel[gpu.processors * BLOCKS, THREADS, stream](count, 1, address)

    run()
    while min(time_on_gpu(stream, run, 3)) < SECONDS:
        count *= 2
    warm_up(stream, run)

    def measure() -> Peak:
        times = time_on_gpu(stream, run, ROUNDS)
        tops = operations(instruction, count, gpu.processors) / float(np.median(times)) / 1e12
        name = instruction.name
        mnemonic = instruction.mnemonic
        products = instruction.products
        return Peak(name, mnemonic, products, tops, spread_of(times))

    found, _ = measure_until_steady(measure, lambda peak: peak.doubts)
    session.say(f"the peak of {found.name}: {found.tops:.1f} TOP/s")
    return found


def measure_copying() -> Copying:
    """Time copies of a buffer that no cache holds."""
    stream = cuda.stream()
    x, y = (cuda.device_array(COPIED, np.uint8) for _ in range(2))

    def run() -> None:
        y.copy_to_device(x, stream=stream)

    warm_up(stream, run)

    def measure() -> Copying:
        times = time_on_gpu(stream, run, ROUNDS)
        return Copying(COPIED, 2 * COPIED / float(np.median(times)) / 1e9, spread_of(times))

    found, _ = measure_until_steady(measure, _doubt_copying)
    return found


def _doubt_copying(copying: Copying) -> list[str]:
    return doubt_spread("copying", copying.spread)


def describe_gpu(gpu: Gpu) -> str:
    """Describe a GPU in a line."""
    major, minor = gpu.capability
    return f"{gpu.name}, compute capability {major}.{minor}, {gpu.processors} multiprocessors"


def measure_gpu() -> tuple[Gpu, list[Peak], Copying]:
    """Measure all that this GPU multiplies with, and its memory."""
    gpu = open_gpu()
    with driver.errors("the measurement"):
        known = [i for i in INSTRUCTIONS.values() if i.capability <= gpu.capability]
        return gpu, [measure_peak(instruction, gpu) for instruction in known], measure_copying()


def measure_roofs(precision: str) -> Roofs:
    """Measure the roofs of a precision: its instruction's peak, and the memory of the GPU."""
    gpu = open_gpu()
    with driver.errors("the measurement"):
        operands = FORMATS[precision].operands
        found = measure_peak(choose_instruction(operands, gpu.capability), gpu)
        copying = measure_copying()
    memory = Bandwidth("memory", copying.size, copying.gbs, copying.gbs, 1)
    doubts = (*found.doubts, *_doubt_copying(copying))
    return Roofs(1000 * found.tops, [memory], doubts=doubts)


def format_gpu(gpu: Gpu, peaks: list[Peak], copying: Copying) -> str:
    """Lay out the answers of `measure_gpu`."""
    fp32 = next(p.tops for p in peaks if p.name == FMA.name)
    rows = []
    for p in peaks:
        rate = mark(f"{p.tops:.1f}", p.doubts)
        of_fp32 = f"{p.tops / fp32:.2f}x"
        rows.append([p.name, p.mnemonic, str(p.products), rate, of_fp32, f"{p.spread:.1%}"])
    head = ["instruction", "in PTX", "products a lane", "TOP/s", "of fp32", "spread"]
    of_memory = _doubt_copying(copying)
    doubts = [*(doubt for p in peaks for doubt in p.doubts), *of_memory]
    title = f"{describe_measurement(describe_gpu(gpu))}: registers only, no loads; the median of "
    title += f"{ROUNDS} rounds"
    memory = (
        f"memory: {mark(f'{copying.gbs:.0f}', of_memory)} GB/s, read and written, "
        f"by copying {copying.size >> 20} MiB; spread {copying.spread:.1%}"
    )
    heading = f"{title}\n{verdict(doubts)}" if doubts else title
    return "\n\n".join([heading, format_columns(head, rows), memory])
