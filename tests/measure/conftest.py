"""Seeded networks, compiled; and roofs that take no time to measure."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from minires.measure import profiler, roofline
from minires.measure.machine import Roofs
from minires.measure.peak import Bandwidth
from minires.model import ResNet50
from minires.preprocess import Preset
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from tests.making_files import save_photograph
from tests.seeded_weights import seeded_input, seeded_state_dict

ROOFS = Roofs(100.0, [Bandwidth("L2", 2**18, 50.0, 100.0, 2), Bandwidth("memory", 2**26, 9, 10, 2)])
PRESET = Preset(32, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
META = {"name": "seeded", "categories": [f"class {i}" for i in range(1000)], "preset": PRESET}


@pytest.fixture(scope="session")
def models() -> Mapping[str, ResNet50]:
    """Networks in fp32 and int8; whoever changes one puts it back."""
    fp32 = ResNet50.from_state_dict(seeded_state_dict(), META)
    int8 = quantize_model(fp32, calibrate(fp32, [seeded_input((1, 3, 64, 64), 9)], "minmax"))
    int8.precision = "int8"
    for model in (fp32, int8):
        model.backend = "numba"
    return {"fp32": fp32, "int8": int8}


@pytest.fixture(autouse=True)
def _roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "known_roofs", lambda _: ROOFS)
    monkeypatch.setattr(roofline, "measure_roofs", lambda _: ROOFS)


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small file."""
    path: Path = tmp_path_factory.mktemp("photograph") / "photograph.jpg"
    save_photograph(path, 0)
    return path.read_bytes()
