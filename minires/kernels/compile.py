"""Compile for one instruction set and no other, and keep the code on the disk.

Numba compiles for the CPU that it runs on. If you want less, say to show how fast AVX2 alone is,
LLVM must be held to that: otherwise it sees a multiplication and an addition, knows an instruction
that does both, and uses it. So each instruction set has a code generator of its own here.

Compiled code is kept with a checksum. Numba's own cache trusts its files: a damaged one may end the
process, fail in Python's unpickler, or quietly compute wrong results. A file is read only if nobody
but this user, or root, can have written it.
"""

import contextlib
import functools
import hashlib
import os
import pickle
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
from minires.kernels.ir import ARM, FAMILY, X86
from minires.kernels.isa import ISA
from minires.notice import tell

ON_X86 = FAMILY == X86
KNOWN = FAMILY in (X86, ARM)  # on other families of CPUs Numba's own choice of features stands
X86_64 = ("64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2")  # every such CPU has these
CHECKSUM = hashlib.sha256().digest_size  # bytes of the checksum that a file begins with
KEPT = 64  # files of compiled code: when there are more, the oldest are removed


class _Codegen(JITCPUCodegen):
    """Numba's code generator, made to believe that the CPU has one instruction set only.

    On x86 LLVM still knows which CPU it is, because the best order of instructions depends on the
    CPU's pipelines. But all features are switched off, and those of the set are switched on again.
    """

    def __init__(self, isa: ISA) -> None:
        self._isa = isa
        super().__init__("minires." + isa.name)

    def _get_host_cpu_name(self) -> str:
        # An ARM's name implies features that LLVM does not list, so they cannot be switched off.
        return str(super()._get_host_cpu_name()) if ON_X86 else "generic"

    def _get_host_cpu_features(self) -> str:
        known = [word[1:] for word in get_host_cpu_features().split(",")] if ON_X86 else []
        kept = [*(X86_64 if ON_X86 else ()), *sorted(self._isa.features)]
        return ",".join([*(f"-{name}" for name in known), *(f"+{name}" for name in kept)])


_codegens: dict[str, _Codegen] = {}  # by the instruction set's name


def _hold_compilers() -> None:
    """Wait until no other thread is in Numba's compiler or in LLVM, and keep others out."""
    global_compiler_lock.acquire()
    ffi.lib._lock.__enter__()


def _let_go_of_compilers() -> None:
    ffi.lib._lock.__exit__(None, None, None)
    global_compiler_lock.release()


# If a process forked while another of its threads compiles, the child would wait forever for that
# thread, which it does not have. So a fork waits until no thread compiles.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_hold_compilers,
        after_in_parent=_let_go_of_compilers,
        after_in_child=_let_go_of_compilers,
    )


@contextlib.contextmanager
def _held_to(isa: ISA) -> Iterator[None]:
    """Make Numba compile for an instruction set, and keep other threads from compiling."""
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
    isa: ISA,  # not necessarily one that this CPU has
    function: Callable[..., Any],
    signature: Any,
    what: str = "",  # tells functions of the same name apart
    notice: str = "",  # printed to stderr if there is something to compile
    keep: bool = True,  # on the disk; the assembly of such code cannot be shown
) -> Any:
    """Compile a function for a signature, or load the code that was compiled before.

    Kept code is found again by the sources in this folder and by `what`. So if the function depends
    on anything else, `what` has to name it. The compiled function runs without Python's global
    lock.
    """
    if config.DISABLE_JIT:  # Python would run intrinsics, whose bodies only raise an error
        raise MiniresError(
            "NUMBA_DISABLE_JIT keeps the kernels from compiling; unset it, or ask for backend numpy"
        )
    if isa.family != FAMILY:  # LLVM would end the process
        raise MiniresError(f"{isa.name} is for {isa.family} CPUs; this machine's is {FAMILY}")
    name_apart(function, f"{what}/{isa.name}/{source_hash()}")
    compiled = njit(nogil=True)(function)
    with _held_to(isa):
        if keep:
            compiled._cache = _CodeCache(function, notice)
        compiled.compile(signature)
    compiled.disable_compile()
    return compiled


def name_apart(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Give a function that has namesakes a name of its own, before it is compiled.

    The linker goes by names. Numba numbers functions in the order in which a process compiles them,
    so two functions from the cache, each the first of its process, could have the same name. Then
    one of them would silently run in the other's place.
    """
    function.__qualname__ = f"{function.__name__}_{re.sub(r'[^a-z0-9]+', '_', what)}"
    return function


@functools.cache
def source_hash(folder: Path = Path(__file__).parent) -> str:
    """Hash the files of this folder, because a change in any of them may change compiled code."""
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class _CodeCache(NullCache):
    """A function's compiled code in a file: a checksum, and behind it Numba's own record.

    Nothing here raises an error. A file that cannot be read, or whose checksum is wrong, counts as
    missing, and code that cannot be written is not kept.
    """

    def __init__(self, function: Callable[..., Any], notice: str) -> None:
        self._function = function
        self._notice = notice

    def _file(self, signature: Any, context: Any) -> tuple[Path, bytes]:
        """Return the file's path, and as bytes everything that its code depends on."""
        versions = sys.version, numba.__version__, llvmlite.__version__
        target = context.codegen().magic_tuple()
        key = repr((versions, target, self._function.__qualname__, str(signature))).encode()
        name = f"{self._function.__name__}-{hashlib.sha256(key).hexdigest()[:32]}.code"
        return code_dir() / name, key

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Load the code; None if there is no file, or a damaged one."""
        file, key = self._file(sig, target_context)
        try:
            with open(file, "rb") as opened:
                content = opened.read() if _is_trusted(os.fstat(opened.fileno())) else b""
            checksum, code = content[:CHECKSUM], content[CHECKSUM:]
            if checksum == hashlib.sha256(key + code).digest():
                return CompileResult._rebuild(target_context, *pickle.loads(code))
        except Exception:  # whatever went wrong, the code can be compiled again
            pass
        if self._notice:
            tell(self._notice)
        return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Keep the code in a file, which appears whole or not at all."""
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
                    with contextlib.suppress(OSError):  # the disk may be full
                        new.close()  # Windows removes no open file
                    os.unlink(new.name)
            remove_oldest(file.parent, "*.code", KEPT)


def _is_trusted(status: os.stat_result) -> bool:
    """Tell whether only this user, or root, can have written a file, since its code will run here.

    The folder may be shared, for example one that root has filled. If others may write to it, the
    files that they put there belong to them, and are not trusted.
    """
    if not hasattr(os, "geteuid"):  # Windows keeps others out of a user's folders
        return True
    ours = status.st_uid in (0, os.geteuid())
    return ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def code_dir() -> Path:
    """Return the folder of compiled code: NUMBA_CACHE_DIR, or else one in minires's cache."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return Path(chosen) if chosen else cache_dir() / "kernels"
