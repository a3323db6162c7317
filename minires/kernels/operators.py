"""The operators, compiled by Numba: each runs a piece of a step's work, by microkernels.

`compile_network` makes one function for a precision and an instruction set. It runs a program: an
array of steps whose operands are addresses, so that a whole network is one call.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import carray, from_dtype, njit, types
from numba.extending import overload

from minires.kernels.compile import compile_for, name_apart
from minires.kernels.ir import LINE
from minires.kernels.isa import ISAS
from minires.kernels.isa.instruction import PER_GROUP
from minires.kernels.microkernel import Microkernel, largest, matrix_registers, microkernel
from minires.kernels.sync import count_up, pointer, ticks, wait_for
from minires.kernels.threads import WORKERS

# One fused operator, ready to run. Addresses and counts are int64. Strides of rows and images are
# in bytes, but `stride`, a convolution's, is in pixels. `x_offsets` are in bytes, `y_offsets` in
# elements.
STEP = np.dtype(
    [
        (name, kind)
        for kind, names in {
            "i8": "op x y batch in_h in_w out_h out_w channels kernel stride x_row y_row x_image "
            "y_image x_offsets y_offsets rows block panels w runs groups run_stride panel_bytes "
            "bias m residual",
            "f4": "m_residual low high scale average",
            "i4": "residual_zero_point zero_point x_zero_point",
        }.items()
        for name in names.split()
    ],
    align=True,
)
INPUT, CONV, MAXPOOL, AVGPOOL, LINEAR = range(5)
CHANNELS = 3  # of an image's pixel
# A thread takes its share of a step in so many pieces, so that another one, whose core is faster or
# less busy, can take the last ones. More pieces would cost more than they even out.
PIECES = 8
OPS = {"input": INPUT, "conv": CONV, "maxpool": MAXPOOL, "avgpool": AVGPOOL, "linear": LINEAR}


@njit
def _same(x: Any, q: Any) -> Any:
    return x


@njit
def _fake_quantize(x: Any, q: Any) -> Any:
    scale, low, high, _ = q
    return min(max(np.rint(x / scale), low), high) * scale


@njit
def _quantize(x: Any, q: Any) -> Any:
    scale, low, high, zero_point = q
    return np.uint8(np.int32(min(max(np.rint(x / scale), low), high)) + zero_point)


@njit
def _to_bf16(x: Any, q: Any) -> Any:
    bits = np.float32(x).view(np.int32)
    return np.int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@njit
def _from_bf16(x: Any) -> Any:
    return np.int32(np.int32(x) << 16).view(np.float32)


@njit
def _average_int8(total: Any, step: Any) -> Any:
    t = np.float32(np.int32(total - step.in_h * step.in_w * step.x_zero_point)) * step.average
    return np.uint8(np.int32(np.rint(min(max(t, step.low), step.high))) + step.zero_point)


def _mean(then: Callable[..., Any]) -> Callable[..., Any]:
    def average(total: Any, step: Any) -> Any:
        q = step.scale, step.low, step.high, step.zero_point
        return then(total / np.float32(step.in_h * step.in_w), q)

    return njit(name_apart(average, then.__name__))


class Format(NamedTuple):
    """How a precision keeps its tensors, and how it makes them of real numbers and of sums."""

    operands: str  # a key of `ISA.instructions`
    activation: Any  # the type of an activation in memory
    epilogue: str  # of a convolution
    last_epilogue: str  # of the classifier
    quantize: Callable[..., Any]  # turns a pixel's value into an activation
    widen: Callable[..., Any]  # turns an activation into the type of the sums
    average: Callable[..., Any]  # turns the sum over all pixels into an activation

    @property
    def group(self) -> int:
        """Count the values in 32 bits."""
        return PER_GROUP[self.operands]


FORMATS = {
    "fp32": Format(
        operands="f32",
        activation=np.float32,
        epilogue="activate",
        last_epilogue="activate",
        quantize=_same,
        widen=np.float32,
        average=_mean(_same),
    ),
    "bf16": Format(
        operands="bf16",
        activation=np.int16,
        epilogue="activate, bf16",
        last_epilogue="activate",
        quantize=_to_bf16,
        widen=_from_bf16,
        average=_mean(_to_bf16),
    ),
    "int8": Format(
        operands="u8s8",
        activation=np.uint8,
        epilogue="requantize",
        last_epilogue="dequantize",
        quantize=_quantize,
        widen=np.int32,
        average=_average_int8,
    ),
}
# Simulated INT8 computes as FP32 does, but rounds each output to the values of eight bits.
FORMATS["int8-simulated"] = FORMATS["fp32"]._replace(
    epilogue="fake quantize", quantize=_fake_quantize, average=_mean(_fake_quantize)
)
# For study: convolutions without their epilogue, to time it by the difference. Their outputs mean
# nothing.
FORMATS |= {
    f"{precision}, plain store": FORMATS[precision]._replace(epilogue=f"plain store of {stored}")
    for precision, stored in [("fp32", "float32"), ("int8", "u8")]
}
UNWATCHED = np.zeros((0, 0, 2), np.int64)  # where nobody wants to know what each thread does


@functools.cache
def compile_network(precision: str, isa: str) -> Callable[..., None]:
    """Compile the function that runs a program's steps, or load it from the cache.

    The precision is a key of `FORMATS`; `isa` names a set that this machine has. You get
    ``execute(program, times, first, last, threads)`` for a program of `STEP` and times of int64,
    (steps + 1,). It notes in `times` when the first step began and when each ended, in ticks. If
    you also give `worked`, zeros of int64, (steps, threads, 2), it notes there when each thread
    began a step and when it was done with its pieces; a thread that had none leaves the zeros.
    """
    spec = f"{precision}/{isa}"
    count = types.int64
    arrays = from_dtype(STEP)[::1], count[::1], count[:, :, ::1], count[:, :, ::1]
    signature = types.void(*arrays, count, count, count)

    def steps(
        program: Any, times: Any, counts: Any, worked: Any, first: int, last: int, thread: int
    ) -> None:
        threads = counts.shape[1] - 2
        watched = len(worked) > 0
        pieces = threads * PIECES
        if times[first] == 0:  # the thread that comes first notes the time
            times[first] = ticks()
        for i in range(first, last):
            done = counts[i, threads:].ctypes.data
            ended = counts[i, threads + 1 :].ctypes.data
            ran = 0
            began = ticks() if watched else 0
            for other in range(threads):
                share = (thread + other) % threads
                taken = counts[i, share:].ctypes.data
                piece = count_up(taken, 1)
                while piece < PIECES:
                    run_piece(spec, program[i], share * PIECES + piece, pieces)
                    ran += 1
                    piece = count_up(taken, 1)
            if watched and ran > 0:  # before it counts, so that whoever sees the count sees this
                worked[i, thread, 0], worked[i, thread, 1] = began, ticks()
            if ran > 0 and count_up(done, ran) + ran == pieces:
                times[i + 1] = ticks()
                count_up(ended, 1)
            wait_for(ended, 1)

    notice = f"minires: compiling the {precision} kernels for this machine, once"
    compiled = compile_for(ISAS[isa], steps, signature, precision, notice)

    def execute(
        program: Any, times: Any, first: int, last: int, threads: int, worked: Any = UNWATCHED
    ) -> None:
        # For each step: how many pieces of each thread's share are taken, how many of all are done,
        # and whether the step has ended. These counts lie a cache line apart. A thread that is done
        # with its own share helps with the others'. So threads wait only for pieces in progress,
        # never for a thread that comes late or is slow: it finds all pieces taken.
        counts = np.zeros((last, threads + 2, LINE // 8), np.int64)
        times[first] = 0
        WORKERS.share(compiled, threads, program, times, counts, worked, first, last)

    return execute


def run_piece(spec: str, step: Any, piece: int, pieces: int) -> None:
    """Do one piece of a step's work, out of `pieces`; for compiled code alone."""
    raise NotImplementedError  # Numba puts the code that `_run_piece` makes in its place


@overload(run_piece, prefer_literal=True)
def _run_piece(spec: Any, step: Any, piece: Any, pieces: Any) -> Callable[..., None] | None:
    if not isinstance(spec, types.Literal):
        return None  # Numba asks again, with the literal
    precision, name = spec.literal_value.split("/")
    form = FORMATS[precision]
    isa = ISAS[name]
    parts = {
        "conv": _tiles(Microkernel.of(isa, form.operands, form.epilogue), form.activation),
        "linear": _tiles(Microkernel.of(isa, form.operands, form.last_epilogue), np.float32),
        "input": _convert(form, isa.instructions[form.operands].pixel),
        "maxpool": _maxpool(form, isa.tiles[form.operands][1] * isa.lanes),
        "avgpool": _avgpool(form),
    }
    conv, linear, convert, maxpool, avgpool = (
        njit(name_apart(part, f"{op}/{spec.literal_value}")) for op, part in parts.items()
    )

    # Numba wants the same parameters as those of `_run_piece`.
    def run(spec: Any, step: Any, piece: Any, pieces: Any) -> None:
        op = step.op
        if op in (CONV, LINEAR):
            count = step.rows * step.panels
        elif op == AVGPOOL:
            count = step.batch
        else:
            count = step.batch * step.out_h  # rows of pixels
        begin = count * piece // pieces
        end = count * (piece + 1) // pieces
        if op == CONV:
            conv(step, begin, end)
        elif op == LINEAR:
            linear(step, begin, end)
        elif op == INPUT:
            convert(step, begin, end)
        elif op == MAXPOOL:
            maxpool(step, begin, end)
        else:
            avgpool(step, begin, end)

    return run


def _tiles(kernel: Microkernel, output: Any) -> Callable[..., None]:
    """Make the code for the tiles of a GEMM, whose output has this type."""
    name, rows, columns = kernel.name, kernel.rows, kernel.columns
    size = np.dtype(output).itemsize
    i64 = np.int64

    def tiles(step: Any, begin: int, end: int) -> None:
        # Rows of tiles come in blocks, whose activations stay in the cache while all panels of
        # weights pass by. Within a block, a panel meets all rows before the next panel is read.
        if begin >= end:
            return
        scalars = (
            step.m_residual,
            step.residual_zero_point,
            step.low,
            step.high,
            step.zero_point,
            step.scale,
        )
        top = begin // (step.block * step.panels) * step.block
        bottom = min(top + step.block, step.rows)
        inside = begin - top * step.panels
        panel = inside // (bottom - top)
        row = top + inside % (bottom - top)
        matrix_registers(name, True, step.groups)
        for _ in range(begin, end):
            x_offsets = step.x_offsets + 4 * rows * row
            y_offsets = step.y_offsets + 4 * rows * row
            w = step.w + panel * step.panel_bytes
            column = panel * columns
            # The next panel is fetched meanwhile, a share of it with each row of tiles.
            apart = min(i64(LINE), 4 * columns // (bottom - top))
            later = step.w + (panel + 1) % step.panels * step.panel_bytes
            later += apart * step.runs * step.groups * (row - top)
            residual = step.residual + size * column if step.residual != 0 else i64(0)
            microkernel(
                name,
                step.x,
                x_offsets,
                w,
                step.runs,
                step.groups,
                step.run_stride,
                later,
                apart,
                step.bias + 4 * column,
                step.m + 4 * column,
                residual,
                step.y + size * column,
                y_offsets,
                scalars,
            )
            row += 1
            if row == bottom:
                row, panel = top, panel + 1
                if panel == step.panels:
                    panel, top = 0, bottom
                    row, bottom = top, min(top + step.block, step.rows)
        matrix_registers(name, False, step.groups)

    return tiles


def _convert(form: Format, multiple: int) -> Callable[..., None]:
    """Make the code that turns NCHW in float32 into NHWC in the network's own type.

    In memory a pixel is filled up to a multiple of so many values; the last ones stay zero.
    """
    activation = from_dtype(np.dtype(form.activation))
    quantize = form.quantize
    channels = -(-CHANNELS // multiple) * multiple

    def convert(step: Any, begin: int, end: int) -> None:
        width = step.out_w
        # A local copy: LLVM would read the step anew for each pixel, because y may overlap it.
        q = step.scale, step.low, step.high, step.zero_point
        x = carray(pointer(step.x), (step.batch, CHANNELS, step.out_h, width), types.float32)
        for line in range(begin, end):
            image, i = line // step.out_h, line % step.out_h
            at = step.y + step.y_image * image + step.y_row * i
            y = carray(pointer(at), (width, channels), activation)
            for j in range(width):
                for c in range(CHANNELS):
                    y[j, c] = quantize(x[image, c, i, j], q)

    return convert


def _maxpool(form: Format, columns: int) -> Callable[..., None]:
    """Make the code of the max-pool, which is the same for real numbers and for steps."""
    name = np.dtype(form.activation).name
    size = np.dtype(form.activation).itemsize
    spec = f"{name}/{columns}"
    vector = columns * size

    def maxpool(step: Any, begin: int, end: int) -> None:
        pixel = step.channels * size
        for line in range(begin, end):
            image, i = line // step.out_h, line % step.out_h
            top = step.x + step.x_image * image + step.x_row * i * step.stride
            left = step.y + step.y_image * image + step.y_row * i
            for j in range(step.out_w):
                for at in range(0, pixel, vector):
                    y = left + j * pixel + at
                    x = top + j * step.stride * pixel + at
                    largest(spec, y, x, step.kernel, step.x_row, pixel)

    return maxpool


def _avgpool(form: Format) -> Callable[..., None]:
    """Make the code of the average over all pixels of an image."""
    activation = from_dtype(np.dtype(form.activation))
    widen = form.widen
    average = form.average
    total = np.int32 if form.operands == "u8s8" else np.float32

    def avgpool(step: Any, begin: int, end: int) -> None:
        channels = step.channels
        pixels = step.in_h * step.in_w
        for image in range(begin, end):
            at = step.x + step.x_image * image
            x = carray(pointer(at), (pixels, channels), activation)
            y = carray(pointer(step.y + step.y_image * image), (channels,), activation)
            sums = np.zeros(channels, total)
            for i in range(pixels):
                for c in range(channels):
                    sums[c] += widen(x[i, c])
            for c in range(channels):
                y[c] = average(sums[c], step)

    return avgpool
