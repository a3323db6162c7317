"""Compiled code: for one instruction set and no other; kept on the disk, and used if whole."""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from numba import types

from minires.errors import MiniresError
from minires.kernels import compile as module
from minires.kernels import operators
from minires.kernels.compile import compile_for
from minires.kernels.ir import X86
from minires.kernels.isa import ISA, ISAS, available_isas, choose_isa

# What the GNU assembler calls an extension, where it is not LLVM's word without the hyphen.
GNU = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avxvnni": "avx_vnni"}


OF_X86 = [isa for isa in ISAS.values() if isa.family == X86]


@pytest.fixture
def assembler() -> str:
    found = shutil.which("as")
    if not found or not module.ON_X86:
        pytest.skip("there is no GNU assembler for x86 here")
    return found


def assemble(text: str, isa: ISA, assembler: str, scratch: Path) -> str:
    """Assemble for x86-64 with an instruction set's extensions alone; tell what is beyond them."""
    extensions = [GNU.get(name, name.replace("-", "_")) for name in sorted(isa.features)]
    source, result = scratch / "network.s", scratch / "network.o"
    source.write_text(text, encoding="ascii")
    command = [assembler, "-march=" + "+".join(["generic64", *extensions]), "-o", result, source]
    return subprocess.run(command, text=True, capture_output=True, check=False).stderr


def listing(isa: ISA, precision: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    """Compile a whole network, the loops and all, and list what it is made of."""
    compiled: list[Any] = []

    def compile_and_tell(*arguments: Any) -> Any:
        compiled.append(compile_for(*arguments))
        return compiled[0]

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    monkeypatch.setattr(operators, "compile_for", compile_and_tell)
    operators.compile_network.__wrapped__(precision, isa.name)
    (text,) = compiled[0].inspect_asm().values()
    return str(text)


@pytest.mark.parametrize("isa", OF_X86, ids=lambda isa: isa.name)
def test_a_network_has_no_instruction_beyond_its_set(
    isa: ISA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, assembler: str
) -> None:
    """Of every set, on every x86: compiling needs no CPU that has it."""
    text = listing(isa, "int8", monkeypatch, tmp_path)
    assert assemble(text, isa, assembler, tmp_path) == ""
    # And it has those that make it what it is.
    (mnemonic, *_) = isa.instructions["u8s8"].mnemonics
    assert len(re.findall(rf"\t{mnemonic}", text)) >= 4


@pytest.mark.parametrize("cpu", ["znver4", "sapphirerapids"])
@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_nor_on_a_cpu_that_has_more(
    name: str, cpu: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, assembler: str
) -> None:
    """LLVM knows that these have VNNI, and would make vpdpwssd of a vpmaddwd and a vpaddd."""
    monkeypatch.setattr(module, "_codegens", {})
    monkeypatch.setattr(module._Codegen, "_get_host_cpu_name", lambda _: cpu)
    text = listing(ISAS[name], "int8", monkeypatch, tmp_path)
    assert assemble(text, ISAS[name], assembler, tmp_path) == ""
    assert "vpmaddwd" in text


def test_the_assembler_notices_what_is_beyond_a_set(tmp_path: Path, assembler: str) -> None:
    vnni = "vpdpbusd %zmm0, %zmm1, %zmm2\n"
    assert assemble(vnni, ISAS["avx512vnni"], assembler, tmp_path) == ""
    assert "vpdpbusd" in assemble(vnni, ISAS["avx512"], assembler, tmp_path)
    assert "vpdpwssd" in assemble(vnni.replace("bus", "wss"), ISAS["avx512"], assembler, tmp_path)
    assert "vpaddd" in assemble(
        "vpaddd %ymm0, %ymm1, %ymm2\n", ISAS["generic"], assembler, tmp_path
    )


# The cache


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], float]:
    """Compile and run a small function, as another process would: from the disk, or anew."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "code"))

    def run() -> float:
        def half(x: float) -> float:
            return x / 2

        compiled = compile_for(choose_isa(), half, types.float64(types.float64), "", "compiling")
        return float(compiled(3.0))

    return run


def the_file(folder: Path) -> Path:
    (file,) = (folder / "code").iterdir()
    return file


def test_code_is_compiled_once(half: Any, tmp_path: Path, capsys: Any) -> None:
    assert half() == 1.5
    assert capsys.readouterr().err == "compiling\n"
    before = the_file(tmp_path).stat()
    assert half() == 1.5
    assert capsys.readouterr().err == ""
    assert the_file(tmp_path).stat() == before


def flip(at: float) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        place = int(at * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return damage


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "foreign": lambda content: b"\x80\x04N." * 100,
    "bit of the checksum": flip(0),
    "bit in the middle": flip(0.5),
    "last bit": flip(1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_code_is_compiled_anew(damage: str, half: Any, tmp_path: Path, capsys: Any) -> None:
    half()
    file = the_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    capsys.readouterr()
    assert half() == 1.5
    assert capsys.readouterr().err == "compiling\n"
    half()
    assert capsys.readouterr().err == "", "the damaged file was replaced"


def test_code_of_another_function_is_not_taken(half: Any, tmp_path: Path, capsys: Any) -> None:
    """Not even where its checksum holds: a file's name goes into that."""

    def third(x: float) -> float:
        return x / 3

    half()
    file = the_file(tmp_path)
    compile_for(choose_isa(), third, types.float64(types.float64))
    (other,) = set((tmp_path / "code").iterdir()) - {file}
    other.replace(file)
    capsys.readouterr()
    assert half() == 1.5
    assert capsys.readouterr().err == "compiling\n"


# Who may have written it


@pytest.mark.parametrize(
    ("owner", "mode", "trusted"),
    [(1000, 0o600, True), (0, 0o644, True), (1001, 0o600, False), (1001, 0o644, False),
     (1000, 0o664, False), (0, 0o646, False)],
)  # fmt: skip
def test_code_of_this_user_or_of_root_is_trusted(
    owner: int, mode: int, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000, raising=False)
    status = os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    assert module._is_trusted(status) == trusted


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_code_serves_other_users_and_is_theirs_alone_to_change(
    half: Any, tmp_path: Path, capsys: Any
) -> None:
    half()
    file = the_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o644
    before = file.stat().st_mtime_ns
    file.chmod(0o444)
    file.parent.chmod(0o555)  # a shared cache, of which nothing can be changed
    capsys.readouterr()
    assert half() == 1.5
    assert capsys.readouterr().err == ""
    file.parent.chmod(0o755)
    file.chmod(0o666)
    assert half() == 1.5
    assert capsys.readouterr().err == "compiling\n", "anybody may have written it"
    assert file.stat().st_mode & 0o777 == 0o644
    assert file.stat().st_mtime_ns > before


@pytest.mark.parametrize("obstacle", ["a file", "unreadable", "a folder of that name"])
def test_a_cache_that_cannot_be_used_is_done_without(
    obstacle: str, half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file":
        (tmp_path / "code").write_text("not a folder")
    else:
        half()
        file = the_file(tmp_path)
        file.unlink()
        file.mkdir()
        if obstacle == "unreadable":  # to others than root; who may do all
            file.chmod(0)
    assert half() == 1.5
    assert not list(tmp_path.rglob("tmp*")), "a half-written file was left"


def test_a_full_disk_leaves_nothing_behind(
    half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", replace)
    assert half() == 1.5
    assert list((tmp_path / "code").iterdir()) == []


def test_what_could_not_be_written_is_closed_before_it_is_removed(
    half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no open file."""
    make, unlink, made = module.tempfile.NamedTemporaryFile, os.unlink, []

    def full(**given: Any) -> Any:
        made.append(make(**given))
        monkeypatch.setattr(made[0], "write", no_space)
        return made[0]

    def remove(path: str) -> None:
        assert made[0].file.closed
        unlink(path)

    monkeypatch.setattr(module.tempfile, "NamedTemporaryFile", full)
    monkeypatch.setattr(module.os, "unlink", remove)
    assert half() == 1.5
    assert made
    assert list((tmp_path / "code").iterdir()) == []


def test_a_folder_may_have_any_name(
    half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "ein Ordner für 猫" / "code"))
    assert half() == half() == 1.5
    assert capsys.readouterr().err == "compiling\n"


def test_old_code_goes_when_there_is_much(
    half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    folder = tmp_path / "code"
    folder.mkdir()
    for i in range(5):
        (folder / f"old{i}.code").write_bytes(b"")
        os.utime(folder / f"old{i}.code", (i, i))
    half()
    assert {file.name[:4] for file in folder.iterdir()} == {"old3", "old4", "half"}


def test_a_network_from_a_damaged_cache_computes_the_same_bits(tmp_path: Path) -> None:
    """In processes of their own: damaged code used to end them."""
    program = """if True:
        import numpy as np, sys
        from minires.kernels.engine import Engine
        from minires.layers import Layer
        pool = Layer("pool", "maxpool", ("x",), 8, 8, kernel=2, stride=2)
        engine = Engine([Layer("x", "input", (), 8, 8), pool], {}, "fp32")
        x = np.arange(128, dtype=np.float32).reshape(1, 4, 4, 8)
        assert engine.run((1, 8, 4, 4), pool, x).ravel()[0] == 40
    """
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "MINIRES_ISA": "generic"}

    def run() -> str:
        command = [sys.executable, "-c", program]
        process = subprocess.run(command, env=environment, text=True, capture_output=True)
        assert process.returncode == 0, process.stderr
        return process.stderr

    assert "compiling the fp32 kernels" in run()
    assert run() == ""
    (file,) = tmp_path.iterdir()
    file.write_bytes(flip(0.4)(file.read_bytes()))
    assert "compiling the fp32 kernels" in run()
    assert run() == ""


def test_without_a_compiler_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """NUMBA_DISABLE_JIT would have Python run what stands for compiled code."""
    monkeypatch.setattr(module.config, "DISABLE_JIT", 1)
    for precision in ("fp32", "int8"):
        with pytest.raises(MiniresError, match=r"NUMBA_DISABLE_JIT.*backend numpy"):
            operators.compile_network.__wrapped__(precision, choose_isa().name)


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stderr", [None, "closed", "full"])
def test_a_notice_that_cannot_be_given_is_no_error(
    stderr: str | None, half: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    file: Any = None
    if stderr:
        file = io.StringIO()
        file.close()
    if stderr == "full":
        file = SimpleNamespace(write=no_space, flush=no_space)
    monkeypatch.setattr(sys, "stderr", file)
    assert half() == 1.5
    assert capsys.readouterr().out == "", "stdout is for answers"


def test_there_is_a_set_for_this_machine() -> None:
    assert choose_isa() in available_isas()
