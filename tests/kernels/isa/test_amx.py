"""AMX's tiles on any CPU: what is written for its registers, run by arrays that stand for them."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from minires.kernels import engine as engine_module
from minires.kernels.engine import Engine
from minires.kernels.isa import ISA
from minires.kernels.microkernel import Microkernel
from minires.layers import OPERATORS
from minires.reference import gemm_u8s8_ref
from tests.comparing import assert_same
from tests.int8_oracle import ConvCase, conv_cases
from tests.kernels.isa import emulated_amx
from tests.kernels.test_engine import broken_pixels, with_residual
from tests.kernels.test_microkernel import run_tile, run_tiles
from tests.tile_by_tile import tile_by_tile


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[ISA]:
    """AMX's instruction set, emulated; it must not have been asked for what a CPU refuses."""
    isa = emulated_amx.emulate(monkeypatch)
    monkeypatch.setattr(engine_module, "available_isas", lambda: [isa])
    monkeypatch.setattr(engine_module, "compile_network", lambda *_: None)
    yield isa
    assert emulated_amx.refused == []


@pytest.mark.parametrize("K", [4, 24, 64, 100, 192])
def test_runs_of_any_length_are_exact(amx: ISA, K: int) -> None:
    """Shorter than a register, as long, and longer."""
    kernel = Microkernel.of(amx, "u8s8", "store")
    random = np.random.RandomState(K)
    x = random.randint(0, 256, (kernel.rows, K)).astype(np.uint8)
    w = random.randint(-128, 128, (kernel.columns, K)).astype(np.int8)
    y, zeros = np.zeros((kernel.rows, len(w)), np.int32), np.zeros(len(w), np.int32)
    run_tile(kernel, x, w, zeros, zeros, y)
    assert_same(y, gemm_u8s8_ref(x, w.T))


def test_no_pixel_counts_that_is_not_under_the_kernel(amx: ISA) -> None:
    """A row of the kernel has 14 groups of two bfloat16, and a register would have 16."""
    layers, params, x, meets = broken_pixels()
    engine = Engine(layers, {"conv": params}, "bf16", amx, threads=1)
    engine.execute = tile_by_tile(engine, run_tiles)
    y = engine.run((1, 3, *x.shape[1:3]), layers[1], x)
    assert np.array_equal(~np.isfinite(y).all(3), meets)
    assert np.array_equal(~np.isfinite(y).any(3), meets)


@given(conv_cases())
@settings(
    derandomize=True,
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it is the same for all cases
)
def test_int8_conv_has_the_definitions_bits(amx: ISA, case: ConvCase) -> None:
    layers, params, residual = with_residual(case)
    engine = Engine(layers, params, "int8", amx, threads=1)
    engine.execute = tile_by_tile(engine, run_tiles)
    batch, height, width, channels = case.x.shape
    y = engine.run((batch, channels, height, width), layers[-1], case.x, residual)
    assert_same(y, OPERATORS["int8"]["conv"](layers[-1], params["conv"], case.x, residual))


def test_what_a_cpu_refuses_is_noticed(amx: ISA) -> None:
    """Here x has six groups in a row, and weights have 16 rows."""
    layout = np.zeros(64, np.uint8)
    layout[[0, 16, 18, 20]], layout[48:51] = (1, 64, 24, 64), 16
    emulated_amx.COMPILED["llvm.x86.ldtilecfg"](layout.ctypes.data)
    assert emulated_amx.refused == []
    emulated_amx.COMPILED["llvm.x86.tdpbusd"](0, 1, 2)
    assert "do not fit" in emulated_amx.refused.pop()
