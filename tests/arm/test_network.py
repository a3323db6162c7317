"""Networks on ARM: packed and planned here, and multiplied by emulated microkernels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minires.kernels import engine as engine_module
from minires.kernels.engine import Engine, Program
from minires.kernels.epilogue import SCALARS
from minires.kernels.isa import ISAS
from minires.kernels.microkernel import Microkernel
from minires.kernels.operators import FORMATS, OPS, compile_network
from tests.arm import emulator
from tests.comparing import assert_same
from tests.kernels.test_engine import broken_pixels, model_of
from tests.seeded_weights import seeded_input

Array = npt.NDArray[Any]
pytestmark = pytest.mark.skipif(
    not emulator.is_there(), reason="wants an x86 with qemu-user-static and ARM's binutils"
)


def owner(array: Array) -> Array:
    """Find the memory that an array is a part of, with what lies behind it."""
    return array if array.base is None else owner(array.base)


def operands_of(step: Any, rows: int, columns: int, size: int) -> Array:
    """List the operands of all tiles of a step, as the loops around the microkernel have them."""
    calls = []
    for panel in range(step["panels"]):
        w, column = step["w"] + panel * step["panel_bytes"], panel * columns
        residual = step["residual"] + size * column if step["residual"] else 0
        bias, m, y = step["bias"] + 4 * column, step["m"] + 4 * column, step["y"] + size * column
        for tile in range(step["rows"]):
            table = 4 * rows * tile
            x = step["x"], step["x_offsets"] + table
            along = step["taps"], step["groups"], step["tap_stride"]
            later = w, 0
            calls.append([*x, w, *along, *later, bias, m, residual, y, step["y_offsets"] + table])
    return np.array(calls, np.int64)


def emulated(engine: Engine) -> Callable[..., None]:
    """Make what runs a program's steps: the products as on ARM, all else by code for this CPU."""
    form, isa = FORMATS[engine.precision], engine.isa

    def multiply(step: Any, program: Program, epilogue: str, size: int) -> None:
        kernel = Microkernel.of(isa, form.operands, epilogue)
        held = [*program.memory, program.logits]
        held += [array for packed in engine.packed.values() for array in packed]
        gemms = [planned.gemm for planned in program.plan.steps if planned.gemm]
        held += [array for gemm in gemms for array in (gemm.x_offsets, gemm.y_offsets)]
        operands = operands_of(step, kernel.rows, kernel.columns, size)
        owners = {id(owner(array)): owner(array) for array in held}
        used = []
        for array in owners.values():
            begin, end = array.ctypes.data, array.ctypes.data + array.nbytes
            if np.any((operands >= begin) & (operands < end)):
                used.append(array)
        emulator.run_tiles(kernel, operands, [step[name] for name in SCALARS], used)

    def execute(steps: Array, ticks: Array, first: int, last: int, threads: int) -> None:
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


@pytest.fixture(autouse=True)
def _every_set_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "available_isas", lambda: list(ISAS.values()))
    monkeypatch.setattr(engine_module, "compile_network", lambda *_: None)


@pytest.mark.parametrize(
    ("precision", "name"), [("fp32", "neon"), ("bf16", "neon"), ("bf16", "neon-bf16")]
)
def test_no_pixel_counts_that_is_not_under_the_kernel(precision: str, name: str) -> None:
    """Four floats are loaded at once, or as many bfloat16: that is no multiple of the kernel's."""
    layers, params, x, meets = broken_pixels()
    engine = Engine(layers, {"conv": params}, precision, ISAS[name], threads=1)
    engine.execute = emulated(engine)
    y = engine.run((1, 3, *x.shape[1:3]), layers[1], x)
    assert np.array_equal(~np.isfinite(y).all(3), meets)
    assert np.array_equal(~np.isfinite(y).any(3), meets)


@pytest.mark.parametrize("name", ["neon", "neon-dotprod", "neon-i8mm", "neon-mmla"])
def test_an_int8_network_has_numpys_bits(name: str) -> None:
    model, x = model_of("int8"), seeded_input((1, 3, 32, 35))
    engine = Engine(model.layers, model.params, "int8", ISAS[name], threads=1)
    engine.execute = emulated(engine)
    expected = model(x)
    assert expected.any()
    assert_same(engine(x), expected)
