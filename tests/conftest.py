"""Fixtures shared by all tests, and where the optional test data lies."""

import os
import runpy
from pathlib import Path
from typing import Any

# Tests that run beside each other have a core each. Else the threads of one would wait for cores
# that the other's are on. It comes before NumPy, which counts cores when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    _worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, {_cores[_worker % len(_cores)]})

import numpy as np
import pytest

from minires.kernels.cpu import get_num_threads


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, not even where a test forgets to name its weights."""
    monkeypatch.setenv("MINIRES_OFFLINE", "1")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share work out even where there is one core, as for each of several test processes."""
    if get_num_threads() == 1:
        monkeypatch.setenv("NUMBA_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real weights and photographs, which are not part of the project."""
    if "MINIRES_TEST_DATA" not in os.environ:
        pytest.skip("MINIRES_TEST_DATA is not set: no real weights, no photographs")
    return Path(os.environ["MINIRES_TEST_DATA"])


@pytest.fixture(scope="session")
def real_state_dict(test_data: Path) -> dict[str, Any]:
    """A real ImageNet ResNet-50 under torchvision's key names, float32."""
    unpack = runpy.run_path(str(test_data / "weights" / "unpack.py"))
    return {key: np.ascontiguousarray(value) for key, value in unpack["state_dict"]().items()}


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of minires's that begins empty: in it the real network is made INT8 only once."""
    return tmp_path_factory.mktemp("real-cache")


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """Compile what most tests need before the first one, which would else be told of it.

    The code stays where it is when a test gives minires another cache, and is there the next time.
    Where compiling takes minutes, MINIRES_TEST_PRECISIONS names fewer.
    """
    from minires.kernels.compile import code_dir
    from minires.kernels.isa import choose_isa
    from minires.kernels.operators import compile_network

    os.environ["NUMBA_CACHE_DIR"] = str(code_dir())
    most = "fp32 int8 int8-simulated"
    for precision in os.environ.get("MINIRES_TEST_PRECISIONS", most).split():
        compile_network(precision, choose_isa().name)
