"""A network's products, tile by tile, by microkernels that the loops of this CPU cannot call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from minires.kernels.engine import Engine, Program
from minires.kernels.epilogue import SCALARS
from minires.kernels.microkernel import Microkernel
from minires.kernels.operators import FORMATS, OPS, UNWATCHED, compile_network

Array = npt.NDArray[Any]
# Computes tiles: a microkernel; operands (tiles, 13) int64, with addresses; scalars; and the arrays
# that the addresses lie in.
RunTiles = Callable[[Microkernel, Array, list[float], list[Array]], None]


def _owner(array: Array) -> Array:
    """Find the memory that an array is a part of, with what lies behind it."""
    return array if array.base is None else _owner(array.base)


def _operands(step: Any, kernel: Microkernel, size: int) -> Array:
    """List the operands of all tiles of a step, as the loops around the microkernel have them."""
    rows, columns = kernel.rows, kernel.columns
    calls = []
    for panel in range(step["panels"]):
        w, column = step["w"] + panel * step["panel_bytes"], panel * columns
        residual = step["residual"] + size * column if step["residual"] else 0
        bias, m, y = step["bias"] + 4 * column, step["m"] + 4 * column, step["y"] + size * column
        for tile in range(step["rows"]):
            table = 4 * rows * tile
            x = step["x"], step["x_offsets"] + table
            along = step["runs"], step["groups"], step["run_stride"]
            later = w, 0
            calls.append([*x, w, *along, *later, bias, m, residual, y, step["y_offsets"] + table])
    return np.array(calls, np.int64)


def tile_by_tile(engine: Engine, run_tiles: RunTiles) -> Callable[..., None]:
    """Make what runs a program's steps: products by `run_tiles`, all else by code for this CPU."""
    form, isa = FORMATS[engine.precision], engine.isa

    def multiply(step: Any, program: Program, epilogue: str, size: int) -> None:
        kernel = Microkernel.of(isa, form.operands, epilogue)
        held = [*program.memory, program.logits]
        held += [array for packed in engine.packed.values() for array in packed]
        gemms = [planned.gemm for planned in program.plan.steps if planned.gemm]
        held += [array for gemm in gemms for array in (gemm.x_offsets, gemm.y_offsets)]
        operands = _operands(step, kernel, size)
        owners = {id(_owner(array)): _owner(array) for array in held}
        used = []
        for array in owners.values():
            begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
            if np.any((operands >= begin) & (operands < end)):
                used.append(array)
        run_tiles(kernel, operands, [step[name] for name in SCALARS], used)

    def execute(
        steps: Array, ticks: Array, first: int, last: int, threads: int, _worked: Array = UNWATCHED
    ) -> None:
        program = next(p for p in engine.programs.values() if p.steps is steps)
        for i in range(first, last):
            if steps[i]["op"] == OPS["conv"]:
                multiply(steps[i], program, form.epilogue, engine.tiling.item)
            elif steps[i]["op"] == OPS["linear"]:
                multiply(steps[i], program, form.last_epilogue, 4)
            else:
                others = compile_network(engine.precision, "generic")
                others(steps, ticks, i, i + 1, threads)

    return execute
