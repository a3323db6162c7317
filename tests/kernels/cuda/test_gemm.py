"""Each kernel is compiled and assembled for the GPUs it is meant for: no GPU is needed for that."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="kernels for a GPU need numba-cuda: pip install .[cuda]")

from numba import cuda

from minires.kernels.cuda.driver import AMPERE, OLDEST
from minires.kernels.cuda.epilogue import ITEM
from minires.kernels.cuda.gemm import LARGE, SIGNATURE, SPLIT, TILES, Gemm, gemm_function
from minires.kernels.cuda.instructions import INSTRUCTIONS, SETS
from minires.kernels.cuda.operators import FORMATS, operators

CAPABILITIES = [OLDEST, AMPERE, (9, 0)]
OUTPUT = {form.operands: form.out for form in FORMATS.values()}


def ptxas() -> str:
    """Find NVIDIA's assembler: in the wheel nvidia-cuda-nvcc, or where CUDA is installed."""
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = next(map(str, wheels.glob("*/bin/ptxas")), shutil.which("ptxas"))
    if found is None:
        pytest.skip("there is no ptxas: pip install nvidia-cuda-nvcc")
    return found


def assemble(function: Any, signature: Any, capability: tuple[int, int], folder: Path) -> str:
    """Compile and assemble a kernel; return its PTX. It may use no memory for its registers."""
    text, _ = cuda.compile_ptx(function, signature, cc=capability)
    source = folder / "kernel.ptx"
    source.write_text(text)
    arch = f"-arch=sm_{capability[0]}{capability[1]}"
    done = subprocess.run(
        [ptxas(), arch, "-v", str(source), "-o", str(folder / "kernel.cubin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert spilled
    assert not any(spilled), done.stderr
    return text


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_kernel_multiplies_by_its_instruction(
    name: str, tile: Any, capability: tuple[int, int], tmp_path: Path
) -> None:
    instruction = INSTRUCTIONS[name]
    if capability < instruction.capability:
        pytest.skip(f"{name} is newer")
    turing = capability < AMPERE
    gemm = Gemm(name, tile, OUTPUT[instruction.operands], residual=True, turing=turing)
    text = assemble(gemm_function(gemm), SIGNATURE, capability, tmp_path)
    assert gemm.name in text
    # For a step of 64 bytes of K; the compiler may make several steps one round of its loop.
    fragments = tile.down * tile.across
    times = 2 * fragments * instruction.times if instruction.warp else 4 * 16 * fragments
    found = text.count(f"{instruction.mnemonic} ")
    assert found > 0
    assert found % times == 0
    assert ("cp.async" in text) is not turing
    assert text.count("fma.rn") == (found if name == "fma" else 0), "something was contracted"


@pytest.mark.parametrize("name", [name for name in INSTRUCTIONS if name != "fma"])
def test_a_splitting_kernel_tells_logits(name: str, tmp_path: Path) -> None:
    capability = max(OLDEST, INSTRUCTIONS[name].capability)
    gemm = Gemm(name, SPLIT, "logits", residual=False, turing=capability < AMPERE)
    assert "atom.global.inc" in assemble(gemm_function(gemm), SIGNATURE, capability, tmp_path)


def choose_oldest(operands: str) -> tuple[int, int]:
    """Tell the oldest GPU that multiplies these on its tensor cores."""
    has = [i.capability for i in INSTRUCTIONS.values() if i.operands == operands]
    return max(OLDEST, min(has))


@pytest.mark.parametrize("precision", FORMATS)
def test_the_other_operators_assemble(precision: str, tmp_path: Path) -> None:
    capability = choose_oldest(FORMATS[precision].operands)
    for function, signature in operators(FORMATS[precision]).values():
        text = assemble(function, signature, capability, tmp_path)
        assert "fma.rn" not in text


def test_names_say_what_a_kernel_is() -> None:
    assert Gemm("mma-u8s8", LARGE, "u8", True).name == "gemm_mma_u8s8_128x128_u8_residual"
    assert set(OUTPUT.values()) <= set(ITEM)
    assert {i.name for s in SETS.values() for i in s.values()} == set(INSTRUCTIONS)
