"""Rung `panels`; with an instruction of the CPU's own, it is also the rung named after that.

The weights are cut into panels, a few vectors wide, and laid out in the order in which they are
read. A tile's sums are vectors, which stay in registers for all of K. Python cannot name a vector,
so the tile is a Numba intrinsic: a function that writes LLVM IR.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from minires.kernels.ir import F32, I32, I64, after, constant, load, loop, splat, store, vector
from minires.kernels.isa import Instruction
from minires.kernels.pack import aligned, make_up
from minires.ladder.product import Product, compile_rung, fill_up
from minires.layers import Array


def prepare(
    product: Product, instruction: Instruction, tile: tuple[int, int]
) -> Callable[[Array], Array]:
    """Pack the weights, and compile loops around a tile of (rows, vectors of columns)."""
    rows, vectors = tile
    lanes = product.isa.lanes
    group = product.form.group
    columns = vectors * lanes
    words = fill_up(product.weight, columns, group).view(np.uint32)  # (N, groups)
    panels = len(words) // columns
    groups = words.shape[1]
    w = aligned((panels, groups, columns), np.uint32)
    w[...] = words.reshape(panels, columns, groups).transpose(0, 2, 1)
    bits = vector(I32, lanes)  # 32 bits of K, a group, for each column
    sums = vector(I32 if product.sums is np.int32 else F32, lanes)

    @intrinsic
    def multiply_tile(_: Any, a: Any, a_row: Any, w: Any, groups: Any, c: Any, c_row: Any) -> Any:
        def codegen(context: Any, builder: Any, _: Any, addresses: Any) -> Any:
            a, a_row, w, groups, c, c_row = addresses

            def step(a: Any, w: Any, *acc: Any) -> list[Any]:
                places = [after(builder, w, 4 * lanes * v) for v in range(vectors)]
                of_w = [load(builder, place, bits) for place in places]
                following = []
                for i, total in enumerate(acc):
                    place = builder.add(a, builder.mul(a_row, I64(i // vectors)))
                    of_a = splat(builder, load(builder, place, I32), lanes)
                    of_a = instruction.prepare(builder, of_a)
                    following.append(instruction.emit(builder, total, of_a, of_w[i % vectors]))
                return [after(builder, a, 4), after(builder, w, 4 * columns), *following]

            zeros = [constant(sums, 0)] * (rows * vectors)
            _, _, *acc = loop(builder, groups, [a, w, *zeros], step)
            for i, total in enumerate(acc):
                place = builder.add(c, builder.mul(c_row, I64(i // vectors)))
                store(builder, total, after(builder, place, 4 * lanes * (i % vectors)))
            return context.get_dummy_value()

        return types.none(*[types.int64] * 6), codegen

    def gemm(a: Array, w: Array, c: Array) -> None:
        M, groups = len(a), w.shape[1]
        for panel in range(len(w)):
            w_at = w[panel].ctypes.data
            for m in range(0, M, rows):
                row = min(m, M - rows)  # the last tile repeats rows of the one before
                a_at, c_at = a[row:].ctypes.data, c[row:, panel * columns :].ctypes.data
                multiply_tile(a_at, a.strides[0], w_at, groups, c_at, c.strides[0])

    compiled = compile_rung(product, gemm, product.packed, f"{instruction.name}/{rows}x{columns}")

    def multiply(a: Array) -> Array:
        M, N = len(a), len(product.weight)
        a = fill_up(a, rows if rows > M else 1, group)  # a tile has at least its rows
        c = np.empty((len(a), panels * columns), product.sums)
        compiled(a, w, c)
        return make_up(instruction, c[:M, :N], product.weight)

    return multiply
