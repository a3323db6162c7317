"""NVIDIA's assembler, where it is installed: what it makes of PTX. No GPU is needed."""

import functools
import importlib.util
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

OLD, NEW = (8, 0), (9, 0)  # compute capabilities: the oldest that minires runs on, and an H100's


class Assembled(NamedTuple):
    """What a kernel became."""

    ptx: str
    registers: int  # of a thread
    spilled: int  # bytes a thread that registers could not hold, written and read


@functools.cache
def find_ptxas() -> str | None:
    """Find the assembler in the wheel nvidia-cuda-nvcc, or on the path."""
    try:
        files = metadata.files("nvidia-cuda-nvcc") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [str(file.locate()) for file in files if file.name == "ptxas"]
    return found[0] if found else shutil.which("ptxas")


def compile_and_assemble(
    function: Any, signature: Any, capability: tuple[int, int], folder: Path, **options: Any
) -> Assembled:
    """Compile a kernel to PTX and assemble it, or skip the test where that cannot be done."""
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed")
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("there is no ptxas: it comes with nvidia-cuda-nvcc")
    from numba import cuda

    ptx, _ = cuda.compile_ptx(function, signature, cc=capability, **options)
    file = folder / "kernel.ptx"
    file.write_text(ptx)
    arch = "sm_{}{}".format(*capability)
    words = [ptxas, "-v", "-arch", arch, str(file), "-o", str(folder / "kernel.cubin")]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    registers = re.search(r"Used (\d+) registers", told.stderr)
    spills = re.findall(r"(\d+) bytes spill", told.stderr)
    assert registers, told.stderr
    assert len(spills) == 2, told.stderr
    return Assembled(ptx, int(registers[1]), sum(map(int, spills)))
