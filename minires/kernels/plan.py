"""A network laid out for one shape of input: buffers, steps, tiles. It knows no address and no CPU.

Activations lie in NHWC buffers with the padding of their reader already around them. So a row of
the GEMM begins where an output pixel's first tap lies, the next row of the kernel is a fixed
stride away, and no im2col matrix is ever written: im2col is implicit in the offsets.

What a machine's kernels ask for is a `Tiling`. What comes out is a `Plan`, whose places are
buffers and offsets in them; an engine gives the buffers memory, and runs the steps.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.layers import Array, Layer, Shape

LOGITS = -1  # in place of a buffer's number: where the classifier writes


@dataclass(frozen=True)
class Tiling:
    """The needs of a machine's kernels, for one precision."""

    item: int  # bytes of an activation
    group: int  # activations in 32 bits
    quantized: bool  # whether they are steps of a scale, with a zero point
    rows: int  # MR
    columns: int  # NR
    run: int = 1  # rows of a tile that have to lie a fixed step apart
    groups: int = 1  # of 32 bits along K, that are multiplied at once
    may_be_fewer: bool = False  # whether that may be only the groups of a run, where it has fewer
    pixel: int = 1  # values that a pixel of the image is filled up to a multiple of
    line: int = 1  # pixels that a row of the image is filled up to a multiple of
    near: int = 2**15  # bytes of the cache that a panel passes through, and a block stays in
    far: int = 2**18  # bytes of the next one
    room: int = 2**25  # bytes that a step leaves to the next while activations are large
    last: int = 2**25  # the same where weights are larger than activations

    def channels(self, layer: Layer) -> int:
        """Count the channels that an output has in memory: whole panels, but for images."""
        multiple = self.pixel if layer.op == "input" else self.columns
        return -(-layer.out_c // multiple) * multiple

    def step(self, layer: Layer, in_c: int) -> int:
        """Count the groups along K that are multiplied at once; in_c as it lies in memory."""
        groups = -(-layer.kernel * in_c // self.group)
        return min(groups, self.groups) if self.may_be_fewer else self.groups

    def packed_groups(self, layer: Layer, in_c: int) -> int:
        """Count the groups along K of one row of the kernel, filled up to whole steps."""
        step = self.step(layer, in_c)
        return -(-layer.kernel * in_c // (self.group * step)) * step

    def packed_bytes(self, layer: Layer, in_c: int) -> int:
        """Count the bytes of a layer's prepacked weights; in_c as it lies in memory."""
        if layer.op not in ("conv", "linear"):
            return 0
        panels = -(-layer.out_c // self.columns)
        return 4 * panels * self.columns * layer.kernel * self.packed_groups(layer, in_c)


class Buffer(NamedTuple):
    """Memory for an activation: (batch, h, w, channels), with padding around and spare behind it.

    Layers whose outputs are not alive together may share one.
    """

    shape: Shape  # with the padding, and channels filled up to whole panels
    pad: int  # pixels on each side
    fill: float | None  # the padding's value; None is the least that there is
    spare: int  # values behind it
    slack: int = 0  # pixels at the end of a row, behind the padding

    @property
    def height(self) -> int:
        """Of the activation itself."""
        return self.shape[1] - 2 * self.pad

    @property
    def width(self) -> int:
        """Of the activation itself."""
        return self.shape[2] - 2 * self.pad - self.slack

    def inside(self, memory: Any) -> Any:
        """View the activation itself, in an array of the buffer's shape."""
        pad = self.pad
        return memory[:, pad : pad + self.height, pad : pad + self.width]

    def strides(self, item: int) -> tuple[int, int, int]:
        """Tell the bytes from an image, a row and a pixel to the next."""
        _, height, width, channels = self.shape
        return item * height * width * channels, item * width * channels, item * channels


class Place(NamedTuple):
    """Where something begins: a buffer's number, and bytes."""

    buffer: int
    offset: int


class Gemm(NamedTuple):
    """The matrix product of a convolution or of the classifier, tile by tile.

    Rows that are missing in the last tile are the last row again, written behind the output.
    """

    x_offsets: Array  # int32: where each row begins, in bytes; and a tile's first row more
    y_offsets: Array  # int32: where it is written, in values; -1 is nowhere
    rows: int  # of tiles
    block: int  # of these, how many meet all panels before the next do
    panels: int
    panel_bytes: int
    runs: int  # of K: one for each row of the kernel
    groups: int  # of 32 bits, in a run
    run_stride: int  # bytes from a run to the next


@dataclass
class Step:
    """A fused operator, for a batch: where it reads and writes, and in which strides."""

    layer: Layer
    y: Place
    batch: int
    x: Place | None = None  # the image has no buffer
    residual: Place | None = None
    in_h: int = 1
    in_w: int = 1
    out_h: int = 1
    out_w: int = 1
    channels: int = 0  # of the output, in memory
    x_image: int = 0  # strides, in bytes
    x_row: int = 0
    y_image: int = 0
    y_row: int = 0
    gemm: Gemm | None = None


class Call(NamedTuple):
    """Steps that run one after another, for some of the images."""

    steps: slice
    images: slice


@dataclass
class Plan:
    """The buffers and steps for one shape of input."""

    shape: Shape  # NCHW
    tiling: Tiling
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)  # by layer: its buffer's number

    def __str__(self) -> str:
        size = self.tiling.item
        lines = [f"{'buffer':>6}  {'shape':<22}{'pad':>4}{'KiB':>9}"]
        for number, buffer in enumerate(self.buffers):
            kib = size * (math.prod(buffer.shape) + buffer.spare) / 1024
            shape = " x ".join(map(str, buffer.shape))
            lines.append(f"{number:>6}  {shape:<22}{buffer.pad:>4}{kib:>9.1f}")
        lines.append(
            f"{'step':<22}{'from':>6}{'to':>5}  {'M x N x K':<20}{'tiles':>12}{'block':>7}"
        )
        for step in self.steps:
            source = "" if step.x is None else str(step.x.buffer)
            line = f"{step.layer.name:<22}{source:>6}{step.y.buffer:>5}"
            if step.gemm:
                M = step.batch * step.out_h * step.out_w
                K = step.layer.kernel**2 * step.layer.in_c
                tiles = f"{step.gemm.rows} x {step.gemm.panels}"
                product = f"{M} x {step.layer.out_c} x {K}"
                line += f"  {product:<20}{tiles:>12}{step.gemm.block:>7}"
            lines.append(line)
        return "\n".join(lines)


class Division(NamedTuple):
    """How many images of a size go through the network at once: few, and from a step on more.

    In the first steps activations are large, and those of a few images fill a cache. In the last
    ones weights are, which each call reads anew.
    """

    late: int  # that step; 0 where there is none
    few: int
    more: int


def lay_out(layers: Sequence[Layer], shape: Shape, tiling: Tiling, division: Division) -> Plan:
    """Lay a network out for images of a shape, NCHW, that go through together.

    Buffers hold a few images in the early steps, and all of them from the late step on. A batch
    whose offsets do not fit 31 bits raises `MiniresError`.
    """
    batch, channels, height, width = shape
    few = max(n for n in range(1, min(division.few, batch) + 1) if batch % n == 0)
    split = 0 if few == batch else division.late
    plan = Plan(shape, tiling)
    pool = _Pool(plan, layers)
    shapes: dict[str, Shape] = {}
    for at, layer in enumerate(layers):
        x = shapes[layer.inputs[0]][1:] if layer.inputs else (height, width, channels)
        # The last of the early steps collects all images.
        y = layer.output_shape((few if at < split - 1 else batch, *x))
        shapes[layer.name] = y = (y[0], 1, 1, y[1]) if len(y) == 2 else y
        if layer.op != "linear":
            # An output may take its residual's place: a tile reads there, then it writes.
            pool.let_go(layer, layer.inputs[1:])
            pool.take(layer, y)
            pool.let_go(layer, layer.inputs[:1])
        plan.steps.append(_step(layer, plan))
    stretches = [(slice(0, split), few), (slice(split, len(layers)), batch)]
    for steps, images in stretches if split else stretches[1:]:
        plan.calls += [Call(steps, slice(at, at + images)) for at in range(0, batch, images)]
    return plan


class _Pool:
    """Buffers, and which of them are free for another output of their shape."""

    def __init__(self, plan: Plan, layers: Sequence[Layer]) -> None:
        self.plan = plan
        self.stride = max(layer.stride for layer in layers)
        self.readers = {
            layer.name: [r for r in layers if layer.name in r.inputs] for layer in layers
        }
        self.free: defaultdict[Buffer, list[int]] = defaultdict(list)

    def take(self, layer: Layer, shape: Shape) -> None:
        """Find a buffer for an output, or make one."""
        plan = self.plan
        buffer = self._like(layer, shape)
        if self.free[buffer]:
            plan.outputs[layer.name] = self.free[buffer].pop()
        else:
            plan.outputs[layer.name] = len(plan.buffers)
            plan.buffers.append(buffer)

    def let_go(self, reader: Layer, names: Sequence[str]) -> None:
        """Free the outputs that have no later reader than this one."""
        for name in names:
            if self.readers[name][-1] is reader:
                number = self.plan.outputs[name]
                self.free[self.plan.buffers[number]].append(number)

    def _like(self, layer: Layer, shape: Shape) -> Buffer:
        """Describe the buffer for an output: its shape, its padding, and the padding's value."""
        tiling = self.plan.tiling
        readers = self.readers[layer.name]
        multiplied = [r for r in readers if r.inputs[0] == layer.name]
        pad = max((r.padding for r in multiplied), default=0)
        fill: float | None = 0.0
        if any(reader.op == "maxpool" for reader in readers):
            fill = None  # never wins
        elif tiling.quantized and layer.qparams:
            fill = float(layer.qparams.zero_point)
        batch, height, width, _ = shape
        slack = -(width + 2 * pad) % tiling.line if layer.op == "input" else 0
        padded = (batch, height + 2 * pad, width + 2 * pad + slack, tiling.channels(layer))
        # Behind it, a row for the last tile's overhang; or, where a run of rows is loaded whole, up
        # to all of its rows but one, and less than 64 bytes of K.
        spare = padded[-1]
        if tiling.run > 1:
            spare = (tiling.run - 1) * self.stride * padded[-1] + 64
        return Buffer(padded, pad, fill if pad else 0.0, spare, slack)


def _first_pixel(buffer: Buffer, item: int, padding: int = 0) -> int:
    """Tell the bytes to the first pixel, or to the first one of `padding` around it."""
    _, row, pixel = buffer.strides(item)
    return (buffer.pad - padding) * (row + pixel)


def _step(layer: Layer, plan: Plan) -> Step:
    """Say where a layer reads and writes."""
    item = plan.tiling.item
    if layer.op == "linear":
        batch = plan.buffers[plan.outputs[layer.inputs[0]]].shape[0]
        step = Step(layer, Place(LOGITS, 0), batch, channels=plan.tiling.channels(layer))
    else:
        number = plan.outputs[layer.name]
        y = plan.buffers[number]
        step = Step(layer, Place(number, _first_pixel(y, item)), y.shape[0], channels=y.shape[-1])
        step.out_h, step.out_w = y.height, y.width
        step.y_image, step.y_row, _ = y.strides(item)
    if layer.inputs:
        number = plan.outputs[layer.inputs[0]]
        x = plan.buffers[number]
        step.x = Place(number, _first_pixel(x, item, layer.padding))
        step.batch, step.in_h, step.in_w = x.shape[0], x.height, x.width
        step.x_image, step.x_row, _ = x.strides(item)
    if layer.inputs[1:]:
        number = plan.outputs[layer.inputs[1]]
        residual = plan.buffers[number]
        # A tile finds it by the offsets of its own output.
        assert residual.shape[1:] == plan.buffers[step.y.buffer].shape[1:]
        step.residual = Place(number, _first_pixel(residual, item))
    if layer.op in ("conv", "linear"):
        step.gemm = _gemm(step, plan)
    return step


def _gemm(step: Step, plan: Plan) -> Gemm:
    """Say where each row of the GEMM is read and written, and cut it into tiles."""
    layer = step.layer
    tiling = plan.tiling
    assert step.x is not None
    x = plan.buffers[step.x.buffer]
    image, row, pixel = x.strides(tiling.item)
    x_strides = [image, row * layer.stride, pixel * layer.stride]
    if step.y.buffer == LOGITS:
        y_strides = [step.channels, 0, 0]
        behind = plan.shape[0] * step.channels
    else:
        y = plan.buffers[step.y.buffer]
        y_strides = [stride // tiling.item for stride in y.strides(tiling.item)]
        # Behind these images: there others begin, if they are yet to be computed.
        assert step.batch == y.shape[0] or y.pad == 0
        behind = step.batch * y_strides[0] - step.y.offset // tiling.item
    pixels = np.indices((step.batch, step.out_h, step.out_w), np.int64).reshape(3, -1)
    x_rows = np.array(x_strides) @ pixels
    y_rows = np.array(y_strides) @ pixels
    if tiling.run > 1:
        line = step.out_w if layer.stride > 1 else len(x_rows)
        together = tiling.rows // tiling.run
        x_rows, y_rows = in_runs(x_rows, y_rows, x_strides[2], line, tiling.run, together)
    # What the last tile lacks is the last row again, and so is the first row of a tile after it.
    missing = -len(x_rows) % tiling.rows
    x_rows = np.pad(x_rows, (0, missing + 1), mode="edge")
    y_rows = np.pad(y_rows, (0, missing), constant_values=behind)
    if max(x_rows.max(initial=0), y_rows.max(initial=0)) >= 2**31:
        batch, _, height, width = plan.shape
        raise MiniresError(
            f"{batch} x {height} x {width} pixels are too large: an activation of 2 GB or more "
            "cannot be addressed; take smaller images, or fewer at once"
        )
    groups = tiling.packed_groups(layer, x.shape[-1])
    panels = -(-layer.out_c // tiling.columns)
    panel_bytes = 4 * tiling.columns * layer.kernel * groups
    rows = len(y_rows) // tiling.rows
    block = _block(tiling, rows, tiling.item * math.prod(x.shape), panels, panel_bytes)
    return Gemm(
        x_rows.astype(np.int32), y_rows.astype(np.int32), rows, block, panels, panel_bytes,
        layer.kernel, groups, row,
    )  # fmt: skip


def _block(tiling: Tiling, rows: int, x_bytes: int, panels: int, panel_bytes: int) -> int:
    """Choose how many rows of tiles meet all panels before the next rows do.

    Weights that the far cache has room for beside much else are read from there for each block,
    whose activations stay in the near one, by the side of a panel that passes. Others come from
    further away: then a block's activations stay in the far cache; or there is one block, if
    reading all of them for each panel is less.
    """
    # Rows of a 3x3 read mostly the same values; a 1x1 with a stride reads only a part.
    group_bytes = panel_bytes // tiling.columns  # of K, for one row
    bytes_of_row = min(group_bytes * tiling.rows, -(-x_bytes // rows))
    weights = panels * panel_bytes
    near = weights <= tiling.far // 4
    block = (tiling.near // 3 if near else tiling.far // 4) // bytes_of_row
    block = min(max(1, block), rows)
    fewer = weights * -(-rows // block) <= panels * rows * bytes_of_row
    return block if near or fewer else rows


def in_runs(
    x: Array, y: Array, step: int, line: int, run: int, together: int
) -> tuple[Array, Array]:
    """Arrange rows of a GEMM as matrix registers take them: a run at a time, a fixed step apart.

    x and y are the rows' offsets, in the order of pixels; from one x to the next it is `step`
    bytes. Places that lie between the last pixel of a line and the first of the next count as rows
    too, whose y is -1: they are multiplied, but not written. After `line` rows a run may not go
    on: with a stride of 2 half of all places would lie between two lines. A tile has so many runs
    `together`.
    """
    lines = x.reshape(-1, line)
    place = (lines - lines[:, :1]) // step
    first = np.arange(len(lines))[:, None] * (place.max() // run + 1)
    number = (first + place // run).ravel()
    place = place.ravel()
    used, number = np.unique(number, return_inverse=True)  # a run may hold nothing but padding
    shape = (-(-len(used) // together) * together, run)
    in_x = np.zeros(shape, x.dtype)
    in_y = np.full(shape, -1, y.dtype)
    place %= run
    in_x[number] = (x - place * step)[:, None] + np.arange(run) * step
    in_x[len(used) :] = in_x[len(used) - 1]
    in_y[number, place] = y
    return in_x.ravel(), in_y.ravel()
