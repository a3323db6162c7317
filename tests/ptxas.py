"""NVIDIA's assembler, where it is installed: what it makes of PTX. No GPU is needed."""

import functools
import importlib.util
import re
import shutil
import struct
import subprocess
from collections import Counter
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
    opcodes: Counter[int]  # of the card's own instructions: how often each stands there


@functools.cache
def find_ptxas() -> str | None:
    """Find the assembler in the wheel nvidia-cuda-nvcc, or on the path."""
    try:
        files = metadata.files("nvidia-cuda-nvcc") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [str(file.locate()) for file in files if file.name == "ptxas"]
    return found[0] if found else shutil.which("ptxas")


def count_opcodes(cubin: bytes) -> Counter[int]:
    """Count the instructions in an ELF file: 16 bytes each, whose first 12 bits say which."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    found: Counter[int] = Counter()
    for name, _, _, _, start, length in sections:
        if cubin[sections[names][4] + name :].startswith(b".text."):
            words = range(start, start + length, 16)
            found.update(struct.unpack_from("<H", cubin, at)[0] & 0xFFF for at in words)
    return found


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
    cubin = folder / "kernel.cubin"
    words = [ptxas, "-v", "-arch", arch, str(file), "-o", str(cubin)]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    registers = re.search(r"Used (\d+) registers", told.stderr)
    spills = re.findall(r"(\d+) bytes spill", told.stderr)
    assert registers, told.stderr
    assert len(spills) == 2, told.stderr
    opcodes = count_opcodes(cubin.read_bytes())
    return Assembled(ptx, int(registers[1]), sum(map(int, spills)), opcodes)
