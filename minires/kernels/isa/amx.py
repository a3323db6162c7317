"""Multiplying with AMX: matrix registers beside the vectors.

A matrix register has 16 rows of 64 bytes, which is 16 groups of 32 bits. One instruction
multiplies a register of activations (16 rows of the tile, 16 groups along K) by one of weights (16
groups along K, 16 columns), and adds all of it to a register of sums. Panels and pixels are those
that the vector instructions read.

LLVM knows the registers by number alone. So the sums are stored to memory when they are made, and
an epilogue loads them from there.
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llvmlite import ir

from minires.kernels.ir import (
    I8,
    I64,
    VOID,
    Builder,
    Value,
    after,
    array,
    call,
    load_offset,
    local,
    loop,
    pointer_to,
    prefetch,
)
from minires.kernels.isa.instruction import Instruction
from minires.kernels.isa.x86 import AVX512BF16, VDPBF16PS, VPDPBUSD, VPMADDUBSW, vcvtneps2bf16

ROWS = 16  # of a matrix register, and groups that one of its rows holds
ROW_BYTES = 64


def _multiply(name: str) -> Callable[..., None]:
    """Emit C += A * B for registers by number: nothing is returned."""

    def emit(builder: Builder, acc: Value, a: Value, b: Value) -> None:
        call(builder, f"llvm.x86.{name}", VOID, acc, a, b)

    return emit


TDPBUSD = Instruction(
    "tdpbusd", "u8s8", 4, _multiply("tdpbusd"), ("tdpbusd",), "the matrix instruction tdpbusd",
    rows=ROWS, groups=ROWS, sums=6, rates=(1 / 16,),
)  # fmt: skip
TDPBF16PS = Instruction(
    "tdpbf16ps", "bf16", 2, _multiply("tdpbf16ps"), ("tdpbf16ps",),
    "the matrix instruction tdpbf16ps", rows=ROWS, groups=ROWS, narrow=vcvtneps2bf16, sums=6,
    rates=(1 / 16,),
)  # fmt: skip


@functools.cache
def _may_use_amx() -> bool:
    """Ask Linux for the matrix registers, which it saves only for processes that asked."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


# Of the eight registers 2 x 2 hold sums, the others what is multiplied.
AMX = replace(
    AVX512BF16,
    name="amx",
    features=AVX512BF16.features | {"amx-tile", "amx-int8", "amx-bf16"},
    instructions={**AVX512BF16.instructions, "bf16": TDPBF16PS, "u8s8": TDPBUSD},
    tiles={**AVX512BF16.tiles, "bf16": (2 * ROWS, 2), "u8s8": (2 * ROWS, 2)},
    others=(VPMADDUBSW, VPDPBUSD, VDPBF16PS),
    allowed=lambda: _may_use_amx(),
)


def lay_out_registers(builder: Builder) -> None:
    """Give all eight registers 16 rows of 64 bytes: before a thread's first tile."""
    # Palette 1; from byte 16 on the bytes of a row, eight times, from byte 48 on the rows.
    layout = [1] + [0] * 15 + [ROW_BYTES, 0] * 8 + [0] * 16 + [ROWS] * 8 + [0] * 8
    constant = ir.Constant(array(I8, 64), bytearray(layout))
    memory = local(builder, constant.type)
    builder.store(constant, memory)
    call(builder, "llvm.x86.ldtilecfg", VOID, memory)


def give_up_registers(builder: Builder) -> None:
    """Give the registers up: after a thread's last tile."""
    call(builder, "llvm.x86.tilerelease", VOID)


def load_register(builder: Builder, register: Value, address: Value, stride: Value) -> None:
    """Load 16 rows, `stride` bytes apart."""
    call(builder, "llvm.x86.tileloadd64", VOID, register, pointer_to(builder, address), stride)


def sum_in_registers(
    builder: Builder, instruction: Instruction, rows: int, vectors: int, x: Value,
    x_offsets: Value, w: Value, taps: Value, groups: Value, tap_stride: Value, first: Value | None,
) -> Value:  # fmt: skip
    """Sum up a tile in matrix registers, and store it: row by row, at the address returned.

    The arguments are those of `microkernel`; first is the address of what the sums begin with, a
    row that is the same for all, or None for zero.
    """
    row_bytes, tops = ROW_BYTES * vectors, range(rows // ROWS)
    sums = [(top, v, I8(top * vectors + v)) for top in tops for v in range(vectors)]
    of_x = [I8(len(sums) + top) for top in tops]
    of_w = [I8(len(sums) + len(tops) + v) for v in range(vectors)]

    def step(panel: Value, at: Value) -> list[Value]:
        for register, base in zip(of_x, bases, strict=True):
            load_register(builder, register, builder.add(base, at), stride)
        prefetch(builder, panel, ROWS * row_bytes, ROWS * row_bytes)  # the next step's
        for v, register in enumerate(of_w):
            address = after(builder, panel, ROW_BYTES * v)
            load_register(builder, register, address, I64(row_bytes))
        for top, v, register in sums:
            instruction.emit(builder, register, of_x[top], of_w[v])
        return [after(builder, panel, ROWS * row_bytes), after(builder, at, ROW_BYTES)]

    def tap(panel: Value, start: Value) -> list[Value]:
        panel, _ = loop(builder, steps, [panel, start], step)
        return [panel, builder.add(start, tap_stride)]

    offsets = [load_offset(builder, x_offsets, ROWS * top) for top in tops]
    bases = [builder.add(x, offset) for offset in offsets]
    stride = builder.sub(load_offset(builder, x_offsets, 1), offsets[0])
    steps = builder.lshr(groups, I64(instruction.groups.bit_length() - 1))
    for _, v, register in sums:
        if first is None:
            call(builder, "llvm.x86.tilezero", VOID, register)
        else:
            # The same row 16 times.
            load_register(builder, register, after(builder, first, ROW_BYTES * v), I64(0))
    loop(builder, taps, [w, I64(0)], tap)
    memory = local(builder, array(I8, rows * row_bytes))
    memory.align = 64
    start = builder.ptrtoint(memory, I64)
    for top, v, register in sums:
        at = pointer_to(builder, after(builder, start, top * ROWS * row_bytes + ROW_BYTES * v))
        call(builder, "llvm.x86.tilestored64", VOID, register, at, I64(row_bytes))
    return start


def spin(builder: Builder, instruction: Instruction, operands: Value, count: Value) -> None:
    """Do nothing but multiply: each row of a register is one of two vectors at `operands`."""
    registers = [I8(i) for i in range(instruction.sums + 2)]

    def body() -> list[Any]:
        for total in registers[: instruction.sums]:
            instruction.emit(builder, total, *registers[instruction.sums :])
        return []

    lay_out_registers(builder)
    for i, register in enumerate(registers):
        load_register(builder, register, after(builder, operands, ROW_BYTES * (i % 2)), I64(0))
    loop(builder, count, [], body)
    give_up_registers(builder)
