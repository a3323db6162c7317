"""The network as a table: shapes, parameters and multiply-adds, without running it."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from minires.errors import MiniresError
from minires.layers import Layer, Shape

# Of an activation, by the precision, as compiled kernels keep it.
ACTIVATION_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int8-simulated": 4}


class SummaryRow(NamedTuple):
    """One layer of `summarize`."""

    name: str
    op: str
    output_shape: Shape
    parameters: int
    macs: int


def summarize(
    layers: Sequence[Layer], height: int = 224, width: int = 224, batch: int = 1
) -> list[SummaryRow]:
    """Work out each layer's output shape, parameters and multiply-adds, in the order they run."""
    shapes: dict[str, Shape] = {}
    rows = []
    for layer in layers:
        x = shapes[layer.inputs[0]] if layer.inputs else (batch, height, width, 3)
        y = shapes[layer.name] = layer.output_shape(x)
        rows.append(SummaryRow(layer.name, layer.op, y, layer.parameters, layer.macs(y)))
    return rows


def format_summary(rows: list[SummaryRow]) -> str:
    """Lay the rows out as text, with names above and the totals at the end."""
    total = SummaryRow("total", "", (), sum(r.parameters for r in rows), sum(r.macs for r in rows))
    lines = [f"{'name':<22}{'operator':<10}{'output (NHWC)':<22}{'parameters':>12}{'MACs':>16}"]
    for name, op, shape, parameters, macs in [*rows, total]:
        sizes = " x ".join(map(str, shape))
        lines.append(f"{name:<22}{op:<10}{sizes:<22}{parameters:>12,}{macs:>16,}")
    return "\n".join(lines)


def format_edges(layers: Sequence[Layer], saturated: Mapping[str, float]) -> str:
    """Lay out the range, scale and zero point of each edge of an INT8 network as text.

    `saturated` has the share of an edge's values that were outside its range in calibration, if it
    is known. A layer whose output stays float32 has no line.
    """
    lines = [f"{'edge':<22}{'range':<24}{'scale':>12}{'zero point':>12}{'saturated':>12}"]
    for layer in layers:
        if layer.qparams:
            scale, zero_point = layer.qparams
            ends = f"{-zero_point * scale:.4g} to {(255 - zero_point) * scale:.4g}"
            share = f"{saturated[layer.name]:.4%}" if layer.name in saturated else ""
            lines.append(f"{layer.name:<22}{ends:<24}{scale:>12.5g}{zero_point:>12}{share:>12}")
    return "\n".join(lines)


@contextmanager
def enough_memory(layers: Sequence[Layer], shape: Shape, precision: str) -> Iterator[None]:
    """Make a MemoryError a MiniresError that tells how much an NCHW input takes at least."""
    try:
        yield
    except MemoryError as error:
        batch, _, height, width = shape
        rows = summarize(layers, height, width, batch)
        sizes = [ACTIVATION_BYTES[precision] * math.prod(row.output_shape) for row in rows]
        least = max(map(sum, itertools.pairwise(sizes)))  # a layer's input, and its output
        raise MiniresError(
            f"{batch} x {height} x {width} pixels take {least / 1e9:.1f} GB and more as "
            "activations, and so much memory is not there; take smaller images, or fewer at once"
        ) from error
