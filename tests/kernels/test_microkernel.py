"""Microkernels: what each instruction computes, and that LLVM makes it of the IR."""

import functools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit, types

from minires.kernels.compile import compile_for
from minires.kernels.epilogue import SCALARS
from minires.kernels.ir import ARM, FAMILY
from minires.kernels.isa import INSTRUCTIONS, ISA, ISAS, available_isas
from minires.kernels.microkernel import (
    Microkernel,
    assembly,
    largest,
    matrix_registers,
    microkernel,
)
from minires.kernels.pack import aligned, make_up, prepack
from minires.reference import gemm_u8s8_ref, requantize_ref, round_bf16_ref
from tests.arm import emulator
from tests.comparing import assert_close, assert_same, gemm_bound
from tests.seeded_weights import uniform

Array = npt.NDArray[Any]
TILES = [(1, 1), (4, 2), (6, 4)]  # rows and vectors
MATRICES = [(32, 2), (16, 1), (16, 3)]


def tiles(operands: str) -> list[tuple[str, int, int]]:
    """List the tiles to try of each set: its own, and some that may not even fit its registers."""
    return [
        (isa.name, rows, vectors)
        for isa in ISAS.values()
        for rows, vectors in (MATRICES if isa.instructions[operands].own_registers else TILES)
        if rows % isa.instructions[operands].rows == 0
    ]


def isa_here(name: str) -> ISA:
    """Find a set that this CPU has, or one of ARM where that can be emulated."""
    emulated = ISAS[name].family == ARM and emulator.is_there()
    if ISAS[name] not in available_isas() and not emulated:
        pytest.skip(f"this CPU lacks {name}")
    return ISAS[name]


@functools.cache
def compiled(name: str) -> Any:
    """Compile what computes one tile, for its own instruction set."""

    def run(
        x: int, x_offsets: int, w: int, runs: int, groups: int, run_stride: int, later: int,
        later_step: int, bias: int, m: int, residual: int, y: int, y_offsets: int,
        scalars: tuple[float, int, float, float, int, float],
    ) -> None:  # fmt: skip
        matrix_registers(name, True, groups)
        microkernel(name, x, x_offsets, w, runs, groups, run_stride, later, later_step, bias, m,
                    residual, y, y_offsets, scalars)  # fmt: skip
        matrix_registers(name, False, groups)

    f32, i32 = types.float32, types.int32
    signature = types.void(*[types.int64] * 13, types.Tuple([f32, i32, f32, f32, i32, f32]))
    return compile_for(Microkernel.named(name).isa, run, signature, name, keep=False)


def run_tiles(kernel: Microkernel, operands: Array, scalars: list[float], _: list[Array]) -> None:
    """Compute tiles, one after another, as `tests.arm.emulator.run_tiles` does for ARM."""
    low, zero_point = scalars[1], scalars[4]
    values = scalars[0], int(low), *scalars[2:4], int(zero_point), scalars[5]
    for call in operands.tolist():
        compiled(kernel.name)(*call, values)


def run_tile(
    kernel: Microkernel, x: Array, w: Array, bias: Array, m: Array, y: Array,
    residual: Array | None = None, places: Array | None = None, **scalars: float,
) -> Array:  # fmt: skip
    """Compute (rows, K) by (NR, K) in one tile."""
    group = 4 // w.itemsize
    instruction = kernel.instruction
    at_once = instruction.multiple
    if instruction.own_registers:
        at_once = min(at_once, -(-w.shape[1] // group))
    packed = prepack(w, 1, w.shape[1], group, kernel.columns, at_once, instruction.side_by_side)
    memory = aligned((kernel.rows, packed.shape[1] * group), x.dtype)
    memory[:, : x.shape[1]] = x
    x_offsets = (np.arange(kernel.rows + 1) * memory.strides[0]).astype(np.int32)
    rows = np.arange(kernel.rows) * y.shape[1]
    y_offsets = (rows if places is None else places).astype(np.int32)
    arrays = [memory, x_offsets, packed, bias, m, residual, y, y_offsets]
    at = [0 if array is None else array.ctypes.data for array in arrays]
    given = [scalars.get(name, 0) for name in SCALARS]
    operands = np.array([[*at[:3], 1, packed.shape[1], 0, at[2], 0, *at[3:]]])
    held = [array for array in arrays if array is not None]
    run = run_tiles if kernel.isa.family == FAMILY else emulator.run_tiles
    run(kernel, operands, given, held)
    return y


def test_a_name_says_all_of_a_microkernel() -> None:
    for isa in ISAS.values():
        for operands, epilogue in EPILOGUE.items():
            kernel = Microkernel.of(isa, operands, epilogue)
            assert Microkernel.named(kernel.name) == kernel
    assert Microkernel.of(ISAS["avx512vnni"], "u8s8", "requantize").name == (
        "gemm_u8s8_avx512vnni_6x64_requantize"
    )


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("K", [4, 64, 100])
@pytest.mark.parametrize(("name", "rows", "vectors"), tiles("u8s8"))
def test_int8_instructions_are_exact(
    name: str, rows: int, vectors: int, K: int, extreme: bool
) -> None:
    kernel = Microkernel(isa_here(name), "u8s8", "store", rows, vectors)
    random = np.random.RandomState(K)
    x = random.randint(0, 256, (rows, K)).astype(np.uint8)
    w = random.randint(-128, 128, (kernel.columns, K)).astype(np.int8)
    if extreme:
        x[...] = 255
        w[...] = np.where(np.arange(len(w)) % 2, -128, 127)[:, np.newaxis]
    y = np.zeros((rows, len(w)), np.int32)
    zeros = np.zeros(len(w), np.int32)
    run_tile(kernel, x, w, zeros, zeros, y)
    assert_same(make_up(kernel.instruction, y, w), gemm_u8s8_ref(x, w.T))


@pytest.mark.parametrize(("name", "rows", "vectors"), tiles("bf16"))
def test_sums_of_bfloat16_are_within_their_bound(name: str, rows: int, vectors: int) -> None:
    kernel = Microkernel(isa_here(name), "bf16", "activate", rows, vectors)
    x = round_bf16_ref(uniform(-1, 1, (rows, 77), 1))
    w = round_bf16_ref(uniform(-1, 1, (kernel.columns, 77), 2))
    bits = [(a.view(np.int32) >> 16).astype(np.int16) for a in (x, w)]
    bias = uniform(-1, 1, (len(w),), 3)
    y = np.zeros((rows, len(w)), np.float32)
    run_tile(kernel, *bits, bias, bias, y, low=-np.inf, high=np.inf)
    exact = x.astype(np.float64) @ w.T + bias
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(w.T) + np.abs(bias)
    assert_close(y, exact, gemm_bound(80, magnitude))


def test_a_row_that_is_none_is_not_written() -> None:
    kernel = Microkernel(isa_here("amx"), "u8s8", "store", 16, 1)
    x, w = np.ones((16, 4), np.uint8), np.ones((16, 4), np.int8)
    y, zeros = np.zeros((16, 16), np.int32), np.zeros(16, np.int32)
    places = np.where(np.arange(16) % 3 == 1, np.arange(16) * 16, -1)
    run_tile(kernel, x, w, zeros, zeros, y, places=places)
    assert_same(y, np.where(places >= 0, 4, 0).astype(np.int32)[:, None].repeat(16, 1))


def test_vpmaddubsw_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there is a VNNI: 255 * 127 * 2 = 64,770 is cut to 32,767, and nothing says so."""
    instructions = {"u8s8": INSTRUCTIONS["vpmaddubsw"]}
    wrong = replace(isa_here("avx2"), name="saturating", instructions=instructions)
    monkeypatch.setitem(ISAS, "saturating", wrong)
    kernel = Microkernel(wrong, "u8s8", "store", 1, 1)
    x, w = np.full((1, 4), 255, np.uint8), np.full((8, 4), 127, np.int8)
    y, zeros = np.zeros((1, 8), np.int32), np.zeros(8, np.int32)
    run_tile(kernel, x, w, zeros, zeros, y)
    assert_same(y, np.full((1, 8), 2 * 32_767, np.int32))
    assert gemm_u8s8_ref(x, w.T)[0, 0] == 4 * 255 * 127 == 129_540


@pytest.mark.parametrize(("name", "rows", "vectors"), tiles("f32"))
def test_float_instructions_are_within_their_bound(name: str, rows: int, vectors: int) -> None:
    kernel = Microkernel(isa_here(name), "f32", "activate", rows, vectors)
    x = uniform(-1, 1, (rows, 77), 1)
    w = uniform(-1, 1, (kernel.columns, 77), 2)
    bias = uniform(-1, 1, (len(w),), 3)
    residual = uniform(-1, 1, (rows, len(w)), 4)
    y = np.zeros_like(residual)
    run_tile(kernel, x, w, bias, bias, y, residual, low=0)
    exact = x.astype(np.float64) @ w.T + bias + residual
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(w.T) + np.abs(bias) + np.abs(residual)
    assert_close(y, np.maximum(exact, 0), gemm_bound(80, magnitude))


@pytest.mark.parametrize(("name", "rows", "vectors"), tiles("u8s8"))
def test_requantization_has_the_definitions_bits(name: str, rows: int, vectors: int) -> None:
    """Exact ties, saturation at both ends, and sums beyond 2**24; without and with a residual."""
    kernel = Microkernel(isa_here(name), "u8s8", "requantize", rows, vectors)
    n = kernel.columns
    random = np.random.RandomState(0)
    for zero_point in (0, 3, 128, 255):
        # One weight and one activation are the accumulator; the bias brings it anywhere.
        x = random.randint(0, 256, (rows, 4)).astype(np.uint8)
        w = random.randint(-128, 128, (n, 4)).astype(np.int8)
        largest = random.choice([100, 2**20, 2**30], n)
        bias = (random.uniform(-1, 1, n) * largest).astype(np.int32)
        m = (random.choice([0.5, 0.25, 1 / 3, 1.7], n) * 255 / largest).astype(np.float32)
        m[::2] = 2.0 ** np.round(np.log2(m[::2]))  # every sum a multiple of a half, or less
        residual = random.randint(0, 256, (rows, n)).astype(np.uint8)
        acc = gemm_u8s8_ref(x, w.T) + bias
        made_up = make_up(kernel.instruction, bias, w)
        for shortcut in (None, residual):
            steps = (residual.astype(np.int32) - 7).astype(np.float32) * np.float32(0.37)
            expected = requantize_ref(acc, m, zero_point, None if shortcut is None else steps)
            y = np.zeros((rows, n), np.uint8)
            run_tile(
                kernel, x, w, made_up, m, y, shortcut, m_residual=0.37, residual_zero_point=7,
                low=-zero_point, high=255 - zero_point, zero_point=zero_point,
            )  # fmt: skip
            assert_same(y, expected)


@pytest.mark.parametrize("name", ISAS)
def test_sums_are_rounded_to_bfloat16_as_the_definition_does(name: str) -> None:
    """Ties, and what is just beside them, in both directions; without and with a residual."""
    isa = isa_here(name)
    vectors = 16 // isa.lanes
    kernel = Microkernel(isa, "bf16", "activate, bf16", 16, vectors)
    upper = np.array([0x3F80, 0x4123]) << 16
    bits = upper[:, None] + np.array([0x7FFF, 0x8000, 0x8001, 0x18000])
    sums = bits.astype(np.int32).view(np.float32).ravel()
    bias = np.concatenate([sums, -sums])
    x, w = np.zeros((16, 2), np.int16), np.zeros((16, 2), np.int16)
    residual = uniform(-1, 1, (16, 16), 1).view(np.int32) >> 16
    for shortcut in (None, residual.astype(np.int16)):
        added = np.float32(0) if shortcut is None else (residual << 16).view(np.float32)
        y = np.zeros((16, 16), np.int16)
        run_tile(kernel, x, w, bias, bias, y, shortcut, low=-np.inf)
        expected = np.broadcast_to(round_bf16_ref(bias + added), y.shape)
        assert_same((y.astype(np.int32) << 16).view(np.float32), expected.copy())


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_the_largest_of_a_window(dtype: Any) -> None:
    name = np.dtype(dtype).name
    x = np.random.RandomState(1).uniform(-99, 99, (3, 5, 16)).astype(dtype)
    y, spec = np.zeros(16, dtype), f"{name}/16"

    @njit
    def run(*numbers: int) -> None:
        y, x, row, pixel = numbers
        largest(spec, y, x, 3, row, pixel)

    run(y.ctypes.data, x[0, 1:].ctypes.data, *x.strides[:2])
    assert_same(y, x[:, 1:4].max(axis=(0, 1)))


# What LLVM makes of it


def inner_loop(text: str, mnemonic: str) -> list[str]:
    """Find the shortest loop that has it: from a label to the jump that goes back to it."""
    lines = text.splitlines()
    loops = []
    for end, line in enumerate(lines):
        if jump := re.match(r"\s+(?:j\w+|b\.\w+)\s+(\.LBB\d+_\d+)$", line):
            starts = [i for i, other in enumerate(lines[:end]) if other.startswith(jump[1] + ":")]
            loops += [lines[start:end] for start in starts]
    return min((loop for loop in loops if re.search(mnemonic, "".join(loop))), key=len)


EPILOGUE = {"f32": "activate", "bf16": "activate, bf16", "u8s8": "requantize"}


# A sum's register, by the CPUs' family and the number of lanes.
REGISTER = {("x86_64", 16): "%zmm", ("x86_64", 8): "%ymm", ("aarch64", 4): r"v\d+\.(4s|8h)"}


def spills(line: str, kernel: Microkernel) -> bool:
    """Tell whether a line keeps a vector on the stack."""
    if kernel.isa.family == "x86_64":
        return "(%rsp)" in line and REGISTER["x86_64", kernel.isa.lanes] in line
    return bool(re.search(r"\bq\d+.*\[sp\b", line))


@pytest.mark.parametrize("operands", EPILOGUE)
@pytest.mark.parametrize("name", [name for name in ISAS if name != "generic"])
def test_llvm_makes_the_instruction_of_it_and_spills_no_sum(name: str, operands: str) -> None:
    kernel = Microkernel.of(ISAS[name], operands, EPILOGUE[operands])
    text = assembly(kernel)
    assert bool(re.search("vcvtneps2bf16|bfcvtn", text)) == bool(kernel.instruction.narrow)
    (mnemonic, *_) = kernel.instruction.mnemonics
    loop = inner_loop(text, mnemonic)
    if kernel.instruction.own_registers:  # its sums are in registers by number
        assert sum(mnemonic in line for line in loop) == 4
        assert sum("tileloadd" in line for line in loop) == 4
        return
    register = REGISTER[kernel.isa.family, kernel.isa.lanes]
    least = kernel.instruction.rows
    one_sum = inner_loop(assembly(replace(kernel, rows=least, vectors=1)), mnemonic)
    per_sum, made = (
        sum(bool(re.search(f"{mnemonic}.*{register}", line)) for line in lines)
        for lines in (one_sum, loop)
    )
    # Some multiply half of a group at a time, or one value of it; and several groups may be loaded
    # together.
    assert per_sum / kernel.instruction.lanes_loaded in (1, 2, 4)
    assert made == kernel.rows // least * kernel.vectors * per_sum
    spilled = [line for line in loop if spills(line, kernel)]
    assert spilled == [], "a smaller tile would fit the registers"
    if kernel.instruction.lanes_loaded > 1 and kernel.instruction.name != "smull":
        assert not [line for line in loop if "\tdup" in line], "a lane is an operand as it is"


def test_a_spilled_sum_is_noticed() -> None:
    """A tile whose sums do not fit in the registers has such lines; the pattern finds them."""
    for name in ("avx2", "neon-i8mm"):
        kernel = replace(Microkernel.of(ISAS[name], "u8s8", "requantize"), rows=12, vectors=4)
        loop = inner_loop(assembly(kernel), kernel.instruction.mnemonics[0])
        assert [line for line in loop if spills(line, kernel)]
