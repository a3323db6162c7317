"""Matrix instructions whose sums are a vector: of two rows by two columns.

ARM's `usmmla` takes a vector of activations (64 bits of each of two rows) and one of weights (64
bits of each of two columns), and adds all products to four sums. So it makes twice as many products
as an instruction that has the same vectors, and a row for every lane of one.

A tile keeps its sums in vectors, two rows by two columns in each. Where the sums begin they are
made of vectors that hold four columns of a row; where the epilogue takes them they become such
vectors again.
"""

from typing import Any

from llvmlite import ir

from minires.kernels.ir import (
    I8,
    I32,
    ROOM_AHEAD,
    Builder,
    Value,
    after,
    load,
    prefetch,
    take_lanes,
    vector,
)


def _join(builder: Builder, a: Value, b: Value, lanes: range | list[int]) -> Value:
    """Make a vector of lanes of two, which are numbered through."""
    picked = ir.Constant(vector(I32, len(lanes)), [I32(lane) for lane in lanes])
    return builder.shuffle_vector(a, b, picked)


def multiply(
    builder: Builder,
    kernel: Any,  # a `Microkernel`
    panel: Value,
    bases: list[Value],
    at: Value,
    acc: tuple[Value, ...],  # of two rows all columns, then of the next two
) -> list[Value]:
    """Multiply 64 bits of each row: those `at` bytes behind its base."""
    columns, size = kernel.columns, 8 * kernel.columns
    prefetch(builder, panel, ROOM_AHEAD, size)
    rows = [load(builder, builder.add(base, at), vector(I8, 8)) for base in bases]
    of_rows = [_join(builder, a, b, range(16)) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    following = list(acc)
    for pair in range(columns // 2):
        column = load(builder, after(builder, panel, 16 * pair), vector(I8, 16))
        for i, a in enumerate(of_rows):
            total = i * columns // 2 + pair
            following[total] = kernel.instruction.emit(builder, acc[total], a, column)
    return following


def by_columns(builder: Builder, begin: list[Value]) -> list[Value]:
    """Turn what a row's sums begin with into what those of two rows do."""
    return [take_lanes(builder, value, first, 2, 2) for value in begin for first in (0, 2)]


def by_rows(builder: Builder, acc: list[Value], vectors: int) -> list[Value]:
    """Turn finished sums into vectors of each row, one row after another."""
    of_rows = []
    for start in range(0, len(acc), 2 * vectors):
        halves = acc[start : start + 2 * vectors]
        for lanes in ([0, 1, 4, 5], [2, 3, 6, 7]):
            of_rows += [
                _join(builder, a, b, lanes) for a, b in zip(halves[::2], halves[1::2], strict=True)
            ]
    return of_rows
