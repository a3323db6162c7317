"""What must not end a process, done in processes of their own: a crash is then an exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGINNING = """
import copy, gc, pickle, sys
from operator import setitem
import numpy as np
from minires.errors import MiniresError
from minires.model import ResNet50
from minires.quantize import calibrate, quantize_model
from tests.seeded_weights import seeded_input, seeded_state_dict

x = seeded_input((2, 3, 40, 40))

def network(precision):
    model = ResNet50.from_state_dict(seeded_state_dict(), {"name": "seeded"})
    if precision.startswith("int8"):
        model = quantize_model(model, calibrate(model, [seeded_input((1, 3, 64, 64), 9)], "minmax"))
    model.precision, model.backend = precision, "numba"
    return model

def refused(error, action):
    try:
        action()
    except error as told:
        return str(told)
    raise AssertionError(f"no {error.__name__} was raised")
"""
SCRIPTS = {
    "copy, edit and change a network that has run": """
model = network(sys.argv[1])
before = model(x)
with open("model.pickle", "wb") as file:
    pickle.dump(model, file)
np.save("before.npy", before)

# Copies outlive the network that they were made of.
for make in (copy.copy, copy.deepcopy):
    other = make(model)
    assert other is not model
    del model
    gc.collect()
    waste = [np.full(10**6, 7, np.uint8) for _ in range(50)]  # lies where the first one lay
    assert np.array_equal(other(x), before)
    model = other

# Nothing can be written into.
model.backend = "numpy"
defined = model(x)
p = model.params["fc"]
arrays = [part for part in p if isinstance(part, np.ndarray)]
assert len(arrays) >= 2
for array in arrays:
    refused(ValueError, lambda: setitem(array, ..., 0))
refused(TypeError, lambda: setitem(model.params, "fc", p))
refused(TypeError, lambda: setitem(model.layers, 0, model.layers[1]))
refused(AttributeError, lambda: setattr(model, "params", {}))
refused(AttributeError, lambda: setattr(model, "layers", ()))
refused(AttributeError, lambda: setattr(model["conv1"], "relu", False))
assert np.array_equal(model(x), defined)
model.backend = "numba"

# What it cannot do is refused, and it goes on as it was.
others = {"fp32": "int8", "bf16": "int8-simulated", "int8": "bf16", "int8-simulated": "fp32"}
other = others[sys.argv[1]]
told = refused(MiniresError, lambda: setattr(model, "precision", other))
assert f'minires.resnet50(weights, precision="{other}")' in told, told
for name in ("int7", None, ["int8"]):
    told = refused(MiniresError, lambda: setattr(model, "precision", name))
    assert "there is fp32, bf16, fp16, tf32, int8-simulated, int8" in told, told
for name in ("nump", "gpu", None, ["numpy"]):
    told = refused(MiniresError, lambda: setattr(model, "backend", name))
    assert "there is numpy, numba" in told, told
assert (model.precision, model.backend) == (sys.argv[1], "numba")
assert np.array_equal(model(x), before)
""",
    "run what another process has pickled": """
with open("model.pickle", "rb") as file:
    model = pickle.load(file)
assert (model.precision, model.backend) == (sys.argv[1], "numba")
assert np.array_equal(model(x), np.load("before.npy"))
refused(ValueError, lambda: setitem(model.params["fc"][1], 0, 1))
""",
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-simulated"])
def test_nothing_that_is_done_to_a_network_ends_the_process(precision: str, tmp_path: Path) -> None:
    for name, script in SCRIPTS.items():
        result = subprocess.run(
            [sys.executable, "-c", BEGINNING + script, precision],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{name}: status {result.returncode}\n{result.stderr}"
