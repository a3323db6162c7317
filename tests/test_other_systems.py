"""minires where the system has not what Linux has: simulated in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What Windows lacks goes before minires is imported. Its Sleep(0) is stood for by usleep.
WITHOUT = """
import ctypes, mmap, os, sys
from pathlib import Path
from types import SimpleNamespace
import numba, numpy, platformdirs  # for this system
from PIL import Image
for module in ("fcntl", "resource"):
    sys.modules[module] = None
for name in ("fork", "register_at_fork", "sched_getaffinity", "geteuid", "getuid"):
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in dir(mmap) if name.startswith("MADV_")]:
    delattr(mmap, name)
real_glob = Path.glob
Path.glob = lambda self, *words: [] if str(self).startswith("/sys") else real_glob(self, *words)

asked = []
def library(name):
    asked.append(name)
    return SimpleNamespace(Sleep=ctypes.CDLL(None).usleep)
sys.platform, ctypes.WinDLL = "win32", library
from minires.kernels import sync
sys.platform = "linux"  # libraries would look for Windows's own modules
assert (asked, sync.NAP) == (["kernel32"], 0)
"""
RUN = """
import minires
from minires.kernels import cpu
from minires.quantize.default import calibration_photographs
cpu.set_num_threads(cpu.get_num_threads())
model = minires.resnet50("CIFAR10", "int8")  # made, and kept in the cache
again = minires.resnet50("CIFAR10", "int8")  # read from there
x = model.preprocess(calibration_photographs()[0])
y = model(x)
assert numpy.array_equal(y, again(x))
again.backend = "numpy"
assert numpy.array_equal(y, again(x))
assert len(list(Path(sys.argv[1]).glob("*.safetensors"))) == 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it is Windows")
def test_the_int8_network_runs_where_windows_has_less(tmp_path: Path) -> None:
    cache = tmp_path / "ein Ordner für 猫"
    changed = {"MINIRES_CACHE": str(cache), "PYTHONIOENCODING": "cp1252", "NUMBA_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT + RUN, str(cache)],
        env={**os.environ, **changed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
