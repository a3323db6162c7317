"""Microkernels as LLVM IR, and the instruction sets that they are made for.

A microkernel computes one tile of a matrix product, MR rows by NR columns, whose sums stay in
registers from the first product to the last. Numba compiles the loops around it from Python, but
has no word for a vector instruction; an intrinsic is where it lets LLVM IR in. This is the only
file that imports llvmlite.

All types share one shape: a lane of 32 bits holds one float32, two bfloat16 or four u8. Per step
along K, a tile loads 32 bits from each of its rows into all lanes of a vector, and multiplies
that by a vector of weights, 32 bits for each column. What differs is `MULTIPLY_ADD`: how many
products one instruction makes of it.

AMX has matrix registers beside the vectors: one instruction takes 16 rows of the tile, 16 groups of
32 bits along K and 16 columns. What is multiplied comes from the same panels and pixels.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from llvmlite import binding, ir
from numba.core import cgutils, config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from minires.errors import MiniresError

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, POINTER = ir.FloatType(), ir.PointerType()
Value: TypeAlias = Any  # llvmlite's own types say nothing to mypy
Builder: TypeAlias = Any
TRIPLE = binding.get_default_triple()
binding.initialize_native_asmparser()  # Numba does so on x86 alone; elsewhere `ticks` needs it, too
LLVM_22 = binding.llvm_version_info >= (22,)  # since when the dot products' operands say u8 or bf16


class ISA(NamedTuple):
    """An instruction set, as far as the kernels use it."""

    name: str
    features: frozenset[str]  # what LLVM calls the extensions that it takes
    lanes: int  # of 32 bits, in a vector
    instructions: dict[str, str]  # of `MULTIPLY_ADD` or `MULTIPLY_TILES`, type by type
    tiles: dict[str, tuple[int, int]]  # rows and vectors of the register tile


AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
AMX = AVX512 | {"avx512vnni", "avx512bf16", "amx-tile", "amx-int8", "amx-bf16"}
# 32 vector registers hold 6 x 4 sums, 4 vectors of weights and a broadcast; 16 hold 6 x 2 sums,
# or 4 x 2 where a multiplication needs copies of its operands. MR * NR is the work, MR + NR the
# loads: the squarer the tile, the fewer loads to a product.
WIDE, NARROW, LOW = (6, 4), (6, 2), (4, 2)
# AMX has eight registers of 16 rows by 64 bytes: 2 x 2 hold sums, the others what is multiplied.
HEIGHT = 16  # rows of a matrix register, and 32-bit groups along K that one instruction takes
MATRIX = (2 * HEIGHT, 2)
LINE = 64  # bytes that a cache fetches at once
AHEAD = 4096  # bytes of a panel, of which much lies in the second cache, that are fetched early
ISAS = [
    ISA(
        "amx",
        AMX,
        16,
        {"f32": "fma", "bf16": "tdpbf16ps", "u8s8": "tdpbusd"},
        {"f32": WIDE, "bf16": MATRIX, "u8s8": MATRIX},
    ),
    ISA(
        "avx512bf16",
        AVX512 | {"avx512vnni", "avx512bf16"},
        16,
        {"f32": "fma", "bf16": "vdpbf16ps", "u8s8": "vpdpbusd"},
        {"f32": WIDE, "bf16": WIDE, "u8s8": WIDE},
    ),
    ISA(
        "avx512vnni",
        AVX512 | {"avx512vnni"},
        16,
        {"f32": "fma", "bf16": "fma of halves", "u8s8": "vpdpbusd"},
        {"f32": WIDE, "bf16": LOW, "u8s8": WIDE},
    ),
    ISA(
        "avx512",
        AVX512,
        16,
        {"f32": "fma", "bf16": "fma of halves", "u8s8": "vpmaddwd"},
        {"f32": WIDE, "bf16": LOW, "u8s8": LOW},
    ),
    ISA(
        "avxvnni",
        AVX2 | {"avxvnni"},
        8,
        {"f32": "fma", "bf16": "fma of halves", "u8s8": "vpdpbusd"},
        {"f32": NARROW, "bf16": LOW, "u8s8": NARROW},
    ),
    ISA(
        "avx2",
        AVX2,
        8,
        {"f32": "fma", "bf16": "fma of halves", "u8s8": "vpmaddwd"},
        {"f32": NARROW, "bf16": LOW, "u8s8": LOW},
    ),
    ISA(
        "generic",
        frozenset(),
        4,
        {"f32": "mul, add", "bf16": "mul, add of halves", "u8s8": "mul, add of bytes"},
        {"f32": LOW, "bf16": LOW, "u8s8": LOW},
    ),
]


# For study, by name alone: what multiplied u8 by s8 before VNNI, three instructions, made exact.
ISAS += [
    isa._replace(
        name=f"{isa.name}, vpmaddubsw",
        instructions=isa.instructions | {"u8s8": "vpmaddubsw, split"},
    )
    for isa in ISAS
    if isa.name in ("avx2", "avx512")
]
ISA_NAMED = {isa.name: isa for isa in ISAS}


def _present(features: str) -> set[str]:
    """Take those of LLVM's words for features that have a plus."""
    return {word[1:] for word in features.split(",") if word[:1] == "+"}


@functools.cache
def _may_use_amx() -> bool:
    """Ask Linux for the matrix registers, which it saves only for processes that asked."""
    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def available_isas() -> list[ISA]:
    """List what this CPU has and Numba compiles for: the best first, those for study last."""
    features = _present(get_host_cpu_features())  # as Numba has it: AVX only where it trusts it
    if config.CPU_FEATURES is not None:  # restricted by NUMBA_CPU_FEATURES or NUMBA_CPU_NAME
        features &= _present(config.CPU_FEATURES)
    if "amx-tile" in features and not _may_use_amx():
        features.remove("amx-tile")
    return [isa for isa in ISAS if isa.features <= features]


def choose_isa() -> ISA:
    """Choose the best instruction set, or the one that MINIRES_ISA names.

    Raises
    ------
    MiniresError
        For a name that is not known or not available: an instruction that the CPU lacks would
        end the process.
    """
    isas = {isa.name: isa for isa in available_isas()}
    name = os.environ.get("MINIRES_ISA") or next(iter(isas))
    if name not in isas:
        raise MiniresError(f"MINIRES_ISA is {name!r}; on this machine it may be {', '.join(isas)}")
    return isas[name]


def _call(builder: Builder, name: str, returns: Any, *arguments: Value) -> Value:
    """Call a function of LLVM's by its name."""
    kind = ir.FunctionType(returns, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _splat(builder: Builder, value: Value, lanes: int) -> Value:
    """Copy a scalar into all lanes."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def _opaque(builder: Builder, value: Value, register: str) -> Value:
    """Pass a value through a text of no instructions, of which LLVM knows no more than that."""
    unknown = ir.FunctionType(value.type, [value.type])
    return builder.asm(unknown, "", f"={register},0", [value], side_effect=False)


def _constant(kind: Any, value: float) -> Value:
    """Make a vector whose lanes are all the same number."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


# How acc += a * b goes, lane by lane. a comes from a row of activations and b from a panel of
# weights, both as 32-bit integers, whatever they hold.


def _fma(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add one product: vfmadd231ps."""
    a, b = (builder.bitcast(v, acc.type) for v in (a, b))
    return _call(builder, f"llvm.fma.v{acc.type.count}f32", acc.type, a, b, acc)


def _mul_add(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add one product, rounded by itself: where there is no FMA."""
    a, b = (builder.bitcast(v, acc.type) for v in (a, b))
    return builder.fadd(acc, builder.fmul(a, b))


def _halves(multiply_add: Callable[..., Value]) -> Callable[..., Value]:
    """Make two products of bfloat16 of one of float32: each is a float32's upper half."""

    def run(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
        shift, mask = _constant(a.type, 16), _constant(a.type, -(2**16))
        acc = multiply_add(builder, acc, builder.shl(a, shift), builder.shl(b, shift))
        return multiply_add(builder, acc, builder.and_(a, mask), builder.and_(b, mask))

    return run


class _BFloat(ir.Type):
    """bfloat16, which llvmlite does not know and LLVM's text does."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _vdpbf16ps(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add two products of bfloat16, in one instruction."""
    lanes = acc.type.count
    if LLVM_22:
        a, b = (builder.bitcast(v, ir.VectorType(_BFloat(), 2 * lanes)) for v in (a, b))
    return _call(builder, f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}", acc.type, acc, a, b)


def _vpdpbusd(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products of u8 and s8 in s32, without saturation, in one instruction."""
    lanes = acc.type.count
    if LLVM_22:
        a, b = (builder.bitcast(v, ir.VectorType(I8, 4 * lanes)) for v in (a, b))
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", acc.type, acc, a, b)


def _vpmaddwd(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products by way of s16, which holds both u8 and s8: nothing can saturate.

    The bytes at even places and those at odd places are widened apart, by shifts; vpmaddwd sums
    two products of s16 in s32. LLVM sees that an operand widened before need not be again.
    """
    words = ir.VectorType(I16, 2 * acc.type.count)
    a, b = builder.bitcast(a, words), builder.bitcast(b, words)
    byte, mask = _constant(words, 8), _constant(words, 255)
    even = builder.and_(a, mask), builder.ashr(builder.shl(b, byte), byte)
    odd = builder.lshr(a, byte), builder.ashr(b, byte)
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[acc.type.count]
    for pair in (even, odd):
        acc = builder.add(acc, _call(builder, f"llvm.x86.{name}", acc.type, *pair))
    return acc


def _maddubs(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products as before VNNI: vpmaddubsw, vpmaddwd, vpaddd. It saturates.

    vpmaddubsw sums two products of u8 and s8 in s16: up to 255 * 127 * 2 = 64,770, where 32,767
    is the most that fits. What exceeds it is cut off, without a word.
    """
    lanes = acc.type.count
    words, octets = ir.VectorType(I16, 2 * lanes), ir.VectorType(I8, 4 * lanes)
    a, b = builder.bitcast(a, octets), builder.bitcast(b, octets)
    ubs, wd = {8: ("avx2.pmadd.ub.sw", "avx2.pmadd.wd"),
               16: ("avx512.pmaddubs.w.512", "avx512.pmaddw.d.512")}[lanes]  # fmt: skip
    pairs = _call(builder, f"llvm.x86.{ubs}", words, a, b)
    quads = _call(builder, f"llvm.x86.{wd}", acc.type, pairs, _constant(words, 1))
    # Where there is VNNI, LLVM would make one instruction of the last two: vpdpwssd.
    return builder.add(acc, _opaque(builder, quads, "v" if lanes == 16 else "x"))


def _split_maddubs(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add them as before VNNI, but exact: an activation's upper bit apart from the other seven.

    127 * 128 * 2 = 32,512 fits, and so does what the upper bits give, 128 at a time.
    """
    low = builder.and_(a, _constant(a.type, 0x7F7F7F7F))
    high = builder.and_(builder.lshr(a, _constant(a.type, 7)), _constant(a.type, 0x01010101))
    tops = _maddubs(builder, _constant(acc.type, 0), high, b)
    return builder.add(_maddubs(builder, acc, low, b), builder.shl(tops, _constant(acc.type, 7)))


def _bytes(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products in plain integers, byte by byte: any CPU can."""
    for byte in range(4):
        left, right = _constant(a.type, 24 - 8 * byte), _constant(a.type, 24)
        x = builder.lshr(builder.shl(a, left), right)
        w = builder.ashr(builder.shl(b, left), right)
        acc = builder.add(acc, builder.mul(x, w))
    return acc


# C += A * B for whole matrix registers, which LLVM knows by number: nothing is returned.
MULTIPLY_TILES = {"tdpbusd": "llvm.x86.tdpbusd", "tdpbf16ps": "llvm.x86.tdpbf16ps"}


def groups_at_once(instruction: str) -> int:
    """Count the 32-bit groups along K that one instruction multiplies."""
    return HEIGHT if instruction in MULTIPLY_TILES else 1


MULTIPLY_ADD: dict[str, Callable[..., Value]] = {
    "fma": _fma,
    "mul, add": _mul_add,
    "vdpbf16ps": _vdpbf16ps,
    "fma of halves": _halves(_fma),
    "mul, add of halves": _halves(_mul_add),
    "vpdpbusd": _vpdpbusd,
    "vpmaddwd": _vpmaddwd,
    "vpmaddubsw": _maddubs,
    "vpmaddubsw, split": _split_maddubs,
    "mul, add of bytes": _bytes,
}


# Epilogues: what becomes of a vector of sums before it is stored.


class Columns(NamedTuple):
    """What an epilogue knows of its columns, a vector each; the scalars are the same in all."""

    bias: Value
    m: Value
    scalars: dict[str, Value]
    instruction: str  # what has made the sums


def _clip(builder: Builder, t: Value, low: Value, high: Value) -> Value:
    t = builder.select(builder.fcmp_ordered(">", t, low), t, low)
    return builder.select(builder.fcmp_ordered("<", t, high), t, high)


def _rint(builder: Builder, t: Value) -> Value:
    """Round to whole numbers, half to even."""
    return _call(builder, f"llvm.rint.v{t.type.count}f32", t.type, t)


def _to_int(builder: Builder, t: Value, kind: Any) -> Value:
    """Round to whole numbers, half to even, as integers: one instruction where LLVM knows it."""
    if not LLVM_22:
        return builder.fptosi(_rint(builder, t), kind)
    return _call(builder, f"llvm.lrint.v{t.type.count}i32.v{t.type.count}f32", kind, t)


def _widen_bf16(builder: Builder, x: Value) -> Value:
    wide = builder.zext(x, ir.VectorType(I32, x.type.count))
    shifted = builder.shl(wide, _constant(wide.type, 16))
    return builder.bitcast(shifted, ir.VectorType(F32, x.type.count))


def _activate(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Add bias and residual, and clip at low: 0 is the ReLU, -infinity is none."""
    t = builder.fadd(acc, p.bias)
    if residual is not None:
        t = builder.fadd(t, residual)
    return builder.select(builder.fcmp_ordered("<", t, p.scalars["low"]), p.scalars["low"], t)


def _activate_bf16(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Keep the upper half of the float32, rounded to nearest even.

    Dot products of bfloat16 come with one instruction that does so; it takes denormals for zero,
    as they do.
    """
    wide = None if residual is None else _widen_bf16(builder, residual)
    t = _activate(builder, acc, p, wide)
    lanes = t.type.count
    if p.instruction in ("vdpbf16ps", "tdpbf16ps"):
        half = ir.VectorType(_BFloat(), lanes)
        y = _call(builder, f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * lanes}", half, t)
        return builder.bitcast(y, ir.VectorType(I16, lanes))
    bits = builder.bitcast(t, ir.VectorType(I32, lanes))
    sixteen, one = _constant(bits.type, 16), _constant(bits.type, 1)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(builder.add(bits, _constant(bits.type, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, sixteen), ir.VectorType(I16, lanes))


def _fake_quantize(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Keep what eight bits keep, as float32: simulated INT8. Its clip is the ReLU."""
    t = builder.fadd(acc, p.bias)
    if residual is not None:
        t = builder.fadd(t, residual)
    t = _rint(builder, builder.fdiv(t, p.scalars["scale"]))
    return builder.fmul(_clip(builder, t, p.scalars["low"], p.scalars["high"]), p.scalars["scale"])


def _requantize(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Do what `requantize_ref` does, in its order, each operation rounded by itself."""
    t = builder.fmul(builder.sitofp(acc, p.m.type), p.m)
    if residual is not None:
        steps = builder.sub(builder.zext(residual, acc.type), p.scalars["residual_zero_point"])
        t = builder.fadd(t, builder.fmul(builder.sitofp(steps, t.type), p.scalars["m_residual"]))
    whole = _to_int(builder, _clip(builder, t, p.scalars["low"], p.scalars["high"]), acc.type)
    y = builder.add(whole, p.scalars["zero_point"])
    return builder.trunc(y, ir.VectorType(I8, acc.type.count))


def _dequantize(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Leave as float32: the logits of the classifier in INT8."""
    return builder.fmul(builder.sitofp(acc, p.m.type), p.m)


def _store_as_is(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Store as many bytes as the activation has, and compute nothing: what an epilogue costs."""
    return builder.trunc(acc, ir.VectorType(I8, acc.type.count)) if acc.type.element == I32 else acc


def _store_sums(builder: Builder, acc: Value, p: Columns, residual: Value | None) -> Value:
    """Leave the sums as they are: the matrix product alone."""
    return acc


class Epilogue(NamedTuple):
    """What is done with the sums, and what its operands are in memory."""

    run: Callable[..., Value]
    bias: Any  # the lanes' types
    residual: Any
    bias_first: bool = False  # sums begin with it: integers may be added in any order


EPILOGUES = {
    "activate": Epilogue(_activate, F32, F32),
    "activate, bf16": Epilogue(_activate_bf16, F32, I16),
    "fake quantize": Epilogue(_fake_quantize, F32, F32),
    "requantize": Epilogue(_requantize, I32, I8, bias_first=True),
    "dequantize": Epilogue(_dequantize, I32, I8, bias_first=True),
    "store": Epilogue(_store_sums, I32, I8),
    "plain store of u8": Epilogue(_store_as_is, I32, I8),
    "plain store of float32": Epilogue(_store_as_is, F32, F32),
}

SCALARS = {  # of an epilogue, in the order that a microkernel takes them
    "m_residual": F32,
    "residual_zero_point": I32,
    "low": F32,
    "high": F32,
    "zero_point": I32,
    "scale": F32,
}


def _loop(builder: Builder, count: Value, carried: list[Value], body: Callable[..., Any]) -> Any:
    """Repeat ``carried = body(*carried)`` `count` times, at least once, in registers."""
    start, head = builder.block, builder.append_basic_block("loop")
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(I64)
    phis = [builder.phi(value.type) for value in carried]
    after = body(*phis)
    following, end = builder.add(i, I64(1)), builder.block  # a loop inside ends in another block
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, count), head, done)
    for phi, first, later in zip([i, *phis], [I64(0), *carried], [following, *after], strict=True):
        phi.add_incoming(first, start)
        phi.add_incoming(later, end)
    builder.position_at_end(done)
    return after


@intrinsic(prefer_literal=True)
def microkernel(
    _: Any, spec: Any, x: Any, x_offsets: Any, w: Any, taps: Any, groups: Any, tap_stride: Any,
    later: Any, later_step: Any, bias: Any, m: Any, residual: Any, y: Any, y_offsets: Any,
    scalars: Any,
) -> Any:  # fmt: skip
    """Compute one tile: called from compiled code, with addresses and counts in int64.

    Parameters
    ----------
    spec : str literal
        Instruction, epilogue, lanes, rows and vectors, between slashes.
    x, x_offsets : int64
        Address of the activations; of MR + 1 int32, in bytes: where each row's first tap lies, and
        that of the next tile's first row, which is fetched meanwhile. For a matrix instruction 16
        rows each lie a fixed stride apart, the same for all.
    w : int64
        Address of the panel: for each group along K, 32 bits for each of NR columns.
    taps, groups, tap_stride : int64
        K is `taps` runs of `groups` times 32 bits, `tap_stride` bytes apart: one run for each
        row of a convolution's kernel, because its columns are neighbours in NHWC.
    later, later_step : int64
        Address of weights that are read later, and bytes: with each group along K the second cache
        fetches a line from there, so far apart. Matrix instructions leave it no time for that.
    bias, m : int64
        Addresses of NR values for the columns.
    residual : int64
        Address of a tensor laid out as y, or 0.
    y, y_offsets : int64
        Address of the output; of MR int32, in elements: where each row's first column goes. For a
        matrix instruction a row that is below 0 is not written.
    scalars : tuple
        As `SCALARS`.
    """
    instruction, epilogue, *numbers = spec.literal_value.split("/")
    lanes, rows, vectors = map(int, numbers[:3])
    kinds = [types.int64] * 13 + [scalars]

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        _tile(builder, instruction, EPILOGUES[epilogue], lanes, rows, vectors, *arguments[1:])
        return context.get_dummy_value()

    return types.none(spec, *kinds), codegen


def _load(builder: Builder, address: Value, kind: Any) -> Value:
    return builder.load(builder.inttoptr(address, POINTER), align=1, typ=kind)


def _after(builder: Builder, address: Value, count: int) -> Value:
    return builder.add(address, I64(count))


def _offset(builder: Builder, table: Value, row: int) -> Value:
    return builder.sext(_load(builder, _after(builder, table, 4 * row), I32), I64)


def _bytes_of(kind: Any) -> int:
    return 4 if kind == F32 else kind.width // 8


def _prefetch(
    builder: Builder, address: Value, ahead: int, size: int, cache: int = 1, write: bool = False
) -> None:
    """Fetch as many bytes into a cache, so far ahead, a cache line at a time."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    access, near, data = I32(int(write)), I32(4 - cache), I32(1)
    for line in range(0, size, LINE):
        place = builder.inttoptr(_after(builder, address, ahead + line), POINTER)
        builder.call(prefetch, [place, access, near, data])


def _tile(
    builder: Builder, instruction: str, epilogue: Epilogue, lanes: int, rows: int, vectors: int,
    x: Value, x_offsets: Value, w: Value, taps: Value, groups: Value, tap_stride: Value,
    later: Value, later_step: Value, bias: Value, m: Value, residual: Value, y: Value,
    y_offsets: Value, scalars: Value,
) -> None:  # fmt: skip
    places, sums = range(vectors), ir.VectorType(epilogue.bias, lanes)
    matrix, item = instruction in MULTIPLY_TILES, _bytes_of(epilogue.residual)
    # A residual is fetched while the sums are made; for writing, since y often takes its place.
    with builder.if_then(builder.icmp_signed("!=", residual, I64(0))):
        for row in range(rows):
            start = builder.mul(_offset(builder, y_offsets, row), I64(item))
            _prefetch(builder, builder.add(residual, start), 0, item * lanes * vectors, write=True)
    operands = x, x_offsets, w, taps, groups, tap_stride, bias if epilogue.bias_first else None
    if matrix:
        memory = _sums_in_memory(builder, instruction, rows, vectors, *operands)
    else:
        multiply_add = MULTIPLY_ADD[instruction]
        acc = _sums(builder, multiply_add, sums, rows, vectors, *operands, later, later_step)

    fields = (builder.extract_value(scalars, i) for i in range(len(SCALARS)))
    known = {
        name: _splat(builder, value, lanes) for name, value in zip(SCALARS, fields, strict=True)
    }
    columns = [
        Columns(
            _load(builder, _after(builder, bias, 4 * lanes * v), sums),
            _load(builder, _after(builder, m, 4 * lanes * v), ir.VectorType(F32, lanes)),
            known,
            instruction,
        )
        for v in places
    ]

    def finish(start: Value, totals: list[Value], there: bool) -> None:
        """Bring a row of sums to where the output has it."""
        for v, total in zip(places, totals, strict=True):
            place = _after(builder, start, lanes * v)
            shortcut = None
            if there:
                at = builder.add(residual, builder.mul(place, I64(item)))
                shortcut = _load(builder, at, ir.VectorType(epilogue.residual, lanes))
            value = epilogue.run(builder, total, columns[v], shortcut)
            at = builder.add(y, builder.mul(place, I64(_bytes_of(value.type.element))))
            builder.store(value, builder.inttoptr(at, POINTER), align=1)

    def finish_from_memory(there: bool) -> Callable[..., list[Value]]:
        def row(table: Value, at: Value) -> list[Value]:
            start = _offset(builder, table, 0)
            with builder.if_then(builder.icmp_signed(">=", start, I64(0))):
                totals = [_load(builder, _after(builder, at, 4 * lanes * v), sums) for v in places]
                finish(start, totals, there)
            return [_after(builder, table, 4), _after(builder, at, 4 * lanes * vectors)]

        return row

    # Whether there is a residual is asked once, outside of everything that is unrolled.
    with builder.if_else(builder.icmp_signed("!=", residual, I64(0))) as branches:
        for branch, there in zip(branches, (True, False), strict=True):
            with branch:
                if matrix:
                    _loop(builder, I64(rows), [y_offsets, memory], finish_from_memory(there))
                    continue
                for row in range(rows):
                    totals = acc[row * vectors : (row + 1) * vectors]
                    finish(_offset(builder, y_offsets, row), totals, there)


def _sums(
    builder: Builder, multiply_add: Callable[..., Value], kind: Any, rows: int, vectors: int,
    x: Value, x_offsets: Value, w: Value, taps: Value, groups: Value, tap_stride: Value,
    first: Value | None, later: Value, later_step: Value,
) -> list[Value]:  # fmt: skip
    """Sum up a tile in vectors, row by row."""
    lanes, places = kind.count, range(vectors)
    bits = ir.VectorType(I32, lanes)

    def step(panel: Value, at: Value, beside: Value, later: Value, *acc: Value) -> list[Value]:
        for address in (later, beside):  # to the second cache: the first has no room for long
            _prefetch(builder, address, 0, LINE, cache=2)
        columns = [_load(builder, _after(builder, panel, 4 * lanes * v), bits) for v in places]
        _prefetch(builder, panel, AHEAD, 4 * lanes * vectors)
        following = []
        for row in range(rows):
            a = _splat(builder, _load(builder, builder.add(bases[row], at), I32), lanes)
            for v in places:
                following.append(multiply_add(builder, acc[row * vectors + v], a, columns[v]))
        return [
            _after(builder, panel, 4 * lanes * vectors),
            _after(builder, at, 4),
            _after(builder, beside, 4 * rows),  # of a 1x1, all that the next tile's rows are
            builder.add(later, later_step),
            *following,
        ]

    def tap(panel: Value, start: Value, later: Value, *acc: Value) -> list[Value]:
        beside = builder.add(next_tile, start)
        panel, _, _, later, *acc = _loop(builder, groups, [panel, start, beside, later, *acc], step)
        return [panel, builder.add(start, tap_stride), later, *acc]

    bases = [builder.add(x, _offset(builder, x_offsets, row)) for row in range(rows + 1)]
    next_tile = bases.pop()
    begin = [_constant(kind, 0)] * vectors
    if first is not None:
        begin = [_load(builder, _after(builder, first, 4 * lanes * v), kind) for v in places]
    return _loop(builder, taps, [w, I64(0), later, *begin * rows], tap)[3:]


def _sums_in_memory(
    builder: Builder, instruction: str, rows: int, vectors: int, x: Value, x_offsets: Value,
    w: Value, taps: Value, groups: Value, tap_stride: Value, first: Value | None,
) -> Value:  # fmt: skip
    """Sum up a tile in matrix registers, and store it: row by row, at the address returned."""
    row_bytes, tops = 64 * vectors, range(rows // HEIGHT)
    sums = [(top, v, I8(top * vectors + v)) for top in tops for v in range(vectors)]
    of_x = [I8(len(sums) + top) for top in tops]
    of_w = [I8(len(sums) + len(tops) + v) for v in range(vectors)]

    def step(panel: Value, at: Value) -> list[Value]:
        for register, base in zip(of_x, bases, strict=True):
            _load_tile(builder, register, builder.add(base, at), stride)
        _prefetch(builder, panel, HEIGHT * row_bytes, HEIGHT * row_bytes)  # the next step's
        for v, register in enumerate(of_w):
            _load_tile(builder, register, _after(builder, panel, 64 * v), I64(row_bytes))
        for top, v, register in sums:
            name = MULTIPLY_TILES[instruction]
            _call(builder, name, ir.VoidType(), register, of_x[top], of_w[v])
        return [_after(builder, panel, HEIGHT * row_bytes), _after(builder, at, 64)]

    def tap(panel: Value, start: Value) -> list[Value]:
        panel, _ = _loop(builder, steps, [panel, start], step)
        return [panel, builder.add(start, tap_stride)]

    offsets = [_offset(builder, x_offsets, HEIGHT * top) for top in tops]
    bases = [builder.add(x, offset) for offset in offsets]
    stride = builder.sub(_offset(builder, x_offsets, 1), offsets[0])
    steps = builder.lshr(groups, I64(HEIGHT.bit_length() - 1))
    for _, v, register in sums:
        if first is None:
            _call(builder, "llvm.x86.tilezero", ir.VoidType(), register)
        else:
            # The same row 16 times.
            _load_tile(builder, register, _after(builder, first, 64 * v), I64(0))
    _loop(builder, taps, [w, I64(0)], tap)
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(I8, rows * row_bytes))
        memory.align = 64
    start = builder.ptrtoint(memory, I64)
    for top, v, register in sums:
        at = builder.inttoptr(_after(builder, start, top * HEIGHT * row_bytes + 64 * v), POINTER)
        _call(builder, "llvm.x86.tilestored64", ir.VoidType(), register, at, I64(row_bytes))
    return start


def _load_tile(builder: Builder, register: Value, address: Value, stride: Value) -> None:
    place = builder.inttoptr(address, POINTER)
    _call(builder, "llvm.x86.tileloadd64", ir.VoidType(), register, place, stride)


@intrinsic(prefer_literal=True)
def tile_registers(_: Any, spec: Any, use: Any) -> Any:
    """Lay out the matrix registers before a thread's first tile, and give them up after its last.

    Parameters
    ----------
    spec : str literal
        As for `microkernel`; where its instruction has no use for them, nothing is done.
    use : bool literal
        Whether they are to be used, or no longer.
    """
    instruction, _, _ = spec.literal_value.partition("/")

    def codegen(context: Any, builder: Builder, _: Any, __: Any) -> Value:
        if instruction in MULTIPLY_TILES:
            _tile_registers(builder, use.literal_value)
        return context.get_dummy_value()

    return types.none(spec, use), codegen


def _tile_registers(builder: Builder, use: bool) -> None:
    if not use:
        _call(builder, "llvm.x86.tilerelease", ir.VoidType())
        return
    # Palette 1; from byte 16 on the bytes of a row, eight times, from byte 48 on the rows.
    layout = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [HEIGHT] * 8 + [0] * 8
    constant = ir.Constant(ir.ArrayType(I8, 64), bytearray(layout))
    with builder.goto_entry_block():
        memory = builder.alloca(constant.type)
    builder.store(constant, memory)
    _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), memory)


CHAIN = 16  # instructions, each of which waits for the one before and takes one cycle
FLOATS = ("fma", "mul, add", "vdpbf16ps", "fma of halves", "mul, add of halves")


def _chain(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Make a clock of dependent additions and exclusive ors, which nothing can shorten.

    They are scalar: in vectors some CPUs take two cycles for each.
    """
    for _ in range(CHAIN // 2):
        acc = builder.xor(builder.add(acc, a), b)
    return acc


@intrinsic(prefer_literal=True)
def spin(_: Any, spec: Any, operands: Any, count: Any) -> Any:
    """Do nothing but multiply and add, in registers: the peak, as called from compiled code.

    Parameters
    ----------
    spec : str literal
        Instruction, or "chain", lanes, and how many sums run beside each other, between slashes.
    operands : int64
        Address of two vectors, which are loaded once, and room for one more.
    count : int64
        How often each sum is added to.
    """
    instruction, lanes, sums = spec.literal_value.split("/")
    if instruction in MULTIPLY_TILES:
        return types.none(spec, types.int64, types.int64), _spin_tiles(instruction, int(sums))
    multiply_add = _chain if instruction == "chain" else MULTIPLY_ADD[instruction]
    bits = I64 if instruction == "chain" else ir.VectorType(I32, int(lanes))
    kind = ir.VectorType(F32, int(lanes)) if instruction in FLOATS else bits

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        places = [builder.add(arguments[1], I64(4 * int(lanes) * i)) for i in range(3)]
        pointers = [builder.inttoptr(place, POINTER) for place in places]
        a, b = (builder.load(pointer, align=1, typ=bits) for pointer in pointers[:2])

        # Were it known that a stays the same, LLVM would make the products once, before the loop.
        register = {"x86_64": "v" if int(lanes) == 16 else "x"}.get(TRIPLE.partition("-")[0], "w")
        register = "r" if instruction == "chain" else register

        def body(x: Value, *acc: Value) -> list[Value]:
            following = []
            for total in acc:
                x = _opaque(builder, x, register)
                following.append(multiply_add(builder, total, x, b))
            return [x, *following]

        # Sums that begin alike would be one sum.
        starts = [I64(0)] if kind == I64 else [_constant(kind, i) for i in range(int(sums))]
        _, total, *others = _loop(builder, arguments[2], [a, *starts], body)
        for other in others:  # so that none can be left out
            total = builder.xor(builder.bitcast(total, bits), builder.bitcast(other, bits))
        builder.store(total, pointers[2], align=1)
        return context.get_dummy_value()

    return types.none(spec, types.int64, types.int64), codegen


def _spin_tiles(instruction: str, sums: int) -> Callable[..., Value]:
    """Make the same of matrix registers, each row of which is one of the vectors."""
    registers = [I8(i) for i in range(sums + 2)]

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        _tile_registers(builder, True)
        for i, register in enumerate(registers):
            place = builder.add(arguments[1], I64(64 * (i % 2)))
            _load_tile(builder, register, place, I64(0))

        def body() -> list[Value]:
            for total in registers[:sums]:
                _call(builder, MULTIPLY_TILES[instruction], ir.VoidType(), total, *registers[sums:])
            return []

        _loop(builder, arguments[2], [], body)
        _tile_registers(builder, False)
        return context.get_dummy_value()

    return codegen


def assembly(spec: str, isa: ISA) -> str:
    """Show what LLVM makes of a microkernel, for a CPU that need not be this one.

    Parameters
    ----------
    spec : str
        As for `microkernel`.
    isa : ISA
        Which extensions the CPU has, beside x86-64's own.

    Returns
    -------
    str
        In AT&T syntax: the result comes last.
    """
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    instruction, epilogue, *numbers = spec.split("/")
    module = ir.Module()
    scalars = ir.LiteralStructType(list(SCALARS.values()))
    kind = ir.FunctionType(ir.VoidType(), [I64] * 13 + [scalars])
    function = ir.Function(module, kind, "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    tile = tuple(map(int, numbers[:3]))
    _tile(builder, instruction, EPILOGUES[epilogue], *tile, *function.args)
    builder.ret_void()
    module.triple = "x86_64-unknown-linux-gnu"
    features = ",".join(f"+{name}" for name in sorted(isa.features))
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(cpu="x86-64", features=features, opt=3)
    parsed = binding.parse_assembly(str(module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    return machine.emit_assembly(parsed)


@intrinsic(prefer_literal=True)
def largest(_: Any, spec: Any, y: Any, x: Any, kernel: Any, row: Any, pixel: Any) -> Any:
    """Store the largest of a window's vectors, value by value: called with int64.

    Parameters
    ----------
    spec : str literal
        NumPy's name of the values' dtype, and their number, between slashes.
    y, x : int64
        Addresses: where to, and of the window's first vector.
    kernel : int64
        Rows and columns of the window.
    row, pixel : int64
        Bytes from one to the next.
    """
    name, count = spec.literal_value.split("/")
    kind = ir.VectorType({"float32": F32, "int16": I16, "uint8": I8}[name], int(count))

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        to, first, kernel, row, pixel = arguments[1:]
        compare = {"f": builder.fcmp_ordered, "i": builder.icmp_signed, "u": builder.icmp_unsigned}

        def tap(at: Value, most: Value) -> list[Value]:
            value = _load(builder, at, kind)
            more = builder.select(compare[name[0]](">", most, value), most, value)
            return [builder.add(at, pixel), more]

        def line(start: Value, most: Value) -> list[Value]:
            return [builder.add(start, row), _loop(builder, kernel, [start, most], tap)[1]]

        _, most = _loop(builder, kernel, [first, _load(builder, first, kind)], line)
        builder.store(most, builder.inttoptr(to, POINTER), align=1)
        return context.get_dummy_value()

    return types.none(spec, *[types.int64] * 5), codegen


@intrinsic
def ticks(_: Any) -> Any:
    """Read a counter that runs at a steady rate, whichever; it takes some 20 ns."""

    def codegen(_: Any, builder: Builder, __: Any, ___: Any) -> Value:
        if TRIPLE.startswith(("aarch64", "arm64")):  # LLVM's may be one that only Linux may read
            kind = ir.FunctionType(I64, [])
            return builder.asm(kind, "mrs $0, cntvct_el0", "=r", [], side_effect=True)
        return _call(builder, "llvm.readcyclecounter", I64)

    return types.int64(), codegen


@intrinsic
def pointer(_: Any, address: Any) -> Any:
    """Take an int64 for an address, as `numba.carray` wants it."""

    def codegen(_: Any, builder: Builder, __: Any, arguments: Any) -> Value:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


PATIENCE = 1000  # looks at a count, of some 40 ns each


@intrinsic
def count_up(_: Any, address: Any) -> Any:
    """Add 1 to an int64 that several threads count with, and tell what it was before."""

    def codegen(_: Any, builder: Builder, __: Any, arguments: Any) -> Value:
        place = builder.inttoptr(arguments[0], POINTER)
        return builder.atomic_rmw("add", place, I64(1), "acq_rel")

    return types.int64(types.uintp), codegen


@intrinsic
def wait_for(_: Any, address: Any, count: Any) -> Any:
    """Wait until an int64 that other threads count with is as large.

    They are about to be done, and going to sleep would take longer. Where they are not, there may
    be more threads than cores: every now and then the core is offered to others.
    """

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        place, start = builder.inttoptr(arguments[0], POINTER), builder.block
        look, end = (builder.append_basic_block(name) for name in ("look", "end"))
        builder.branch(look)
        builder.position_at_end(look)
        looks = builder.phi(I64)
        if TRIPLE.startswith("x86_64"):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        often = builder.icmp_unsigned("==", builder.urem(looks, I64(PATIENCE)), I64(PATIENCE - 1))
        with builder.if_then(often):
            if sys.platform != "win32":
                _call(builder, "sched_yield", I32)
        looks.add_incoming(I64(0), start)
        looks.add_incoming(builder.add(looks, I64(1)), builder.block)
        counted = builder.load_atomic(place, "acquire", 8, typ=I64)
        builder.cbranch(builder.icmp_signed("<", counted, arguments[1]), look, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.none(types.uintp, types.int64), codegen
