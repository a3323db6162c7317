"""Networks on ARM: packed and planned here, and multiplied by emulated microkernels."""

import numpy as np
import pytest

from minires.kernels import engine as engine_module
from minires.kernels.engine import Engine
from minires.kernels.isa import ISAS
from tests.arm import emulator
from tests.comparing import assert_same
from tests.kernels.test_engine import broken_pixels, model_of
from tests.seeded_weights import seeded_input
from tests.tile_by_tile import tile_by_tile

pytestmark = pytest.mark.skipif(
    not emulator.is_there(), reason="wants an x86 with qemu-user-static and ARM's binutils"
)


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
    engine.execute = tile_by_tile(engine, emulator.run_tiles)
    y = engine.run((1, 3, *x.shape[1:3]), layers[1], x)
    assert np.array_equal(~np.isfinite(y).all(3), meets)
    assert np.array_equal(~np.isfinite(y).any(3), meets)


@pytest.mark.parametrize("name", ["neon", "neon-dotprod", "neon-i8mm", "neon-mmla"])
def test_an_int8_network_has_numpys_bits(name: str) -> None:
    model, x = model_of("int8"), seeded_input((1, 3, 32, 35))
    engine = Engine(model.layers, model.params, "int8", ISAS[name], threads=1)
    engine.execute = tile_by_tile(engine, emulator.run_tiles)
    expected = model(x)
    assert expected.any()
    assert_same(engine(x), expected)
