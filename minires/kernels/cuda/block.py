"""A block of threads, and the tile of a GEMM's output that it computes.

A tile is `Tile.rows` of M by `Tile.columns` of N. Its block walks along K, 64 bytes at a time. They
are copied to shared memory, several steps ahead of their use. im2col is implicit: a row of the tile
begins at its own offset into the padded NHWC activations, and a kernel's next row lies a fixed
stride further on. Then the warps multiply, each for its own part of the tile.

In shared memory a row has 64 bytes, 4 chunks of 16. Eight rows are read at once, and every second
one would lie in the same banks. So a row's chunks change places, depending on the row's number.
This is the swizzle.
"""

from typing import Any, NamedTuple

from llvmlite import ir

from minires.kernels.cuda import ptx
from minires.kernels.cuda.instructions import Instruction
from minires.kernels.ir import I32, I64, Builder, Value, loop, vector

STEP = 64  # bytes of K, of each row, that are copied together
CHUNK = 16  # bytes that one copy takes


class Tile(NamedTuple):
    """How a block shares a tile among its warps, each of which has 16 x 8 sums so many times."""

    warps_m: int
    warps_n: int
    down: int  # 16 rows each, of a warp
    across: int  # 8 columns each, of a warp
    stages: int  # of shared memory: steps along K that are there or on their way
    splits: bool = False  # whether several blocks may share K

    @property
    def rows(self) -> int:
        """Of M."""
        return 16 * self.down * self.warps_m

    @property
    def columns(self) -> int:
        """Of N."""
        return 8 * self.across * self.warps_n

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def stage_bytes(self) -> int:
        """Of shared memory, for one step along K."""
        return STEP * (self.rows + self.columns)


def swizzle(builder: Builder, row: Value, chunk: Value) -> Value:
    """Tell where in a row, in bytes, a chunk lies: `fragments.swizzle_ref`."""
    place = builder.xor(chunk, builder.and_(builder.lshr(row, I32(1)), I32(3)))
    return builder.shl(place, I32(4))


class Block:
    """Writes a block's code: `sum_up` all of it, the other methods their part.

    On a Turing card copies do not run by themselves: a thread waits for each of its own.
    """

    def __init__(
        self, builder: Builder, instruction: Instruction, tile: Tile, step: Any, turing: bool
    ) -> None:
        self.builder = builder
        self.instruction = instruction
        self.tile = tile
        self.step = step
        self.turing = turing
        name = f"tile_{instruction.operands}_{tile.rows}x{tile.columns}_{tile.stages}"
        self.memory = ptx.shared_memory(builder, name, tile.stages * tile.stage_bytes)
        self.thread = ptx.register(builder, "tid.x")
        self.lane = builder.and_(self.thread, I32(31))
        warp = builder.lshr(self.thread, I32(5))
        self.warp_m = builder.urem(warp, I32(tile.warps_m))
        self.warp_n = builder.udiv(warp, I32(tile.warps_m))
        # Panels of columns are neighbours in time: they share rows of x, which stay in the cache.
        self.first_row = builder.mul(ptx.register(builder, "ctaid.y"), I32(tile.rows))
        self.first_column = builder.mul(ptx.register(builder, "ctaid.x"), I32(tile.columns))
        self.split = ptx.register(builder, "ctaid.z")

    def sum_up(self) -> list[list[list[Value]]]:
        """Sum along K: [16 rows][8 columns][4 of a lane's sums]."""
        builder, tile = self.builder, self.tile
        self._find_sources()
        first, last = self._stretch()
        per_run = builder.udiv(builder.trunc(self.step.run, I32), I32(STEP))
        run = builder.udiv(first, per_run)
        inside = builder.urem(first, per_run)
        wide_run, wide_inside = (builder.zext(value, I64) for value in (run, inside))
        offset = builder.add(
            builder.mul(wide_run, self.step.run_stride), builder.mul(wide_inside, I64(STEP))
        )
        at = first
        stage = I32(0)
        for stage_number in range(tile.stages - 1):
            self._fetch(at, last, offset, I32(stage_number))
            at, inside, offset = self._advance(at, inside, offset, per_run)

        def body(at: Value, inside: Value, offset: Value, *state: Value) -> list[Value]:
            stage, free, *sums = state
            self._wait_for_copies(but=tile.stages - 2)
            # All threads have waited for their copies, and read the stage that is free now.
            ptx.barrier(builder)
            self._fetch(at, last, offset, free)
            sums = self._multiply(stage, sums)
            stage, free = (self._next(value) for value in (stage, free))
            return [*self._advance(at, inside, offset, per_run), stage, free, *sums]

        count = tile.down * tile.across * 4
        zeros = [ir.Constant(self.instruction.sums, 0)] * count
        carried = [at, inside, offset, stage, I32(tile.stages - 1), *zeros]
        steps = builder.zext(builder.sub(last, first), I64)
        sums = loop(builder, steps, carried, body)[-count:]
        self._wait_for_copies(but=0)
        ptx.barrier(builder)
        four = [sums[i : i + 4] for i in range(0, count, 4)]
        return [four[i : i + tile.across] for i in range(0, len(four), tile.across)]

    def _stretch(self) -> tuple[Value, Value]:
        """Tell which steps along K are this block's: all of them, unless blocks share K."""
        builder = self.builder
        total = builder.trunc(builder.udiv(self.step.k_bytes, I64(STEP)), I32)
        if not self.tile.splits:
            return I32(0), total
        each = builder.trunc(self.step.steps_each, I32)
        first = builder.mul(self.split, each)
        last = builder.add(first, each)
        return first, builder.select(builder.icmp_signed("<", last, total), last, total)

    def _find_sources(self) -> None:
        """Find the chunks that this thread copies at each step, and where they go."""
        builder = self.builder
        tile = self.tile
        step = self.step
        row = builder.lshr(self.thread, I32(2))
        chunk = builder.and_(self.thread, I32(3))
        in_row = builder.zext(builder.shl(chunk, I32(4)), I64)
        self.sources: list[tuple[Value, bool]] = []  # an address, and whether it is x's
        self.targets: list[Value] = []
        at_once = tile.threads // (STEP // CHUNK)  # rows
        for first in range(0, tile.rows + tile.columns, at_once):
            place = builder.add(row, I32(first))
            if first < tile.rows:
                number = builder.zext(builder.add(self.first_row, place), I64)
                entry = builder.add(step.x_offsets, builder.shl(number, I64(2)))
                offset = builder.sext(ptx.load(builder, entry, I32, 4), I64)
                address = builder.add(step.x, offset)
            else:
                column = builder.sub(builder.add(self.first_column, place), I32(tile.rows))
                wide = builder.zext(column, I64)
                address = builder.add(step.w, builder.mul(wide, step.k_bytes))
            self.sources.append((builder.add(address, in_row), first < tile.rows))
            inside = builder.add(builder.mul(place, I32(STEP)), swizzle(builder, place, chunk))
            self.targets.append(builder.add(self.memory, inside))

    def _fetch(self, at: Value, last: Value, offset: Value, stage: Value) -> None:
        """Start copying a step along K, if there is one: x from `offset` on, w by its number."""
        builder = self.builder
        copy = ptx.copy_16 if self.turing else ptx.start_copying_16
        to = builder.mul(stage, I32(self.tile.stage_bytes))
        of_w = builder.mul(builder.zext(at, I64), I64(STEP))
        with builder.if_then(builder.icmp_signed("<", at, last)):
            for (address, of_x), target in zip(self.sources, self.targets, strict=True):
                source = builder.add(address, offset if of_x else of_w)
                copy(builder, builder.add(target, to), source)
        if not self.turing:
            ptx.commit_copies(builder)  # an empty group too, so that they can be counted

    def _wait_for_copies(self, but: int) -> None:
        if not self.turing:
            ptx.wait_for_copies(self.builder, but)

    def _advance(
        self, at: Value, inside: Value, offset: Value, per_run: Value
    ) -> tuple[Value, Value, Value]:
        """Go to the next step along K: 64 bytes on, or to the kernel's next row."""
        builder, step = self.builder, self.step
        following = builder.add(inside, I32(1))
        ends = builder.icmp_signed("==", following, per_run)
        jump = builder.add(builder.sub(step.run_stride, step.run), I64(STEP))
        offset = builder.add(offset, builder.select(ends, jump, I64(STEP)))
        return builder.add(at, I32(1)), builder.select(ends, I32(0), following), offset

    def _next(self, stage: Value) -> Value:
        builder = self.builder
        following = builder.add(stage, I32(1))
        ends = builder.icmp_signed("==", following, I32(self.tile.stages))
        return builder.select(ends, I32(0), following)

    def _multiply(self, stage: Value, sums: list[Value]) -> list[Value]:
        """Multiply a step along K, for this warp's part of the tile."""
        builder, tile = self.builder, self.tile
        start = builder.add(self.memory, builder.mul(stage, I32(tile.stage_bytes)))
        a_row = builder.mul(self.warp_m, I32(16 * tile.down))
        b_row = builder.add(builder.mul(self.warp_n, I32(8 * tile.across)), I32(tile.rows))
        if self.instruction.warp:
            return self._multiply_matrices(start, a_row, b_row, sums)
        return self._multiply_words(start, a_row, b_row, sums)

    def _multiply_matrices(
        self, start: Value, a_row: Value, b_row: Value, sums: list[Value]
    ) -> list[Value]:
        builder = self.builder
        tile = self.tile
        lane = self.lane
        # Which row and chunk a lane names to ldmatrix: of A rows 0 to 15, then the next chunk;
        # of B rows 0 to 7, their next chunk, then rows 8 to 15.
        a_row = builder.add(a_row, builder.and_(lane, I32(15)))
        a_chunk = builder.lshr(lane, I32(4))
        upper = builder.shl(builder.lshr(lane, I32(4)), I32(3))
        b_row = builder.add(b_row, builder.add(builder.and_(lane, I32(7)), upper))
        b_chunk = builder.and_(builder.lshr(lane, I32(3)), I32(1))
        sums = list(sums)
        for half in range(STEP // 32):
            a = [
                ptx.load_matrices(builder, self._place(start, a_row, 16 * i, a_chunk, 2 * half))
                for i in range(tile.down)
            ]
            b: list[list[Value]] = []
            for j in range(tile.across // 2):
                place = self._place(start, b_row, 16 * j, b_chunk, 2 * half)
                four = ptx.load_matrices(builder, place)
                b += [four[:2], four[2:]]
            for i in range(tile.down):
                for j in range(tile.across):
                    at = 4 * (i * tile.across + j)
                    sums[at : at + 4] = self.instruction.multiply(
                        builder, sums[at : at + 4], a[i], b[j]
                    )
        return sums

    def _place(self, start: Value, row: Value, further: int, chunk: Value, chunks: int) -> Value:
        """Tell where a chunk lies. Going 16 rows further does not change the swizzle."""
        builder = self.builder
        in_row = swizzle(builder, row, builder.add(chunk, I32(chunks)))
        at = builder.add(builder.mul(row, I32(STEP)), in_row)
        return builder.add(builder.add(start, at), I32(further * STEP))

    def _multiply_words(
        self, start: Value, a_row: Value, b_row: Value, sums: list[Value]
    ) -> list[Value]:
        """Multiply word by word. Each lane has the sums that mma would give it."""
        builder = self.builder
        tile = self.tile
        lane = self.lane
        words = vector(I32, CHUNK // 4)
        a_row = builder.add(a_row, builder.lshr(lane, I32(2)))
        b_row = builder.add(b_row, builder.shl(builder.and_(lane, I32(3)), I32(1)))
        sums = list(sums)
        for chunk in range(STEP // CHUNK):
            columns = []
            for column in range(2 * tile.across):  # 8 * j + 2 * (lane % 4) + 0 or 1
                row = builder.add(b_row, I32(8 * (column // 2) + column % 2))
                place = self._place(start, row, 0, I32(chunk), 0)
                columns.append(ptx.load_shared(builder, place, words, CHUNK))
            for half in range(2 * tile.down):  # rows 8 * half + lane / 4
                row = builder.add(a_row, I32(8 * half))
                place = self._place(start, row, 0, I32(chunk), 0)
                a = ptx.load_shared(builder, place, words, CHUNK)
                for column, b in enumerate(columns):
                    block = (half // 2) * tile.across + column // 2
                    at = 4 * block + 2 * (half % 2) + column % 2
                    for word in range(CHUNK // 4):
                        sums[at] = self.instruction.multiply(
                            builder, sums[at],
                            builder.extract_element(a, I32(word)),
                            builder.extract_element(b, I32(word)),
                        )  # fmt: skip
        return sums
