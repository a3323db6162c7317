"""How many threads: what is set, what the environment says, and the same bits from any number."""

import os
import subprocess
import sys

import numpy as np
import pytest

import minires
from minires.errors import MiniresError
from minires.kernels import threads
from minires.model import ResNet50
from tests.comparing import assert_same
from tests.seeded_weights import seeded_input, seeded_state_dict

MOST = threads._most()


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_all_unless_told() -> None:
    assert minires.get_num_threads() == MOST


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("1,2", 1), ("9999", MOST), ("no", MOST)])
def test_the_environment_is_heeded(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert minires.get_num_threads() == count


def test_what_is_set_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    minires.set_num_threads(MOST)
    assert minires.get_num_threads() == MOST


@pytest.mark.parametrize("count", [0, -1, 2.0, "1", MOST + 1])
def test_what_cannot_be_had_is_refused(count: object) -> None:
    with pytest.raises(MiniresError, match=f"threads cannot be had; wanted 1 to {MOST}"):
        minires.set_num_threads(count)  # type: ignore[arg-type]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    model = ResNet50.from_state_dict(seeded_state_dict())
    model.backend = "numba"
    x, answers = seeded_input((1, 3, 32, 32)), []
    for count in range(1, MOST + 1):
        minires.set_num_threads(count)
        answers.append(model(x))
    for answer in answers:
        assert_same(answer, answers[0])


PROGRAM = """
import numpy as np, sys
from minires.kernels.engine import Engine
from tests.kernels.test_engine import model_of
from tests.seeded_weights import seeded_input
model = model_of("int8")
engine = Engine(model.layers, model.params, "int8")
np.save(sys.argv[1], engine(seeded_input((2, 3, 40, 40))))
print(engine.isa.name)
"""
RESTRICTIONS = {  # what the process is told, and what it then uses
    "generic by name": ({"MINIRES_ISA": "generic"}, "generic"),
    "generic CPU": ({"NUMBA_CPU_NAME": "generic"}, "generic"),
    "workqueue": ({"NUMBA_THREADING_LAYER": "workqueue"}, ""),
    "one thread": ({"NUMBA_NUM_THREADS": "1"}, ""),
    "avx2": ({"MINIRES_ISA": "avx2"}, "avx2"),
    "avx512": ({"MINIRES_ISA": "avx512"}, "avx512"),
    "avx512vnni": ({"MINIRES_ISA": "avx512vnni"}, "avx512vnni"),
    "amx": ({"MINIRES_ISA": "amx"}, "amx"),
}


@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_every_path_gives_the_same_bits(restriction: str, tmp_path: "os.PathLike[str]") -> None:
    from minires.kernels.simd import available_isas
    from tests.kernels.test_engine import model_of

    environment, isa = RESTRICTIONS[restriction]
    if isa and isa not in [available.name for available in available_isas()]:
        pytest.skip(f"this CPU lacks {isa}")
    file = os.path.join(tmp_path, "logits.npy")
    command = [sys.executable, "-c", PROGRAM, file]
    changed = {**os.environ, **environment}
    result = subprocess.run(command, env=changed, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == isa or not isa
    assert_same(np.load(file), model_of("int8")(seeded_input((2, 3, 40, 40))))
