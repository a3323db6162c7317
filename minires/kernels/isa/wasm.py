"""Multiplying in a browser: WebAssembly with SIMD, whose vectors hold four lanes on every CPU.

A browser turns each of these instructions into a few of the reader's CPU. `minires.lab` compiles
the same microkernels for it, ahead of time. No CPU runs these sets by itself, so `ISAS` has none.

The relaxed dot product may do with a byte above 127 what is fast on the reader's CPU: take it as it
is, take it for a negative one, or saturate sums of two at 32,767. So the page looks first: it takes
`WASM_RELAXED` where bytes pass as they are, and elsewhere `WASM_SPLIT`.
https://github.com/WebAssembly/relaxed-simd/blob/main/proposals/relaxed-simd/Overview.md
"""

from typing import Any

from minires.kernels.ir import I8, I16, Builder, Value, call, constant, vector
from minires.kernels.isa.generic import GENERIC, MUL_ADD, mul_add_of_bytes
from minires.kernels.isa.instruction import ISA, Instruction


def to_int(builder: Builder, t: Value, whole: Any) -> Value:
    """Round to integers, half to even, by two instructions."""
    rounded = call(builder, f"llvm.nearbyint.v{t.type.count}f32", t.type, t)
    return builder.fptosi(rounded, whole)


def dot_i16x8(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products by way of s16, which holds both u8 and s8, so that nothing saturates.

    As in `vpmaddwd` of x86: shifts widen the bytes at even places and those at odd places apart,
    and i32x4.dot_i16x8_s sums two products of s16 in s32.
    """
    words = vector(I16, 2 * acc.type.count)
    a, b = builder.bitcast(a, words), builder.bitcast(b, words)
    byte, mask = constant(words, 8), constant(words, 255)
    even = builder.and_(a, mask), builder.ashr(builder.shl(b, byte), byte)
    odd = builder.lshr(a, byte), builder.ashr(b, byte)
    for x, w in (even, odd):
        acc = builder.add(acc, call(builder, "llvm.wasm.dot", acc.type, x, w))
    return acc


def relaxed_dot(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products by one instruction: the same on all CPUs for activations up to 127."""
    octets = vector(I8, 4 * acc.type.count)
    a, b = builder.bitcast(a, octets), builder.bitcast(b, octets)
    name = "llvm.wasm.relaxed.dot.i8x16.i7x16.add.signed"
    return call(builder, name, acc.type, b, a, acc)


def relaxed_dot_split(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Multiply exactly on all CPUs: an activation's upper bit apart from the other seven.

    As in `vpmaddubsw_split` of x86, whose saturation is one of the things that a browser may do.
    """
    low = builder.and_(a, constant(a.type, 0x7F7F7F7F))
    high = builder.and_(builder.lshr(a, constant(a.type, 7)), constant(a.type, 0x01010101))
    tops = relaxed_dot(builder, constant(acc.type, 0), high, b)
    return builder.add(relaxed_dot(builder, acc, low, b), builder.shl(tops, constant(acc.type, 7)))


def relaxed_madd(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add one product, rounded once where the CPU has an FMA, and else twice."""
    a, b = (builder.bitcast(v, acc.type) for v in (a, b))
    return call(builder, f"llvm.wasm.relaxed.madd.v{acc.type.count}f32", acc.type, a, b, acc)


def _u8s8(name: str, emit: Any, *mnemonics: str) -> Instruction:
    return Instruction(name, "u8s8", emit, mnemonics, to_int=to_int)


DOT_I16X8 = _u8s8("i32x4.dot_i16x8_s", dot_i16x8, r"i32x4\.dot_i16x8_s")
BYTES = _u8s8("i32x4.mul of bytes", mul_add_of_bytes, r"i32x4\.mul")
RELAXED_DOT = _u8s8("relaxed dot", relaxed_dot, r"i32x4\.relaxed_dot_i8x16_i7x16_add_s")
SPLIT = _u8s8("relaxed dot, split", relaxed_dot_split, r"i32x4\.relaxed_dot_i8x16_i7x16_add_s")
MADD = Instruction("f32x4.relaxed_madd", "f32", relaxed_madd, (r"f32x4\.relaxed_madd",))


def _set(name: str, features: frozenset[str], f32: Instruction, u8s8: Instruction) -> ISA:
    tiles = {operands: GENERIC.tiles[operands] for operands in ("f32", "u8s8")}
    return ISA(name, features, 4, {"f32": f32, "u8s8": u8s8}, tiles)


SIMD128 = frozenset({"simd128", "bulk-memory", "nontrapping-fptoint"})
RELAXED = SIMD128 | {"relaxed-simd"}
WASM = _set("wasm", SIMD128, MUL_ADD, DOT_I16X8)
WASM_BYTES = _set("wasm-bytes", SIMD128, MUL_ADD, BYTES)
WASM_RELAXED = _set("wasm-relaxed", RELAXED, MADD, RELAXED_DOT)
WASM_SPLIT = _set("wasm-split", RELAXED, MADD, SPLIT)
