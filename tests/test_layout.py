"""The rules that keep the package readable: who imports whom, and how long it may get."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import minires

PACKAGE = Path(minires.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
FORWARD_PASS = ["model.py", "layers.py", "reference.py"]
READING_PATH = [*FORWARD_PASS, "errors.py", "images.py", "preprocess.py"]
LONGEST = 60  # lines of a function
MOST_PARAMETERS = 8
FRAMEWORKS = {"torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorflow", "scipy"}


def imports(source: str) -> Iterator[str]:
    """Name every module that `source` imports, wherever in it; names from modules as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here, so that they can be read"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_by(name: str) -> set[str]:
    return set(imports(FILES[name].read_text(encoding="utf-8")))


def is_part_of(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import os.path as path, json
if path:
    from torch import nn as layers, Tensor
def late():
    import llvmlite.ir
"""
    assert set(imports(source)) == {"os.path", "json", "torch.nn", "torch.Tensor", "llvmlite.ir"}
    assert is_part_of("torch.nn", "onnx", "torch")
    assert not is_part_of("torchvision", "torch")


def test_the_rules_have_files_to_look_at() -> None:
    assert set(READING_PATH) <= set(FILES)


def test_reference_imports_numpy_alone() -> None:
    modules = imported_by("reference.py")
    assert [module for module in modules if not is_part_of(module, "numpy", "typing")] == []


@pytest.mark.parametrize("name", FILES)
def test_no_framework_is_imported(name: str) -> None:
    assert [module for module in imported_by(name) if is_part_of(module, *FRAMEWORKS)] == []


# What writes LLVM IR, and what hands it to LLVM.
KERNELS = ("ir.py", "isa/", "microkernel.py", "epilogue.py", "sync.py", "compile.py")
MAKES_CODE = (
    *(f"kernels/{name}" for name in (*KERNELS, "cuda/")), "measure/spin.py", "lab/build.py"
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(MAKES_CODE)])
def test_llvmlite_is_imported_where_code_is_made(name: str) -> None:
    assert [module for module in imported_by(name) if is_part_of(module, "llvmlite")] == []


def reached_from(name: str) -> set[str]:
    """Follow the package's own imports; the answer has every file of minires that is read."""
    reached, waiting = set(), [name]
    while waiting:
        file = waiting.pop()
        if file in reached:
            continue
        reached.add(file)
        for module in imported_by(file):
            if is_part_of(module, "minires"):
                # minires.a.b is a/b.py, or b in a.py, or a/b/__init__.py, or b in a/__init__.py
                path = "/".join(module.split(".")[1:])
                parent = path.rpartition("/")[0]
                candidates = [f"{path}.py", f"{path}/__init__.py", f"{parent}.py",
                              f"{parent}/__init__.py".lstrip("/")]  # fmt: skip
                waiting.append(next(c for c in candidates if c in FILES))
    return reached


def test_imports_are_followed() -> None:
    reached = reached_from("model.py")
    assert {"layers.py", "errors.py", "reference.py"} <= reached
    assert "reference.py" in reached_from("quantize/__init__.py")


@pytest.mark.parametrize("name", READING_PATH)
def test_the_reading_path_is_self_contained(name: str) -> None:
    tools = ("cli", "download", "kernels", "measure", "quantize", "transfer")
    assert [file for file in reached_from(name) if file.startswith(tools)] == []


def lines(*names: str) -> int:
    return sum(len(FILES[name].read_text(encoding="utf-8").splitlines()) for name in names)


def test_one_forward_pass_can_be_read_in_one_sitting() -> None:
    """Straight down: the network, what a layer does, and the definitions it does it with."""
    assert lines(*FORWARD_PASS) <= 800


def functions(source: str) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))


# A rung's loops get arrays and counts one by one, because they are compiled.
TAKES_ADDRESSES = {"gemm"}


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short_and_take_little(name: str) -> None:
    for function in functions(FILES[name].read_text(encoding="utf-8")):
        assert (function.end_lineno or 0) - function.lineno <= LONGEST, function.name
        parameters = [*function.args.args, *function.args.kwonlyargs]
        few = len(parameters) <= MOST_PARAMETERS
        assert few or function.name in TAKES_ADDRESSES, function.name


@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_read_in_one_go(name: str) -> None:
    assert lines(name) <= (200 if name.startswith("kernels/isa/") else 400)


# Rooms of the package that a reader can leave out, and how many lines each may have.
ROOMS = {
    "doctor.py": 380,
    "kernels/cuda/": 1_860,
    "kernels/isa/arm.py": 190,
    "kernels/isa/pairs.py": 80,
    "kernels/isa/wasm.py": 90,
    "lab/": 500,
    "ladder/": 1_730,
    "measure/gpu": 490,
}


def test_the_package_can_be_read_in_one_afternoon() -> None:
    """What comes in pushes something out, or asks for room with a reason."""
    assert lines(*(name for name in FILES if not name.startswith(tuple(ROOMS)))) <= 13_130


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_budget_of_its_own(room: str) -> None:
    found = lines(*(name for name in FILES if name.startswith(room)))
    assert 0.8 * ROOMS[room] < found <= ROOMS[room]


NO_RUNGS = {"__init__.py", "climb.py", "product.py", "convolution.py", "words.py", "show.py"}
RUNGS = sorted(
    name for name, path in FILES.items() if name.startswith("ladder/") and path.name not in NO_RUNGS
)


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_is_short_and_can_be_read_without_the_others(name: str) -> None:
    """It has at most 60 lines, from its first function on; above that it says what it needs."""
    assert {"ladder/loops.py", "ladder/panels.py", "ladder/cuda/mma.py"} <= set(RUNGS)
    source = FILES[name].read_text(encoding="utf-8")
    first = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    assert 10 < len(source.splitlines()) - first.lineno + 1 <= 60
    others = [f"minires.{other.removesuffix('.py').replace('/', '.')}" for other in RUNGS]
    assert [module for module in imported_by(name) if is_part_of(module, *others)] == []


MEASURING = ("measure/", "ladder/")


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(MEASURING)])
def test_the_network_needs_nothing_that_measures_it(name: str) -> None:
    tools = ("minires.measure", "minires.ladder")
    entrances = ("__init__.py", "cli.py", "doctor.py")
    tells = ("quantize/commands.py", "quantize/sensitivity.py")  # these draw what they found
    found = [module for module in imported_by(name) if is_part_of(module, *tools)]
    assert name in (*entrances, *tells) or found == []
