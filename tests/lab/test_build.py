"""The modules of WebAssembly: what LLVM makes of the kernels, and that the committed are that."""

import importlib.util
import re
import sys

import pytest
from llvmlite import binding

from minires.errors import MiniresError
from minires.kernels.microkernel import Microkernel
from minires.lab import build

MADE_WITH = 22  # the LLVM of the committed modules: another one may order instructions differently
KERNELS = [
    pytest.param(module, name, kernel, id=f"{module}.{name}")
    for module, kernels in build.MODULES.items()
    for name, kernel in kernels.items()
]


@pytest.mark.parametrize(("module", "name", "kernel"), KERNELS)
def test_a_kernel_has_its_instruction(module: str, name: str, kernel: Microkernel) -> None:
    _, assembly = build.compile_module({name: kernel})
    own = {"mul, add": (r"f32x4\.mul", r"f32x4\.add")}  # of every CPU, so it knows other names
    for wanted in own.get(kernel.instruction.name, kernel.instruction.mnemonics):
        assert re.search(wanted, assembly)
    assert ("relaxed" in assembly) == (module == "relaxed")
    # A function of C would be imported, and a page has none.
    assert set(re.findall(r"^\tcall\t(\w+)", assembly, re.M)) == {f"{name}_tile"}
    if kernel.epilogue == "requantize":
        assert "f32x4.nearest" in assembly  # half to even, and not lane by lane


@pytest.mark.parametrize("module", build.MODULES)
def test_the_committed_module_is_what_the_source_makes(module: str) -> None:
    if binding.llvm_version_info[0] != MADE_WITH:
        pytest.skip(f"the modules were made with LLVM {MADE_WITH}, and this one is another")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang, which links, is not installed")
    kernels = build.MODULES[module]
    made = build.link(build.compile_module(kernels)[0], list(kernels))
    assert made == (build.ENGINE / f"{module}.wasm").read_bytes(), "run python -m minires.lab.build"


@pytest.mark.parametrize("module", build.MODULES)
def test_the_modules_are_small_and_export_their_kernels(module: str) -> None:
    code = (build.ENGINE / f"{module}.wasm").read_bytes()
    assert code.startswith(b"\0asm")
    assert len(code) < 10_000
    assert all(name.encode() in code for name in build.MODULES[module])


def test_a_missing_linker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LINKER", (sys.executable, "-m", "no_such_package"))
    with pytest.raises(MiniresError, match="pip install ziglang"):
        build.link(b"", ["conv_f32"])
