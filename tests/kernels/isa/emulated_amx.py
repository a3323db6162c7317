"""AMX where a CPU lacks it: compiled code calls Python, which has arrays for its registers.

Everything else is compiled as it is: the vectors of the epilogue for this CPU, and the order of
loads, products and stores. Intel's Software Developer's Manual tells in volume 2 what each
instruction does, and when it is refused.
"""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llvmlite import binding

from minires.kernels import ir
from minires.kernels.isa import ISAS, amx, available_isas
from minires.kernels.isa.instruction import ISA

Array = npt.NDArray[Any]
_thread = threading.local()  # the registers' sizes, (rows, bytes of a row), and what they hold
refused: list[str] = []  # an exception would be lost on its way through compiled code


def _memory(address: int, rows: int, width: int, stride: int) -> Array:
    content = (ctypes.c_uint8 * ((rows - 1) * stride + width)).from_address(address)
    return np.ndarray((rows, width), np.uint8, content, strides=(stride, 1))


def _ldtilecfg(address: int) -> None:
    layout = _memory(address, 1, 64, 0)[0]
    assert layout[0] == 1, "the palette"
    assert not layout[1:16].any(), "bytes that have to be 0"
    assert not layout[32:48].any(), "bytes that have to be 0"
    sizes = list(zip(layout[48:56].tolist(), layout[16:32].view(np.uint16).tolist(), strict=True))
    assert max(rows for rows, _ in sizes) <= 16
    assert max(width for _, width in sizes) <= 64
    _thread.held = [np.zeros(size, np.uint8) for size in sizes]


def _tilerelease() -> None:
    del _thread.held


def _tilezero(register: int) -> None:
    _thread.held[register][...] = 0


def _tileloadd64(register: int, address: int, stride: int) -> None:
    held = _thread.held[register]
    held[...] = _memory(address, *held.shape, stride)


def _tilestored64(register: int, address: int, stride: int) -> None:
    held = _thread.held[register]
    _memory(address, *held.shape, stride)[...] = held


def _operands(total: int, a: int, b: int) -> tuple[Array, Array, Array]:
    """Find three registers: (M, N), (M, groups) and (groups, N), each of 32 bits."""
    found = [_thread.held[register].view(np.uint32) for register in (total, a, b)]
    (M, N), (rows, groups), (groups_of_b, columns) = (held.shape for held in found)
    assert (M, N, groups) == (rows, columns, groups_of_b), "registers that do not fit"
    return found[0], found[1], found[2]


def _parts(a: Array, b: Array, of_a: Any, of_b: Any) -> tuple[Array, Array]:
    """Cut groups into the numbers they hold: you get (M, K) and (K, N)."""
    groups, columns = b.shape
    parts = b.view(of_b).reshape(groups, columns, -1).transpose(0, 2, 1)
    return a.view(of_a), parts.reshape(-1, columns)


def _tdpbusd(total: int, a: int, b: int) -> None:
    c, *groups = _operands(total, a, b)
    x, w = (part.astype(np.float32) for part in _parts(*groups, np.uint8, np.int8))
    c.view(np.int32)[...] += (x @ w).astype(np.int32)  # exact: at most 64 * 255 * 128 < 2**24


def _tdpbf16ps(total: int, a: int, b: int) -> None:
    c, *groups = _operands(total, a, b)
    parts = _parts(*groups, np.uint16, np.uint16)
    x, w = ((part.astype(np.uint32) << 16).view(np.float32) for part in parts)
    with np.errstate(invalid="ignore"):  # 0 times infinity
        c.view(np.float32)[...] += (x[:, :, np.newaxis] * w).sum(axis=1)


INSTRUCTIONS: dict[str, Callable[..., None]] = {
    "llvm.x86.ldtilecfg": _ldtilecfg,
    "llvm.x86.tilerelease": _tilerelease,
    "llvm.x86.tilezero": _tilezero,
    "llvm.x86.tileloadd64": _tileloadd64,
    "llvm.x86.tilestored64": _tilestored64,
    "llvm.x86.tdpbusd": _tdpbusd,
    "llvm.x86.tdpbf16ps": _tdpbf16ps,
}


def _callable(name: str, function: Callable[..., None]) -> Any:
    """Make a function that compiled code finds by its name, and calls with int64."""

    def call(*numbers: int) -> None:
        try:
            function(*numbers)
        except Exception as error:
            refused.append(f"{name}{numbers}: {error}")

    kinds = [ctypes.c_int64] * function.__code__.co_argcount
    made = ctypes.CFUNCTYPE(None, *kinds)(call)
    binding.add_symbol(f"emulated.{name}", ctypes.cast(made, ctypes.c_void_p).value)
    return made


COMPILED = {name: _callable(name, function) for name, function in INSTRUCTIONS.items()}


def _call(builder: Any, name: str, returns: Any, *arguments: Any) -> Any:
    """Call Python in an instruction's place: for `ir.call`."""
    numbers = [
        builder.ptrtoint(a, ir.I64) if a.type == ir.POINTER or hasattr(a.type, "pointee")
        else builder.zext(a, ir.I64) if a.type == ir.I8 else a
        for a in arguments
    ]  # fmt: skip
    return ir.call(builder, f"emulated.{name}", returns, *numbers)


def emulate(monkeypatch: pytest.MonkeyPatch) -> ISA:
    """Make an instruction set of AMX's tiles and of this CPU's vectors, under a name of its own."""
    theirs = ISAS["amx"]
    isa = replace(
        theirs,
        name="amx-emulated",
        family=ir.FAMILY,
        features=available_isas()[0].features,
        instructions={  # and LLVM rounds to bfloat16, as where no instruction does
            operands: replace(instruction, narrow=None)
            for operands, instruction in theirs.instructions.items()
        },
    )
    monkeypatch.setitem(ISAS, isa.name, isa)
    monkeypatch.setattr(amx, "call", _call)
    refused.clear()
    return isa
