"""The microkernel: one tile of a matrix product, MR rows by NR columns.

Its sums stay in registers from the first product to the last, and go through an epilogue on their
way to memory. Numba compiles the loops around it from Python, but has no word for a vector
instruction: an intrinsic is where it lets LLVM IR in.
"""

from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir
from numba.core import types
from numba.extending import intrinsic

from minires.kernels.epilogue import EPILOGUES, SCALARS, Columns, Epilogue
from minires.kernels.ir import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LINE,
    ROOM_AHEAD,
    VOID,
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
    vector,
)
from minires.kernels.isa import ISA, ISAS, Instruction, amx


@dataclass(frozen=True)
class Microkernel:
    """Which microkernel: its instruction, its epilogue, and the size of its tile."""

    isa: ISA
    operands: str  # f32, bf16 or u8s8
    epilogue: str  # a key of `EPILOGUES`
    rows: int  # MR
    vectors: int  # NR, in vectors

    @classmethod
    def of(cls, isa: ISA, operands: str, epilogue: str) -> "Microkernel":
        """Take the tile that an instruction set has for these operands."""
        return cls(isa, operands, epilogue, *isa.tiles[operands])

    @classmethod
    def named(cls, name: str) -> "Microkernel":
        """Find the one that has this `name`."""
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
        """Say all of it in a word: compiled code tells microkernels apart by a literal."""
        tile = f"{self.rows}x{self.columns}"
        return f"gemm_{self.operands}_{self.isa.name}_{tile}_{self.epilogue}"


@intrinsic(prefer_literal=True)
def microkernel(
    _: Any, name: Any, x: Any, x_offsets: Any, w: Any, taps: Any, groups: Any, tap_stride: Any,
    later: Any, later_step: Any, bias: Any, m: Any, residual: Any, y: Any, y_offsets: Any,
    scalars: Any,
) -> Any:  # fmt: skip
    """Compute one tile: called from compiled code, with addresses and counts in int64.

    `name` is a `Microkernel`'s, as a literal. The scalars are those of `SCALARS`, as a tuple.
    """
    # x, x_offsets: the activations, and MR + 1 int32, in bytes. These tell where each row's first
    #     tap lies, and that of the next tile's first row, which is fetched meanwhile. A matrix
    #     instruction wants each 16 rows a fixed stride apart, the same for all.
    # w: the panel. For each group along K it has 32 bits for each of NR columns.
    # taps, groups, tap_stride: K is `taps` runs of `groups` times 32 bits, `tap_stride` bytes
    #     apart. A row of a convolution's kernel is one run: its columns are neighbours in NHWC.
    # later, later_step: weights that are read later, and bytes. With each group along K the second
    #     cache fetches a line, so far apart. Matrix instructions leave it no time for that.
    # bias, m: NR values each, for the columns.
    # residual: a tensor laid out as y, or 0 for none.
    # y, y_offsets: the output, and MR int32, in elements: where each row's first column goes. A
    #     matrix instruction does not write a row whose offset is below 0.
    kernel = Microkernel.named(name.literal_value)
    numbers = [types.int64] * 13

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        write_tile(builder, kernel, *arguments[1:])
        return context.get_dummy_value()

    return types.none(name, *numbers, scalars), codegen


def write_tile(
    builder: Builder, kernel: Microkernel, x: Value, x_offsets: Value, w: Value, taps: Value,
    groups: Value, tap_stride: Value, later: Value, later_step: Value, bias: Value, m: Value,
    residual: Value, y: Value, y_offsets: Value, scalars: Value,
) -> None:  # fmt: skip
    """Write the IR of a tile; the arguments are those of `microkernel`."""
    epilogue = EPILOGUES[kernel.epilogue]
    _fetch_residual(builder, kernel, epilogue, residual, y_offsets)
    operands = x, x_offsets, w, taps, groups, tap_stride, bias if epilogue.bias_first else None
    there = builder.icmp_signed("!=", residual, I64(0))
    if kernel.instruction.rows > 1:
        size = kernel.rows, kernel.vectors
        sums = amx.sum_in_registers(builder, kernel.instruction, *size, *operands)
        columns = _load_columns(builder, kernel, epilogue, bias, m, scalars)
        finish = _Finish(builder, kernel, epilogue, columns, residual, y)
        # Whether there is a residual is asked once, outside of everything that is unrolled.
        with builder.if_else(there) as (with_residual, without):
            with with_residual:
                finish.rows_in_memory(sums, y_offsets, True)
            with without:
                finish.rows_in_memory(sums, y_offsets, False)
        return
    acc = _sum_in_vectors(builder, kernel, epilogue, *operands, later, later_step)
    columns = _load_columns(builder, kernel, epilogue, bias, m, scalars)
    finish = _Finish(builder, kernel, epilogue, columns, residual, y)
    with builder.if_else(there) as (with_residual, without):
        with with_residual:
            finish.rows_in_registers(acc, y_offsets, True)
        with without:
            finish.rows_in_registers(acc, y_offsets, False)


def _fetch_residual(
    builder: Builder, kernel: Microkernel, epilogue: Epilogue, residual: Value, y_offsets: Value
) -> None:
    """Fetch a residual while the sums are made; for writing, since y often takes its place."""
    item = bytes_of(epilogue.residual)
    with builder.if_then(builder.icmp_signed("!=", residual, I64(0))):
        for row in range(kernel.rows):
            start = builder.mul(load_offset(builder, y_offsets, row), I64(item))
            address = builder.add(residual, start)
            prefetch(builder, address, 0, item * kernel.columns, write=True)


def _load_columns(
    builder: Builder, kernel: Microkernel, epilogue: Epilogue, bias: Value, m: Value, scalars: Value
) -> list[Columns]:
    """Load the operands of the epilogue, for each vector of columns."""
    lanes = kernel.isa.lanes
    fields = (builder.extract_value(scalars, i) for i in range(len(SCALARS)))
    known = {
        name: splat(builder, value, lanes) for name, value in zip(SCALARS, fields, strict=True)
    }
    return [
        Columns(
            load(builder, after(builder, bias, 4 * lanes * v), vector(epilogue.bias, lanes)),
            load(builder, after(builder, m, 4 * lanes * v), vector(F32, lanes)),
            known,
            kernel.instruction,
        )
        for v in range(kernel.vectors)
    ]


@dataclass
class _Finish:
    """Brings sums to where the output has them, through the epilogue."""

    builder: Builder
    kernel: Microkernel
    epilogue: Epilogue
    columns: list[Columns]
    residual: Value
    y: Value

    def row(self, start: Value, sums: list[Value], there: bool) -> None:
        """Finish a row; `start` is its place in the output, `there` whether it has a residual."""
        builder, lanes = self.builder, self.kernel.isa.lanes
        for v, total in enumerate(sums):
            place = after(builder, start, lanes * v)
            shortcut = None
            if there:
                item = I64(bytes_of(self.epilogue.residual))
                at = builder.add(self.residual, builder.mul(place, item))
                shortcut = load(builder, at, vector(self.epilogue.residual, lanes))
            value = self.epilogue.run(builder, total, self.columns[v], shortcut)
            item = I64(bytes_of(value.type.element))
            store(builder, value, builder.add(self.y, builder.mul(place, item)))

    def rows_in_registers(self, acc: list[Value], y_offsets: Value, there: bool) -> None:
        """Finish all rows of sums that are in vectors."""
        vectors = self.kernel.vectors
        for row in range(self.kernel.rows):
            start = load_offset(self.builder, y_offsets, row)
            self.row(start, acc[row * vectors : (row + 1) * vectors], there)

    def rows_in_memory(self, memory: Value, y_offsets: Value, there: bool) -> None:
        """Finish all rows of sums that are in memory, but for those that are none."""
        builder, kernel = self.builder, self.kernel
        lanes = kernel.isa.lanes
        wide = vector(self.epilogue.bias, lanes)

        def row(table: Value, at: Value) -> list[Value]:
            start = load_offset(builder, table, 0)
            with builder.if_then(builder.icmp_signed(">=", start, I64(0))):
                sums = [
                    load(builder, after(builder, at, 4 * lanes * v), wide)
                    for v in range(kernel.vectors)
                ]
                self.row(start, sums, there)
            return [after(builder, table, 4), after(builder, at, 4 * kernel.columns)]

        loop(builder, I64(kernel.rows), [y_offsets, memory], row)


def _sum_in_vectors(
    builder: Builder, kernel: Microkernel, epilogue: Epilogue, x: Value, x_offsets: Value,
    w: Value, taps: Value, groups: Value, tap_stride: Value, first: Value | None, later: Value,
    later_step: Value,
) -> list[Value]:  # fmt: skip
    """Sum up a tile in vectors, row by row."""
    lanes, rows, places = kernel.isa.lanes, kernel.rows, range(kernel.vectors)
    sums, bits = vector(epilogue.bias, lanes), vector(I32, lanes)
    panel_step = 4 * kernel.columns  # bytes of a panel for one group along K

    def step(panel: Value, at: Value, beside: Value, later: Value, *acc: Value) -> list[Value]:
        for address in (later, beside):  # to the second cache: the first has no room for long
            prefetch(builder, address, 0, LINE, cache=2)
        columns = [load(builder, after(builder, panel, 4 * lanes * v), bits) for v in places]
        prefetch(builder, panel, ROOM_AHEAD, panel_step)
        following = []
        for row in range(rows):
            a = splat(builder, load(builder, builder.add(bases[row], at), I32), lanes)
            for v in places:
                total = acc[row * kernel.vectors + v]
                following.append(kernel.instruction.emit(builder, total, a, columns[v]))
        return [
            after(builder, panel, panel_step),
            after(builder, at, 4),
            after(builder, beside, 4 * rows),  # of a 1x1, all that the next tile's rows are
            builder.add(later, later_step),
            *following,
        ]

    def tap(panel: Value, start: Value, later: Value, *acc: Value) -> list[Value]:
        beside = builder.add(next_tile, start)
        panel, _, _, later, *acc = loop(builder, groups, [panel, start, beside, later, *acc], step)
        return [panel, builder.add(start, tap_stride), later, *acc]

    bases = [builder.add(x, load_offset(builder, x_offsets, row)) for row in range(rows + 1)]
    next_tile = bases.pop()
    begin = [constant(sums, 0) for _ in places]
    if first is not None:
        begin = [load(builder, after(builder, first, 4 * lanes * v), sums) for v in places]
    return loop(builder, taps, [w, I64(0), later, *begin * rows], tap)[3:]


@intrinsic(prefer_literal=True)
def matrix_registers(_: Any, name: Any, use: Any) -> Any:
    """Lay out the matrix registers before a thread's first tile; give them up after its last.

    Both arguments are literals: a `Microkernel`'s name, and whether the registers will be used, or
    no longer. For an instruction that has no use for them, nothing is done.
    """
    kernel = Microkernel.named(name.literal_value)

    def codegen(context: Any, builder: Builder, _: Any, __: Any) -> Value:
        if kernel.instruction.rows > 1:
            (amx.lay_out_registers if use.literal_value else amx.give_up_registers)(builder)
        return context.get_dummy_value()

    return types.none(name, use), codegen


@intrinsic(prefer_literal=True)
def largest(_: Any, spec: Any, y: Any, x: Any, kernel: Any, row: Any, pixel: Any) -> Any:
    """Store the largest of a window's vectors, value by value: called with int64.

    `spec` is a literal: the values' dtype by NumPy's name, a slash, and their number. `y` is the
    address to store at, `x` that of the window's first vector. The window has `kernel` rows and
    columns, `row` and `pixel` bytes apart.
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
    """Show the assembly that LLVM makes of a microkernel, for a CPU that need not be this one.

    The microkernel is of an instruction set of x86, or the generic one. The syntax is AT&T's: the
    result comes last.
    """
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    scalars = ir.LiteralStructType(list(SCALARS.values()))
    signature = ir.FunctionType(VOID, [I64] * 13 + [scalars])
    function = ir.Function(module, signature, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    write_tile(builder, kernel, *function.args)
    builder.ret_void()
    module.triple = "x86_64-unknown-linux-gnu"
    features = ",".join(f"+{name}" for name in sorted(kernel.isa.features))
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(cpu="x86-64", features=features, opt=3)
    parsed = binding.parse_assembly(str(module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))
