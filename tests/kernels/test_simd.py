"""Microkernels: what each instruction computes, and that LLVM makes it of the IR."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from minires.errors import MiniresError
from minires.kernels import simd
from minires.kernels.pack import aligned, prepack
from minires.kernels.simd import (
    ISAS,
    assembly,
    available_isas,
    choose_isa,
    groups_at_once,
    largest,
    microkernel,
    tile_registers,
)
from minires.reference import gemm_u8s8_ref, requantize_ref, round_bf16_ref
from tests.comparing import assert_close, assert_same, gemm_bound
from tests.seeded_weights import uniform

Array = npt.NDArray[Any]
ISA = {isa.name: isa for isa in ISAS}
HERE = {isa.name for isa in available_isas()}
NEEDS = {  # of the instructions that not every x86 has
    "fma": {"avx2", "avx512", "avxvnni"},
    "vpmaddwd": {"avx2"},
    "vpmaddubsw": {"avx2"},
    "vpmaddubsw, split": {"avx2"},
    "fma of halves": {"avx2"},
    "vpdpbusd": {"avx512vnni", "avxvnni"},
    "vdpbf16ps": {"avx512bf16"},
    "tdpbusd": {"amx"},
    "tdpbf16ps": {"amx"},
}


def skip_without(instruction: str, lanes: int) -> None:
    if not NEEDS.get(instruction, HERE) & HERE:
        pytest.skip(f"this CPU lacks {instruction}")
    if instruction.startswith("vp") and lanes == 16 and "avx512" not in HERE:
        pytest.skip("this CPU lacks AVX-512")


def run_tile(
    instruction: str, epilogue: str, lanes: int, rows: int, vectors: int, x: Array, w: Array,
    bias: Array, m: Array, y: Array, residual: Array | None = None,
    places: Array | None = None, **scalars: float,
) -> Array:  # fmt: skip
    """Compute (rows, K) by (NR, K) in one tile."""
    spec = f"{instruction}/{epilogue}/{lanes}/{rows}/{vectors}"
    group = 4 // w.itemsize
    packed = prepack(w, 1, w.shape[1], group, lanes * vectors, groups_at_once(instruction))
    memory = aligned((rows, packed.shape[1] * group), x.dtype)
    memory[:, : x.shape[1]] = x
    x_offsets = (np.arange(rows + 1) * memory.strides[0]).astype(np.int32)
    y_offsets = (np.arange(rows) * y.shape[1] if places is None else places).astype(np.int32)
    given = [scalars.get(name, 0) for name in simd.SCALARS]
    f, i = np.float32, np.int32
    packs = (f(given[0]), i(given[1]), f(given[2]), f(given[3]), i(given[4]), f(given[5]))

    @njit
    def run(*addresses: int) -> None:
        x, xo, w, groups, bias, m, residual, y, yo = addresses
        tile_registers(spec, True)
        microkernel(spec, x, xo, w, 1, groups, 0, w, 0, bias, m, residual, y, yo, packs)
        tile_registers(spec, False)

    arrays = [memory, x_offsets, packed, bias, m, residual, y, y_offsets]
    places = [0 if array is None else array.ctypes.data for array in arrays]
    run(*places[:3], packed.shape[1], *places[3:])
    return y


WIDTHS = [(4, 4, 2), (8, 6, 2), (16, 6, 4), (16, 1, 1)]  # lanes, rows, vectors
EXACT = ["mul, add of bytes", "vpmaddwd", "vpmaddubsw, split", "vpdpbusd"]
MATRICES = [(16, 32, 2), (16, 16, 1), (16, 16, 3)]
CASES = [(name, *width) for name in EXACT for width in WIDTHS]
CASES += [("tdpbusd", *width) for width in MATRICES]


@pytest.mark.parametrize("kind", ["any", "extremes"])
@pytest.mark.parametrize("K", [4, 64, 100])
@pytest.mark.parametrize(("instruction", "lanes", "rows", "vectors"), CASES)
def test_int8_instructions_are_exact(
    instruction: str, lanes: int, rows: int, vectors: int, K: int, kind: str
) -> None:
    skip_without(instruction, lanes)
    if lanes == 4 and "vpmadd" in instruction:
        pytest.skip("made for 8 and 16 lanes")
    random = np.random.RandomState(K)
    x = random.randint(0, 256, (rows, K)).astype(np.uint8)
    w = random.randint(-128, 128, (lanes * vectors, K)).astype(np.int8)
    if kind == "extremes":
        x[...], w[...] = 255, np.where(np.arange(len(w)) % 2, -128, 127)[:, np.newaxis]
    y = np.zeros((rows, len(w)), np.int32)
    zeros = np.zeros(len(w), np.int32)
    run_tile(instruction, "store", lanes, rows, vectors, x, w, zeros, zeros, y)
    assert_same(y, gemm_u8s8_ref(x, w.T))


@pytest.mark.parametrize(("lanes", "rows", "vectors"), MATRICES)
def test_a_matrix_instruction_sums_bfloat16_within_its_bound(
    lanes: int, rows: int, vectors: int
) -> None:
    skip_without("tdpbf16ps", lanes)
    x, w = (
        round_bf16_ref(uniform(-1, 1, (n, 77), seed))
        for n, seed in [(rows, 1), (lanes * vectors, 2)]
    )
    bits = [(a.view(np.int32) >> 16).astype(np.int16) for a in (x, w)]
    bias, y = uniform(-1, 1, (len(w),), 3), np.zeros((rows, len(w)), np.float32)
    infinite = {"low": -np.inf, "high": np.inf}
    run_tile("tdpbf16ps", "activate", lanes, rows, vectors, *bits, bias, bias, y, **infinite)
    exact = x.astype(np.float64) @ w.T + bias
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(w.T) + np.abs(bias)
    assert_close(y, exact, gemm_bound(80, magnitude))


def test_a_row_that_is_none_is_not_written() -> None:
    skip_without("tdpbusd", 16)
    x, w = np.ones((16, 4), np.uint8), np.ones((16, 4), np.int8)
    y, zeros = np.zeros((16, 16), np.int32), np.zeros(16, np.int32)
    places = np.where(np.arange(16) % 3 == 1, np.arange(16) * 16, -1)
    run_tile("tdpbusd", "store", 16, 16, 1, x, w, zeros, zeros, y, places=places)
    assert_same(y, np.where(places >= 0, 4, 0).astype(np.int32)[:, None].repeat(16, 1))


def test_vpmaddubsw_saturates() -> None:
    """Why there is a VNNI: 255 * 127 * 2 = 64,770 is cut to 32,767, and nothing says so."""
    skip_without("vpmaddubsw", 8)
    x, w = np.full((1, 4), 255, np.uint8), np.full((8, 4), 127, np.int8)
    y, zeros = np.zeros((1, 8), np.int32), np.zeros(8, np.int32)
    run_tile("vpmaddubsw", "store", 8, 1, 1, x, w, zeros, zeros, y)
    assert_same(y, np.full((1, 8), 2 * 32_767, np.int32))
    assert gemm_u8s8_ref(x, w.T)[0, 0] == 4 * 255 * 127 == 129_540


@pytest.mark.parametrize(("lanes", "rows", "vectors"), WIDTHS)
@pytest.mark.parametrize("instruction", ["mul, add", "fma"])
def test_float_instructions_are_within_their_bound(
    instruction: str, lanes: int, rows: int, vectors: int
) -> None:
    skip_without(instruction, lanes)
    x, w = uniform(-1, 1, (rows, 77), 1), uniform(-1, 1, (lanes * vectors, 77), 2)
    bias = uniform(-1, 1, (len(w),), 3)
    residual = uniform(-1, 1, (rows, len(w)), 4)
    y = np.zeros_like(residual)
    run_tile(instruction, "activate", lanes, rows, vectors, x, w, bias, bias, y, residual, low=0)
    exact = x.astype(np.float64) @ w.T + bias + residual
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(w.T) + np.abs(bias) + np.abs(residual)
    assert_close(y, np.maximum(exact, 0), gemm_bound(80, magnitude))


@pytest.mark.parametrize(("lanes", "rows", "vectors"), WIDTHS)
def test_requantization_has_the_definitions_bits(lanes: int, rows: int, vectors: int) -> None:
    """Exact ties, saturation at both ends, and sums beyond 2**24; without and with a residual."""
    n = lanes * vectors
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
        for shortcut in (None, residual):
            steps = (residual.astype(np.int32) - 7).astype(np.float32) * np.float32(0.37)
            expected = requantize_ref(acc, m, zero_point, None if shortcut is None else steps)
            y = np.zeros((rows, n), np.uint8)
            run_tile("mul, add of bytes", "requantize", lanes, rows, vectors, x, w, bias, m, y,
                     shortcut, m_residual=0.37, residual_zero_point=7, low=-zero_point,
                     high=255 - zero_point, zero_point=zero_point)  # fmt: skip
            assert_same(y, expected)


@pytest.mark.parametrize(
    "instruction", ["mul, add of halves", "fma of halves", "vdpbf16ps", "tdpbf16ps"]
)
def test_sums_are_rounded_to_bfloat16_as_the_definition_does(instruction: str) -> None:
    """Ties, and what is just beside them, in both directions; without and with a residual."""
    skip_without(instruction, 16)
    lanes = 16
    upper = np.array([0x3F80, 0x4123]) << 16
    bits = upper[:, None] + np.array([0x7FFF, 0x8000, 0x8001, 0x18000])
    sums = bits.astype(np.int32).view(np.float32).ravel()
    bias = np.concatenate([sums, -sums])
    x, w = np.zeros((16, 2), np.int16), np.zeros((lanes, 2), np.int16)
    residual = uniform(-1, 1, (16, lanes), 1).view(np.int32) >> 16
    for shortcut in (None, residual.astype(np.int16)):
        added = np.float32(0) if shortcut is None else (residual << 16).view(np.float32)
        y = np.zeros((16, lanes), np.int16)
        run_tile(instruction, "activate, bf16", lanes, 16, 1, x, w, bias, bias, y, shortcut,
                 low=-np.inf)  # fmt: skip
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
        if jump := re.match(r"\s+j\w+\s+(\.LBB\d+_\d+)$", line):
            starts = [i for i, other in enumerate(lines[:end]) if other.startswith(jump[1] + ":")]
            loops += [lines[start:end] for start in starts]
    return min((loop for loop in loops if mnemonic in "".join(loop)), key=len)


MNEMONICS = {
    "fma": "vfmadd",
    "fma of halves": "vfmadd",
    "vdpbf16ps": "vdpbf16ps",
    "vpdpbusd": "vpdpbusd",
    "vpmaddwd": "vpmaddwd",
    "vpmaddubsw, split": "vpmaddubsw",
    "tdpbf16ps": "tdpbf16ps",
    "tdpbusd": "tdpbusd",
}
EPILOGUE = {"f32": "activate", "bf16": "activate, bf16", "u8s8": "requantize"}


@pytest.mark.parametrize("kind", ["f32", "bf16", "u8s8"])
@pytest.mark.parametrize("name", [name for name in ISA if name != "generic"])
def test_llvm_makes_the_instruction_of_it_and_spills_no_sum(name: str, kind: str) -> None:
    isa = ISA[name]
    instruction, (rows, vectors) = isa.instructions[kind], isa.tiles[kind]
    spec = f"{instruction}/{EPILOGUE[kind]}/{isa.lanes}/{rows}/{vectors}"
    text = assembly(spec, isa)
    assert ("vcvtneps2bf16" in text) == (instruction in ("vdpbf16ps", "tdpbf16ps"))
    loop = inner_loop(text, MNEMONICS[instruction])
    if groups_at_once(instruction) > 1:  # its sums are in registers by number
        assert sum(instruction in line for line in loop) == 4
        assert sum("tileloadd" in line for line in loop) == 4
        return
    register = "%zmm" if isa.lanes == 16 else "%ymm"
    made = [line for line in loop if MNEMONICS[instruction] in line and register in line]
    per_lane = 2 if instruction in ("vpmaddwd", "fma of halves", "vpmaddubsw, split") else 1
    assert len(made) == rows * vectors * per_lane
    assert [line for line in loop if "(%rsp)" in line and register in line] == []


def test_the_best_available_set_is_chosen_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MINIRES_ISA", raising=False)
    assert choose_isa() == available_isas()[0]
    monkeypatch.setenv("MINIRES_ISA", "generic")
    assert choose_isa() is ISA["generic"]
    missing = next((name for name in ISA if name not in HERE), "abacus")
    monkeypatch.setenv("MINIRES_ISA", missing)
    with pytest.raises(MiniresError, match=f"MINIRES_ISA is '{missing}'; on this machine it may"):
        choose_isa()


def test_amx_is_for_processes_that_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ",".join(f"+{name}" for name in frozenset().union(*(i.features for i in ISAS)))
    monkeypatch.setattr(simd.config, "CPU_FEATURES", None)
    monkeypatch.setattr(simd, "get_host_cpu_features", lambda: everything)
    for allowed in (True, False):
        monkeypatch.setattr(simd, "_may_use_amx", lambda allowed=allowed: allowed)
        assert ("amx" in [isa.name for isa in available_isas()]) == allowed
    monkeypatch.setenv("MINIRES_ISA", "amx")
    with pytest.raises(MiniresError, match="MINIRES_ISA is 'amx'; on this machine it may be"):
        choose_isa()


def test_numbas_restrictions_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simd.config, "CPU_FEATURES", "")
    assert [isa.name for isa in available_isas()] == ["generic"]
    monkeypatch.setattr(simd.config, "CPU_FEATURES", "+avx2,-avx512f")
    assert [isa.name for isa in available_isas()] == ["generic"]  # AVX2 here means FMA too


def test_what_the_cpu_lacks_is_not_available_whatever_numba_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = frozenset().union(*(isa.features for isa in ISAS))
    monkeypatch.setattr(simd.config, "CPU_FEATURES", ",".join(f"+{name}" for name in everything))
    monkeypatch.setattr(simd, "get_host_cpu_features", lambda: "+avx2,+fma,-avx512f")
    assert [isa.name for isa in available_isas()] == ["avx2", "generic", "avx2, vpmaddubsw"]
