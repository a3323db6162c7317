"""The microkernel: one tile of a matrix product, MR rows by NR columns.

Its sums stay in registers from the first product to the last, and go through an epilogue on their
way to memory. Numba compiles the loops around it from Python. But Python cannot name a vector
instruction, so the tile is a Numba intrinsic: a function that writes LLVM IR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from minires.kernels.epilogue import EPILOGUES, SCALARS, Columns, Epilogue
from minires.kernels.ir import (
    ARM,
    F32,
    I8,
    I16,
    I32,
    I64,
    LINE,
    ROOM_AHEAD,
    VOID,
    X86,
    BFloat,
    Builder,
    Value,
    after,
    bytes_of,
    constant,
    load,
    load_offset,
    loop,
    prefetch,
    splat,
    store,
    take_lanes,
    vector,
)
from minires.kernels.isa import ISA, ISAS, Instruction, amx, pairs
from minires.kernels.isa.instruction import PER_GROUP, Tile

ELEMENTS = {"f32": F32, "bf16": BFloat(), "u8s8": I8}  # an activation's own type, by the operands
TARGETS = {X86: "x86-64", ARM: "generic"}  # LLVM's name for a CPU without any extension


@dataclass(frozen=True)
class Microkernel:
    """A microkernel's instruction, its epilogue, and the size of its tile."""

    isa: ISA
    operands: str  # f32, bf16 or u8s8
    epilogue: str  # a key of `EPILOGUES`
    rows: int  # MR
    vectors: int  # NR, in vectors

    @classmethod
    def of(cls, isa: ISA, operands: str, epilogue: str) -> "Microkernel":
        """Choose the tile that an instruction set has for these operands."""
        return cls(isa, operands, epilogue, *isa.tiles[operands])

    @classmethod
    def named(cls, name: str) -> "Microkernel":
        """Make the microkernel that has this `name`."""
        _, operands, isa, tile, epilogue = name.split("_")
        rows, columns = map(int, tile.split("x"))
        return cls(ISAS[isa], operands, epilogue, rows, columns // ISAS[isa].lanes)

    @property
    def columns(self) -> int:
        """NR: the columns of the tile."""
        return self.vectors * self.isa.lanes

    @property
    def instruction(self) -> Instruction:
        """The instruction that multiplies."""
        return self.isa.instructions[self.operands]

    @property
    def name(self) -> str:
        """Write all fields as one word: compiled code names a microkernel by a literal."""
        tile = f"{self.rows}x{self.columns}"
        return f"gemm_{self.operands}_{self.isa.name}_{tile}_{self.epilogue}"


@intrinsic(prefer_literal=True)
def microkernel(_: Any, name: Any, *operands: Any) -> Any:
    """Compute one tile: called from compiled code, with the operands of `Tile` in order.

    `name` is a `Microkernel`'s, as a literal.
    """
    kernel = Microkernel.named(name.literal_value)
    *numbers, scalars = operands
    together = types.Tuple([*[types.int64] * len(numbers), scalars])

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        fields = [builder.extract_value(arguments[1], i) for i in range(len(operands))]
        write_tile(builder, kernel, Tile(*fields))
        return context.get_dummy_value()

    return types.none(name, together), codegen


def write_tile(builder: Builder, kernel: Microkernel, tile: Tile) -> None:
    """Write the IR of a tile: its sums, and its epilogue with and without a residual."""
    epilogue = EPILOGUES[kernel.epilogue]
    there = builder.icmp_signed("!=", tile.residual, tile.residual.type(0))
    with builder.if_then(there):
        _fetch_residual(builder, kernel, epilogue, tile)
    first = tile.bias if epilogue.bias_first else None
    sums: Any  # vectors, or the address where those of an instruction's own registers lie
    if kernel.instruction.own_registers:
        size = kernel.rows, kernel.vectors
        sums = amx.sum_in_registers(builder, kernel.instruction, *size, tile, first)
    else:
        sums = _sum_in_vectors(builder, kernel, epilogue, tile, first)
    columns = _load_columns(builder, kernel, epilogue, tile)
    finish = _Finish(builder, kernel, epilogue, columns, tile)
    # Whether there is a residual is asked once, outside of everything that is unrolled.
    with builder.if_else(there) as (with_residual, without):
        with with_residual:
            finish.rows(sums, True)
        with without:
            finish.rows(sums, False)


def _fetch_residual(builder: Builder, kernel: Microkernel, epilogue: Epilogue, tile: Tile) -> None:
    """Fetch the residual while the sums are made: for writing, because y often takes its place."""
    item = bytes_of(epilogue.residual)
    for row in range(kernel.rows):
        offset = load_offset(builder, tile.y_offsets, row)
        start = builder.mul(offset, offset.type(item))
        address = builder.add(tile.residual, start)
        prefetch(builder, address, 0, item * kernel.columns, write=True)


def _load_columns(
    builder: Builder, kernel: Microkernel, epilogue: Epilogue, tile: Tile
) -> list[Columns]:
    """Load the epilogue's operands for each vector of columns."""
    lanes = kernel.isa.lanes
    fields = (builder.extract_value(tile.scalars, i) for i in range(len(SCALARS)))
    known = {
        name: splat(builder, value, lanes) for name, value in zip(SCALARS, fields, strict=True)
    }
    return [
        Columns(
            load(builder, after(builder, tile.bias, 4 * lanes * v), vector(epilogue.bias, lanes)),
            load(builder, after(builder, tile.m, 4 * lanes * v), vector(F32, lanes)),
            known,
            kernel.instruction,
        )
        for v in range(kernel.vectors)
    ]


@dataclass
class _Finish:
    """Puts sums through the epilogue, and stores the results in the output."""

    builder: Builder
    kernel: Microkernel
    epilogue: Epilogue
    columns: list[Columns]
    tile: Tile

    def rows(self, sums: Any, there: bool) -> None:
        """Finish all rows; `there` tells whether they have a residual."""
        if self.kernel.instruction.own_registers:
            self._rows_in_memory(sums, there)
        else:
            self._rows_in_registers(sums, there)

    def _row(self, start: Value, sums: list[Value], there: bool) -> None:
        """Finish one row; `start` is its place in the output."""
        builder, lanes = self.builder, self.kernel.isa.lanes
        for v, total in enumerate(sums):
            place = after(builder, start, lanes * v)
            shortcut = None
            if there:
                item = place.type(bytes_of(self.epilogue.residual))
                at = builder.add(self.tile.residual, builder.mul(place, item))
                shortcut = load(builder, at, vector(self.epilogue.residual, lanes))
            value = self.epilogue.run(builder, total, self.columns[v], shortcut)
            item = place.type(bytes_of(value.type.element))
            store(builder, value, builder.add(self.tile.y, builder.mul(place, item)))

    def _rows_in_registers(self, acc: list[Value], there: bool) -> None:
        """Finish the rows of sums that are in vectors."""
        vectors = self.kernel.vectors
        for row in range(self.kernel.rows):
            start = load_offset(self.builder, self.tile.y_offsets, row)
            self._row(start, acc[row * vectors : (row + 1) * vectors], there)

    def _rows_in_memory(self, memory: Value, there: bool) -> None:
        """Finish the rows of sums that are in memory, except those whose offset is below 0."""
        builder, kernel = self.builder, self.kernel
        lanes = kernel.isa.lanes
        wide = vector(self.epilogue.bias, lanes)

        def row(table: Value, at: Value) -> list[Value]:
            start = load_offset(builder, table, 0)
            with builder.if_then(builder.icmp_signed(">=", start, start.type(0))):
                sums = [
                    load(builder, after(builder, at, 4 * lanes * v), wide)
                    for v in range(kernel.vectors)
                ]
                self._row(start, sums, there)
            return [after(builder, table, 4), after(builder, at, 4 * kernel.columns)]

        loop(builder, self.tile.y_offsets.type(kernel.rows), [self.tile.y_offsets, memory], row)


def _multiply_copies(
    builder: Builder,
    kernel: Microkernel,
    panel: Value,
    bases: list[Value],
    at: Value,
    acc: Sequence[Value],
) -> list[Value]:
    """Multiply a group of each row, copied to all lanes: the one `at` bytes behind its base."""
    instruction, lanes, bits = kernel.instruction, kernel.isa.lanes, vector(I32, kernel.isa.lanes)
    places = range(kernel.vectors)
    columns = [load(builder, after(builder, panel, 4 * lanes * v), bits) for v in places]
    prefetch(builder, panel, ROOM_AHEAD, 4 * kernel.columns)
    totals, following = iter(acc), []
    for base in bases:
        a = splat(builder, load(builder, builder.add(base, at), I32), lanes)
        a = instruction.prepare(builder, a)
        for column in columns:
            following.append(instruction.emit(builder, next(totals), a, column))
    return following


def _multiply_lanes(
    builder: Builder,
    kernel: Microkernel,
    panel: Value,
    bases: list[Value],
    at: Value,
    acc: Sequence[Value],
) -> list[Value]:
    """Multiply groups of each row that are the lanes of a vector, `at` bytes behind its base.

    LLVM finds the instruction that takes a lane as it is only if it sees the operands' own type.
    Sums and activations leave few registers, so weights are loaded one vector at a time.
    """
    instruction, lanes = kernel.instruction, kernel.isa.lanes
    element, count = ELEMENTS[kernel.operands], PER_GROUP[kernel.operands]
    together = instruction.lanes_loaded
    wide = vector(element, count * together)
    prefetch(builder, panel, ROOM_AHEAD, 4 * kernel.columns * together)
    of_rows = [load(builder, builder.add(base, at), wide) for base in bases]
    of_rows = [instruction.prepare(builder, values) for values in of_rows]
    acc = list(acc)
    for group in range(together):
        for v in range(kernel.vectors):
            place = after(builder, panel, 4 * (group * kernel.columns + lanes * v))
            column = load(builder, place, vector(I32, lanes))
            for row, values in enumerate(of_rows):
                a = take_lanes(builder, values, group * count, count, lanes)
                total = row * kernel.vectors + v
                acc[total] = instruction.emit(builder, acc[total], a, column)
    return acc


def _sum_in_vectors(
    builder: Builder, kernel: Microkernel, epilogue: Epilogue, tile: Tile, first: Value
) -> list[Value]:
    """Sum up a tile in vectors, and return them row by row.

    The sums of every row begin with the values at address `first`, or with zeros if it is None.
    """
    lanes, rows, places = kernel.isa.lanes, kernel.rows, range(kernel.vectors)
    sums, together = vector(epilogue.bias, lanes), kernel.instruction.multiple
    in_pairs = kernel.instruction.rows > 1
    of_rows = _multiply_lanes if together > 1 else _multiply_copies
    multiply = pairs.multiply if in_pairs else of_rows
    panel_step = 4 * kernel.columns * together  # bytes of a panel for a step along K
    steps, later_step = tile.groups, tile.later_step
    if together > 1:  # a power of two
        shift = I64(together.bit_length() - 1)
        steps, later_step = builder.lshr(steps, shift), builder.shl(later_step, shift)

    def step(panel: Value, at: Value, beside: Value, later: Value, *acc: Value) -> list[Value]:
        for address in (later, beside):  # into the second cache, which keeps it until it is read
            prefetch(builder, address, 0, LINE, cache=2)
        following = multiply(builder, kernel, panel, bases, at, acc)
        return [
            after(builder, panel, panel_step),
            after(builder, at, 4 * together),
            # For a 1x1 kernel, this covers the next tile's rows.
            after(builder, beside, 4 * rows * together),
            builder.add(later, later_step),
            *following,
        ]

    def run(panel: Value, start: Value, later: Value, *acc: Value) -> list[Value]:
        beside = builder.add(next_tile, start)
        carried = [panel, start, beside, later, *acc]
        panel, _, _, later, *acc = loop(builder, steps, carried, step)
        return [panel, builder.add(start, tile.run_stride), later, *acc]

    *bases, next_tile = [
        builder.add(tile.x, load_offset(builder, tile.x_offsets, row)) for row in range(rows + 1)
    ]
    begin = [constant(sums, 0) for _ in places]
    if first is not None:
        begin = [load(builder, after(builder, first, 4 * lanes * v), sums) for v in places]
    first_sums = pairs.by_columns(builder, begin) * (rows // 2) if in_pairs else begin * rows
    carried = [tile.w, tile.w.type(0), tile.later, *first_sums]
    acc: list[Value] = loop(builder, tile.runs, carried, run)[3:]
    return pairs.by_rows(builder, acc, kernel.vectors) if in_pairs else acc


@intrinsic(prefer_literal=True)
def matrix_registers(_: Any, name: Any, use: Any, groups: Any) -> Any:
    """Lay out the matrix registers before a thread's first tile, or release them after its last.

    The first two arguments are literals: a `Microkernel`'s name, and True before or False after.
    `groups` are those of a run along K. Nothing happens for an instruction that does not use these
    registers.
    """
    kernel = Microkernel.named(name.literal_value)

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        if kernel.instruction.own_registers and use.literal_value:
            amx.lay_out_registers(builder, kernel.rows, kernel.vectors, arguments[2])
        elif kernel.instruction.own_registers:
            amx.give_up_registers(builder)
        return context.get_dummy_value()

    return types.none(name, use, groups), codegen


@intrinsic(prefer_literal=True)
def largest(_: Any, spec: Any, y: Any, x: Any, kernel: Any, row: Any, pixel: Any) -> Any:
    """Store the largest of a window's vectors, value by value: called from compiled code.

    `spec` is a literal: the values' dtype by NumPy's name, a slash, and their number. The others
    are int64. `y` is the address to store at, `x` that of the window's first vector. The window has
    `kernel` rows and columns, `row` and `pixel` bytes apart.
    """
    name, count = spec.literal_value.split("/")
    values = vector({"float32": F32, "int16": I16, "uint8": I8}[name], int(count))

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        to, first, kernel, row, pixel = arguments[1:]
        compare = {"f": builder.fcmp_ordered, "i": builder.icmp_signed, "u": builder.icmp_unsigned}

        def tap(at: Value, most: Value) -> list[Value]:
            value = load(builder, at, values)
            more = builder.select(compare[name[0]](">", most, value), most, value)
            return [builder.add(at, pixel), more]

        def line(start: Value, most: Value) -> list[Value]:
            return [builder.add(start, row), loop(builder, kernel, [start, most], tap)[1]]

        _, most = loop(builder, kernel, [first, load(builder, first, values)], line)
        store(builder, most, to)
        return context.get_dummy_value()

    return types.none(spec, *[types.int64] * 5), codegen


def assembly(kernel: Microkernel) -> str:
    """Show the assembly that LLVM makes of a microkernel, even for a CPU other than this one.

    For x86 it is in AT&T's syntax, where the result comes last; for ARM the result comes first.
    """
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    scalars = ir.LiteralStructType(list(SCALARS.values()))
    signature = ir.FunctionType(VOID, [I64] * 13 + [scalars])
    function = ir.Function(module, signature, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    write_tile(builder, kernel, Tile(*function.args))
    builder.ret_void()
    module.triple = f"{kernel.isa.family}-unknown-linux-gnu"
    features = ",".join(f"+{name}" for name in sorted(kernel.isa.features))
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(cpu=TARGETS[kernel.isa.family], features=features, opt=3)
    parsed = binding.parse_assembly(str(module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))
