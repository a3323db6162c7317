"""From a block's sums to the output: bias, residual, clip and rounding, while the sums are at hand.

A lane holds sums of the rows l / 4 and l / 4 + 8 of every 16, and of the columns that the order of
the weights gives it: 8 neighbours in each slab of 32 (`fragments.column_order`). So it loads and
stores 8 values at once. Every multiplication and addition rounds by itself, as the definitions do.
"""

import itertools
from typing import Any

from llvmlite import ir

from minires.kernels.cuda import ptx
from minires.kernels.cuda.block import Block
from minires.kernels.cuda.fragments import SLAB
from minires.kernels.ir import F32, I32, I64, Builder, Value, loop, vector

TOGETHER = 8  # columns that a lane stores at once
# Bytes of an output's value, by what it is: of a layer, or of the last one, which tells logits.
ITEM = {"u8": 1, "f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "logits": 4}
TF32_CUT = 13  # bits of a float32's fraction that tf32 has not


def write_tile(block: Block, sums: Any, out: str, residual: bool) -> None:
    """Write a tile of the output, `out` a key of `ITEM`."""
    writer = _Writer(block, out, residual)
    if not block.tile.splits:
        writer.write(sums)
        return
    came_last, mine = _leave_sums(block, sums)
    with block.builder.if_then(came_last):
        writer.write(_add_sums(block, mine, sums))


def _leave_sums(block: Block, sums: Any) -> tuple[Value, Value]:
    """Leave the sums of a block that shares K in memory; tell whether the others have, and where.

    Each block counts itself when its sums are there for all to see. Who comes last goes on alone.
    """
    builder = block.builder
    step = block.step
    threads = block.tile.threads
    flat = _flat(sums)
    row = builder.mul(ptx.register(builder, "ctaid.y"), ptx.register(builder, "nctaid.x"))
    number = builder.zext(builder.add(row, ptx.register(builder, "ctaid.x")), I64)
    splits = ptx.register(builder, "nctaid.z")
    last = builder.sub(splits, I32(1))
    size = I64(4 * threads * len(flat))  # bytes that a block leaves
    of_tile = builder.mul(builder.mul(number, builder.zext(splits, I64)), size)
    of_thread = builder.shl(builder.zext(block.thread, I64), I64(2))
    start = builder.add(step.workspace, builder.add(of_tile, of_thread))
    mine = builder.add(start, builder.mul(builder.zext(block.split, I64), size))
    for i, value in enumerate(flat):
        ptx.store(builder, value, builder.add(mine, I64(4 * threads * i)), 4)
    ptx.release(builder)
    ptx.barrier(builder)
    told = builder.inttoptr(block.memory, ir.PointerType(I32, addrspace=ptx.SHARED))
    with builder.if_then(builder.icmp_signed("==", block.thread, I32(0))):
        counter = builder.add(step.counters, builder.shl(number, I64(2)))
        builder.store(ptx.count_round(builder, counter, last), told)
        ptx.release(builder)  # what the others left is read after that
    ptx.barrier(builder)
    return builder.icmp_signed("==", builder.load(told), last), start


def _add_sums(block: Block, start: Value, sums: Any) -> Any:
    """Add what all blocks have left, in their order: a float's sum is the same at each run."""
    builder, threads = block.builder, block.tile.threads
    flat = _flat(sums)
    zero = ir.Constant(flat[0].type, 0)
    add = builder.add if flat[0].type == I32 else builder.fadd

    def body(address: Value, *totals: Value) -> list[Value]:
        following = builder.add(address, I64(4 * threads * len(flat)))
        left = [
            ptx.load_volatile(builder, builder.add(address, I64(4 * threads * i)), zero.type)
            for i in range(len(flat))
        ]
        return [following, *(add(total, value) for total, value in zip(totals, left, strict=True))]

    splits = builder.zext(ptx.register(builder, "nctaid.z"), I64)
    _, *totals = loop(builder, splits, [start, *[zero] * len(flat)], body)
    values = iter(totals)
    return [[[next(values) for _ in four] for four in row] for row in sums]


def _flat(sums: Any) -> list[Value]:
    return [value for row in sums for four in row for value in four]


class _Writer:
    """What all rows of a lane share: its columns, their bias and their multipliers."""

    def __init__(self, block: Block, out: str, residual: bool) -> None:
        self.block = block
        self.builder = block.builder
        self.step = block.step
        self.out, self.residual = out, residual
        self.quantized = block.instruction.sums == I32
        self.item = ITEM[out]

    def write(self, sums: Any) -> None:
        """Write all rows, those of some fragments together: their loads overlap."""
        builder, tile = self.builder, self.block.tile
        warp = builder.mul(self.block.warp_n, I32(8 * tile.across))
        lane = builder.shl(builder.and_(self.block.lane, I32(3)), I32(3))
        first = builder.add(self.block.first_column, builder.add(warp, lane))
        slabs = range(tile.across * 8 // SLAB)
        self.columns = [builder.zext(builder.add(first, I32(SLAB * s)), I64) for s in slabs]
        parameter = I32 if self.quantized else F32
        self.bias = [self._parameters(self.step.bias, at, parameter) for at in self.columns]
        self.m = [self._parameters(self.step.m, at, F32) if self.quantized else []
                  for at in self.columns]  # fmt: skip
        rows = list(itertools.product(range(tile.down), range(2)))
        together = {1: len(rows), 2: 4, 4: 2}[self.item]  # as many as there are registers for
        for i in range(0, len(rows), together):
            self._write_rows(rows[i : i + together], sums)

    def _parameters(self, base: Value, column: Value, what: Any) -> list[Value]:
        """Load a lane's 8 neighbours of a vector of 32-bit values."""
        address = self.builder.add(base, self.builder.shl(column, I64(2)))
        return self._eight(address, what)

    def _eight(self, address: Value, what: Any) -> list[Value]:
        values = []
        for half in range(2):
            at = self.builder.add(address, I64(16 * half))
            four = ptx.load(self.builder, at, vector(what, 4), 16)
            values += [self.builder.extract_element(four, I32(i)) for i in range(4)]
        return values

    def _write_rows(self, rows: list[tuple[int, int]], sums: Any) -> None:
        builder = self.builder
        offsets = [self._row_offset(*row) for row in rows]
        shortcuts = [self._load_shortcuts(offset) for offset in offsets]
        for (fragment, half), offset, shortcut in zip(rows, offsets, shortcuts, strict=True):
            # Behind the last pixel there are rows that fill the tile up.
            with builder.if_then(builder.icmp_signed(">=", offset, I32(0))):
                for slab, column in enumerate(self.columns):
                    fours = sums[fragment][4 * slab : 4 * slab + 4]
                    eight = [four[2 * half + i] for four in fours for i in range(2)]
                    values = self._finish(eight, slab, shortcut[slab] if shortcut else [])
                    self._store(values, self._address(self.step.y, offset, column))

    def _row_offset(self, fragment: int, half: int) -> Value:
        """Load where a row of the lane is written, in values; negative is nowhere."""
        builder, block = self.builder, self.block
        row = builder.add(
            builder.mul(block.warp_m, I32(16 * block.tile.down)),
            builder.add(builder.lshr(block.lane, I32(2)), I32(16 * fragment + 8 * half)),
        )
        number = builder.zext(builder.add(block.first_row, row), I64)
        entry = builder.add(self.step.y_offsets, builder.shl(number, I64(2)))
        return ptx.load(builder, entry, I32, 4)

    def _address(self, base: Value, offset: Value, column: Value) -> Value:
        builder = self.builder
        values = builder.add(builder.sext(offset, I64), column)
        return builder.add(base, builder.mul(values, I64(self.item)))

    def _load_shortcuts(self, offset: Value) -> list[list[Value]]:
        """Load the residual of a row; where nothing is written, that of the first one."""
        if not self.residual:
            return []
        builder = self.builder
        there = builder.select(builder.icmp_signed("<", offset, I32(0)), I32(0), offset)
        return [
            self._load_values(self._address(self.step.residual, there, column))
            for column in self.columns
        ]

    def _load_values(self, address: Value) -> list[Value]:
        """Load 8 values of the output's type, as float32 or, of u8, as integers."""
        builder = self.builder
        if self.item == 4:
            return self._eight(address, F32)
        words = vector(I32, TOGETHER * self.item // 4)
        loaded = ptx.load(builder, address, words, 4 * words.count)
        each = [builder.extract_element(loaded, I32(i)) for i in range(words.count)]
        parts = [part for word in each for part in ptx.split_word(builder, word, 8 * self.item)]
        if self.out == "u8":
            return [builder.zext(part, I32) for part in parts]
        if self.out == "f16":
            return [ptx.from_f16(builder, part) for part in parts]
        wide = [builder.shl(builder.zext(part, I32), I32(16)) for part in parts]
        return [builder.bitcast(part, F32) for part in wide]

    def _finish(self, sums: list[Value], slab: int, shortcut: list[Value]) -> list[Value]:
        """Do what the layer's definition does after its product: `layers.OPERATORS`."""
        builder = self.builder
        if not self.quantized:
            t = [
                ptx.rounded(builder, "add", *both)
                for both in zip(sums, self.bias[slab], strict=True)
            ]
            if shortcut:
                t = [ptx.rounded(builder, "add", *both) for both in zip(t, shortcut, strict=True)]
            low = self.step.low
            return [builder.select(builder.fcmp_ordered("<", v, low), low, v) for v in t]
        acc = [builder.add(*both) for both in zip(sums, self.bias[slab], strict=True)]
        t = [builder.sitofp(value, F32) for value in acc]
        t = [ptx.rounded(builder, "mul", *both) for both in zip(t, self.m[slab], strict=True)]
        for i, q in enumerate(shortcut):
            steps = builder.sitofp(builder.sub(q, self.step.residual_zero_point), F32)
            scaled = ptx.rounded(builder, "mul", steps, self.step.m_residual)
            t[i] = ptx.rounded(builder, "add", t[i], scaled)
        if self.out == "logits":
            return t
        q = self.step.low, self.step.high, self.step.zero_point
        return [ptx.requantize(builder, value, *q) for value in t]

    def _store(self, values: list[Value], address: Value) -> None:
        """Store 8 neighbours, narrowed to the output's type."""
        builder = self.builder
        if self.out == "tf32":
            values = [round_tf32(builder, value) for value in values]
        if self.item == 4:
            words = values
        elif self.out == "u8":
            words = []
            for i in range(0, TOGETHER, 4):
                word = values[i]
                for byte in range(1, 4):
                    shifted = builder.shl(values[i + byte], I32(8 * byte))
                    word = builder.or_(word, shifted)
                words.append(word)
        else:
            pairs = zip(values[::2], values[1::2], strict=True)
            words = [ptx.pair(builder, self.out, *both, self.block.turing) for both in pairs]
        for i in range(0, len(words), 4):
            part = words[i : i + 4]
            packed = ir.Constant(vector(part[0].type, len(part)), ir.Undefined)
            for at, word in enumerate(part):
                packed = builder.insert_element(packed, word, I32(at))
            ptx.store(builder, packed, builder.add(address, I64(4 * i)), 4 * len(part))


def round_tf32(builder: Builder, value: Value) -> Value:
    """Round to 10 bits of fraction, half away from zero, by the bits: `round_tf32_ref`."""
    half, kept = I32(1 << (TF32_CUT - 1)), I32(-(1 << TF32_CUT))
    bits = builder.and_(builder.add(builder.bitcast(value, I32), half), kept)
    return builder.bitcast(bits, F32)
