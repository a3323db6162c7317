"""Multiplying with AMX: matrix registers beside the vectors.

A matrix register has 16 rows of 64 bytes, which is 16 groups of 32 bits. One instruction
multiplies a register of activations (16 rows of the tile, 16 groups along K) by one of weights (16
groups along K, 16 columns), and adds all products to a register of sums. It reads the same panels
and pixels as the vector instructions. A row of a kernel may have fewer than 16 groups, as in the
first layer. Then the registers of activations and weights are laid out for as many: what is behind
the row is not multiplied, not even by zero.

LLVM knows these registers only by number, not as values. So finished sums are stored to memory, and
the epilogue loads them from there.
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
    store,
)
from minires.kernels.isa.instruction import Instruction, Tile
from minires.kernels.isa.x86 import AVX512BF16, VDPBF16PS, VPDPBUSD, VPMADDUBSW, vcvtneps2bf16

ROWS = 16  # rows of a matrix register, and also the groups that each row holds
ROW_BYTES = 64


def _multiply(name: str) -> Callable[..., None]:
    """Make the function that emits C += A * B; the registers are numbers, so it returns nothing."""

    def emit(builder: Builder, acc: Value, a: Value, b: Value) -> None:
        call(builder, f"llvm.x86.{name}", VOID, acc, a, b)

    return emit


TDPBUSD = Instruction(
    "tdpbusd",
    "u8s8",
    _multiply("tdpbusd"),
    ("tdpbusd",),
    rows=ROWS,
    groups=ROWS,
    own_registers=True,
    sums=6,
    rates=(1 / 16,),
)
TDPBF16PS = replace(
    TDPBUSD,
    name="tdpbf16ps",
    operands="bf16",
    emit=_multiply("tdpbf16ps"),
    mnemonics=("tdpbf16ps",),
    narrow=vcvtneps2bf16,
)


@functools.cache
def _may_use_amx() -> bool:
    """Ask Linux to let this process use the matrix registers; it does not save them otherwise."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


# Of the eight registers, 2 x 2 hold sums, 2 hold activations and 2 hold weights.
AMX = replace(
    AVX512BF16,
    name="amx",
    features=AVX512BF16.features | {"amx-tile", "amx-int8", "amx-bf16"},
    instructions={**AVX512BF16.instructions, "bf16": TDPBF16PS, "u8s8": TDPBUSD},
    tiles={**AVX512BF16.tiles, "bf16": (2 * ROWS, 2), "u8s8": (2 * ROWS, 2)},
    others=(VPMADDUBSW, VPDPBUSD, VDPBF16PS),
    allowed=lambda: _may_use_amx(),
)


def _share_out(rows: int, vectors: int) -> tuple[list[int], list[int], list[int]]:
    """Share a tile's registers out: to sums, row by row, to activations, and to weights."""
    tops = rows // ROWS
    numbers = list(range(tops * vectors + tops + vectors))
    return numbers[: tops * vectors], numbers[tops * vectors : -vectors], numbers[-vectors:]


def _at_once(builder: Builder, groups: Value) -> Value:
    """Count the groups along K that are multiplied at once, in a run of so many."""
    full = groups.type(ROWS)
    return builder.select(builder.icmp_signed("<", groups, full), groups, full)


def lay_out_registers(builder: Builder, rows: int, vectors: int, groups: Value) -> None:
    """Give each register 16 rows of 64 bytes, or what runs of so many groups need of them."""
    _, of_x, of_w = _share_out(rows, vectors)
    # Byte 0 is the palette, 1. From byte 16 on stand the bytes of a row, 16 bits for each register,
    # and from byte 48 on the numbers of rows, 8 bits for each.
    layout = [1] + [0] * 15 + [ROW_BYTES, 0] * 8 + [0] * 16 + [ROWS] * 8 + [0] * 8
    constant = ir.Constant(array(I8, 64), bytearray(layout))
    memory = local(builder, constant.type)
    builder.store(constant, memory)
    start, count = builder.ptrtoint(memory, I64), builder.trunc(_at_once(builder, groups), I8)
    for register in of_x:
        store(builder, builder.shl(count, I8(2)), after(builder, start, 16 + 2 * register))
    for register in of_w:
        store(builder, count, after(builder, start, 48 + register))
    call(builder, "llvm.x86.ldtilecfg", VOID, memory)


def give_up_registers(builder: Builder) -> None:
    """Release the registers, after a thread's last tile."""
    call(builder, "llvm.x86.tilerelease", VOID)


def load_register(builder: Builder, register: Value, address: Value, stride: Value) -> None:
    """Load 16 rows, `stride` bytes apart."""
    call(builder, "llvm.x86.tileloadd64", VOID, register, pointer_to(builder, address), stride)


def sum_in_registers(
    builder: Builder, instruction: Instruction, rows: int, vectors: int, tile: Tile, first: Value
) -> Value:
    """Sum up a tile in matrix registers, store it row by row, and return its address.

    The sums of every row begin with the values at address `first`, or with zeros if it is None.
    """
    row_bytes, tops = ROW_BYTES * vectors, range(rows // ROWS)
    of_sums, of_x, of_w = ([I8(i) for i in numbers] for numbers in _share_out(rows, vectors))
    sums = [(top, v, of_sums[top * vectors + v]) for top in tops for v in range(vectors)]
    panel_step = builder.mul(_at_once(builder, tile.groups), I64(row_bytes))

    def step(panel: Value, at: Value) -> list[Value]:
        for register, base in zip(of_x, bases, strict=True):
            load_register(builder, register, builder.add(base, at), stride)
        prefetch(builder, panel, ROWS * row_bytes, ROWS * row_bytes)  # for the next step
        for v, register in enumerate(of_w):
            address = after(builder, panel, ROW_BYTES * v)
            load_register(builder, register, address, I64(row_bytes))
        for top, v, register in sums:
            instruction.emit(builder, register, of_x[top], of_w[v])
        return [builder.add(panel, panel_step), after(builder, at, ROW_BYTES)]

    def run(panel: Value, start: Value) -> list[Value]:
        panel, _ = loop(builder, steps, [panel, start], step)
        return [panel, builder.add(start, tile.run_stride)]

    offsets = [load_offset(builder, tile.x_offsets, ROWS * top) for top in tops]
    bases = [builder.add(tile.x, offset) for offset in offsets]
    stride = builder.sub(load_offset(builder, tile.x_offsets, 1), offsets[0])
    # A shift divides by the instruction's groups, which are a power of two. For a run that has
    # fewer it gives 0, and a loop runs at least once.
    steps = builder.lshr(tile.groups, I64(instruction.groups.bit_length() - 1))
    for _, v, register in sums:
        if first is None:
            call(builder, "llvm.x86.tilezero", VOID, register)
        else:
            # A stride of 0 loads the same row 16 times.
            load_register(builder, register, after(builder, first, ROW_BYTES * v), I64(0))
    loop(builder, tile.runs, [tile.w, I64(0)], run)
    memory = local(builder, array(I8, rows * row_bytes))
    memory.align = 64
    start = builder.ptrtoint(memory, I64)
    for top, v, register in sums:
        at = pointer_to(builder, after(builder, start, top * ROWS * row_bytes + ROW_BYTES * v))
        call(builder, "llvm.x86.tilestored64", VOID, register, at, I64(row_bytes))
    return start


def spin(builder: Builder, instruction: Instruction, operands: Value, count: Value) -> None:
    """Do nothing but multiply; a register's rows are all the first or the second at `operands`."""
    registers = [I8(i) for i in range(instruction.sums + 2)]

    def body() -> list[Any]:
        for total in registers[: instruction.sums]:
            instruction.emit(builder, total, *registers[instruction.sums :])
        return []

    lay_out_registers(builder, ROWS, 1, I64(ROWS))
    for i, register in enumerate(registers):
        load_register(builder, register, after(builder, operands, ROW_BYTES * (i % 2)), I64(0))
    loop(builder, count, [], body)
    give_up_registers(builder)
