"""Compile for one instruction set and no other, and keep the code on the disk.

Numba compiles for the CPU that it runs on. Asked for less, say to show what AVX2 alone can do,
it needs to be held to that: else LLVM sees a multiplication and an addition, knows an instruction
that does both, and takes it. So each instruction set has a code generator of its own here.

Compiled code is kept with a checksum. Numba's own cache trusts its files, and a damaged one ends
the process, or Python's unpickler, or nothing at all until the wrong result shows. Files are read
only where nobody but this user, or root, can have written them.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite.binding import ffi
from numba import njit
from numba.core import config, serialize
from numba.core.caching import NullCache
from numba.core.codegen import JITCPUCodegen, get_host_cpu_features
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from minires.cache import cache_dir, remove_oldest
from minires.errors import MiniresError
from minires.kernels.isa import ISA
from minires.notice import tell

ON_X86 = platform.machine() in ("x86_64", "AMD64")
# Of other families nothing is known here: there Numba's own choice stands.
KNOWN = ON_X86 or platform.machine() in ("aarch64", "arm64")
X86_64 = ("64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2")  # what every one has, as LLVM says
CHECKSUM = hashlib.sha256().digest_size  # bytes of it, at the beginning of a file
KEPT = 64  # files of compiled code: when there are more, the oldest go


class _Codegen(JITCPUCodegen):
    """Numba's code generator, which takes an instruction set for all that the CPU has.

    On x86 LLVM still knows which CPU it is: in what order instructions are best put is a matter of
    its pipelines. But of what it can do, everything is taken away, and the set given back.
    """

    def __init__(self, isa: ISA) -> None:
        self._isa = isa
        super().__init__("minires." + isa.name)

    def _get_host_cpu_name(self) -> str:
        # LLVM does not list all that an ARM's name implies, so it could not be taken away.
        return str(super()._get_host_cpu_name()) if ON_X86 else "generic"

    def _get_host_cpu_features(self) -> str:
        known = [word[1:] for word in get_host_cpu_features().split(",")] if ON_X86 else []
        kept = [*(X86_64 if ON_X86 else ()), *sorted(self._isa.features)]
        return ",".join([*(f"-{name}" for name in known), *(f"+{name}" for name in kept)])


_codegens: dict[str, _Codegen] = {}  # by the instruction set's name


def _hold_compilers() -> None:
    """Wait until no other thread is inside Numba's compiler, or LLVM."""
    global_compiler_lock.acquire()
    ffi.lib._lock.__enter__()


def _let_go_of_compilers() -> None:
    ffi.lib._lock.__exit__(None, None, None)
    global_compiler_lock.release()


# A child that is forked while another thread compiles would wait for that thread, which it has
# not got. So a fork waits until nobody compiles.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_hold_compilers,
        after_in_parent=_let_go_of_compilers,
        after_in_child=_let_go_of_compilers,
    )


@contextlib.contextmanager
def _held_to(isa: ISA) -> Iterator[None]:
    """Have Numba compile for an instruction set, and nobody else compile meanwhile."""
    with global_compiler_lock:
        context = cpu_target.target_context
        context.refresh()  # Numba's own functions are compiled for the CPU as it is
        host = context._internal_codegen
        if KNOWN:
            if isa.name not in _codegens:
                _codegens[isa.name] = _Codegen(isa)
            context._internal_codegen = _codegens[isa.name]
        try:
            yield
        finally:
            context._internal_codegen = host


def compile_for(
    isa: ISA,  # a CPU that lacks some of it can compile for it, too
    function: Callable[..., Any],
    signature: Any,
    what: str = "",  # tells functions of the same name apart
    notice: str = "",  # printed to stderr where there is something to compile
    keep: bool = True,  # on the disk; such code cannot be listed afterwards
) -> Any:
    """Compile a function for a signature, or load the code that was compiled before.

    All that the function refers to must be in this folder, or be told by `what`. The compiled
    function lets go of Python's global lock while it runs.
    """
    if config.DISABLE_JIT:  # then Python would run the placeholders of compiled code
        raise MiniresError(
            "NUMBA_DISABLE_JIT keeps the kernels from compiling; unset it, or ask for backend numpy"
        )
    name_apart(function, f"{what}/{isa.name}/{source_hash()}")
    compiled = njit(nogil=True)(function)
    with _held_to(isa):
        if keep:
            compiled._cache = _CodeCache(function, notice)
        compiled.compile(signature)
    compiled.disable_compile()
    return compiled


def name_apart(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Give a function, of which there are several, a name of its own; before it is compiled.

    Linking goes by name, and Numba's names differ in how many functions the process had compiled
    before. Of two that come from the cache, each the first of its process, one would silently run
    in the other's place.
    """
    function.__qualname__ = f"{function.__name__}_{re.sub(r'[^a-z0-9]+', '_', what)}"
    return function


@functools.cache
def source_hash(folder: Path = Path(__file__).parent) -> str:
    """Hash the files of this folder: whatever changes in one may change the code."""
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class _CodeCache(NullCache):
    """A function's compiled code in a file: a checksum, and behind it Numba's own record.

    Nothing here can fail. What cannot be read, or is not what was written, is not there; what
    cannot be written is not kept.
    """

    def __init__(self, function: Callable[..., Any], notice: str) -> None:
        self._function = function
        self._notice = notice

    def _file(self, signature: Any, context: Any) -> tuple[Path, bytes]:
        """Name the file, and all that its code depends on."""
        versions = sys.version, numba.__version__, llvmlite.__version__
        target = context.codegen().magic_tuple()
        key = repr((versions, target, self._function.__qualname__, str(signature))).encode()
        name = f"{self._function.__name__}-{hashlib.sha256(key).hexdigest()[:32]}.code"
        return code_dir() / name, key

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Load the code; None where there is none that is whole."""
        file, key = self._file(sig, target_context)
        try:
            with open(file, "rb") as opened:
                content = opened.read() if _is_trusted(os.fstat(opened.fileno())) else b""
            checksum, code = content[:CHECKSUM], content[CHECKSUM:]
            if checksum == hashlib.sha256(key + code).digest():
                return CompileResult._rebuild(target_context, *pickle.loads(code))
        except Exception:  # whatever it is, compiling anew is right
            pass
        if self._notice:
            tell(self._notice)
        return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Keep the code: a whole file takes its place, or none."""
        file, key = self._file(sig, data.target_context)
        code = serialize.dumps(data._reduce())
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
                try:
                    new.write(hashlib.sha256(key + code).digest() + code)
                    new.close()
                    os.chmod(new.name, 0o644)  # so that it serves other users, too
                    os.replace(new.name, file)
                except OSError:
                    os.unlink(new.name)
            remove_oldest(file.parent, "*.code", KEPT)


def _is_trusted(status: os.stat_result) -> bool:
    """Tell whether only this user, or root, can have written a file: its code will run here.

    A folder may be shared, as one is that root has filled. Where others may write to it, they can
    only put files there that are theirs.
    """
    if not hasattr(os, "geteuid"):  # on Windows folders of others are closed
        return True
    ours = status.st_uid in (0, os.geteuid())
    return ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def code_dir() -> Path:
    """Find the folder of compiled code: NUMBA_CACHE_DIR, or in minires's cache."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return Path(chosen) if chosen else cache_dir() / "kernels"
