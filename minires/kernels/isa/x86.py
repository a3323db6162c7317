"""Multiplying on x86: AVX2, AVX-512, and what VNNI and BF16 add to them.

To add an instruction, write a function that emits ``acc + a * b``, and describe it as an
`Instruction`. To add a set, write an `ISA` at the end of this file, and list it in
``isa/__init__.py`` ahead of those that it should win over. A CPU has a set if it has all of its
`features`, which have LLVM's names; you choose the set's own name, without "_" or ",". Then
run ``tests/kernels/test_microkernel.py``. On any CPU it looks for the instruction in the assembly;
on a CPU that has it, it compares the results with the definition, bit for bit in INT8. If GNU's
assembler spells a new feature in another way than LLVM, add that to ``test_compile.py`` beside it.
``tests/measure/test_peak.py`` checks the loop that ``minires peak`` times.
"""

from dataclasses import replace

from minires.kernels.ir import I8, I16, LLVM_22, BFloat, Builder, Value, call, constant, opaque
from minires.kernels.ir import vector as vector_of
from minires.kernels.isa.generic import fma, of_halves
from minires.kernels.isa.instruction import ISA, Instruction

# Emitting. acc, a and b are vectors of 32-bit lanes. a holds one group of a row of activations, the
# same in every lane; b holds a group of weights for a different column in every lane. An emitter
# casts them to the types that LLVM wants for its instruction. From LLVM 22 on those are vectors of
# the elements, such as <64 x i8>; before, they were vectors of i32.


def vdpbf16ps(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add two products of bfloat16 by one instruction."""
    lanes = acc.type.count
    if LLVM_22:
        a, b = (builder.bitcast(v, vector_of(BFloat(), 2 * lanes)) for v in (a, b))
    return call(builder, f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}", acc.type, acc, a, b)


def vcvtneps2bf16(builder: Builder, t: Value) -> Value:
    """Round float32 to bfloat16, to nearest even; denormals become zero, as in vdpbf16ps."""
    lanes = t.type.count
    half = vector_of(BFloat(), lanes)
    y = call(builder, f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * lanes}", half, t)
    return builder.bitcast(y, vector_of(I16, lanes))


def vpdpbusd(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products of u8 and s8 in s32 by one instruction, without saturation."""
    lanes = acc.type.count
    if LLVM_22:
        a, b = (builder.bitcast(v, vector_of(I8, 4 * lanes)) for v in (a, b))
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", acc.type, acc, a, b)


def vpmaddwd(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products by way of s16, which holds both u8 and s8, so that nothing saturates.

    Shifts widen the bytes at even places and those at odd places apart, and vpmaddwd sums two
    products of s16 in s32. Each operand is used several times, but LLVM widens it only once.
    """
    words = vector_of(I16, 2 * acc.type.count)
    a, b = builder.bitcast(a, words), builder.bitcast(b, words)
    byte, mask = constant(words, 8), constant(words, 255)
    even = builder.and_(a, mask), builder.ashr(builder.shl(b, byte), byte)
    odd = builder.lshr(a, byte), builder.ashr(b, byte)
    name = {8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[acc.type.count]
    for x, w in (even, odd):
        acc = builder.add(acc, call(builder, f"llvm.x86.{name}", acc.type, x, w))
    return acc


def vpmaddubsw(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products as before VNNI: vpmaddubsw, vpmaddwd, vpaddd. It saturates.

    vpmaddubsw sums two products of u8 and s8 in s16. The sum can be 255 * 127 * 2 = 64,770, but
    s16 holds at most 32,767: a larger sum silently becomes 32,767, a smaller one than -32,768
    becomes -32,768.
    """
    lanes = acc.type.count
    words, octets = vector_of(I16, 2 * lanes), vector_of(I8, 4 * lanes)
    a, b = builder.bitcast(a, octets), builder.bitcast(b, octets)
    first = {8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}[lanes]
    second = {8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    pairs = call(builder, f"llvm.x86.{first}", words, a, b)
    quads = call(builder, f"llvm.x86.{second}", acc.type, pairs, constant(words, 1))
    # Without `opaque`, LLVM would turn the last two into one where there is VNNI: vpdpwssd.
    return builder.add(acc, opaque(builder, quads, "v" if lanes == 16 else "x"))


def vpmaddubsw_split(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Multiply as before VNNI, but exactly: an activation's upper bit apart from the other seven.

    Sums of two then fit in s16: 127 * 128 * 2 = 32,512 is the largest for seven bits, and 128 * 2
    for the upper bits, whose sum is shifted to its place afterwards.
    """
    low = builder.and_(a, constant(a.type, 0x7F7F7F7F))
    high = builder.and_(builder.lshr(a, constant(a.type, 7)), constant(a.type, 0x01010101))
    tops = vpmaddubsw(builder, constant(acc.type, 0), high, b)
    return builder.add(vpmaddubsw(builder, acc, low, b), builder.shl(tops, constant(acc.type, 7)))


# Describing

FMA = Instruction("fma", "f32", fma, ("vfmadd",))
FMA_OF_HALVES = Instruction("fma of halves", "bf16", of_halves(fma), ("vfmadd",), composed=True)
VDPBF16PS = Instruction("vdpbf16ps", "bf16", vdpbf16ps, ("vdpbf16ps",), narrow=vcvtneps2bf16)
VPDPBUSD = Instruction("vpdpbusd", "u8s8", vpdpbusd, ("vpdpbusd",))
VPMADDWD = Instruction(
    "vpmaddwd", "u8s8", vpmaddwd, ("vpmaddwd",), sums=8, rates=(1 / 4, 1 / 2, 2 / 3, 1)
)
VPMADDUBSW = Instruction(
    "vpmaddubsw",
    "u8s8",
    vpmaddubsw,
    ("vpmaddubsw", "vpmaddwd", "vpaddd"),
    explained="three instructions for four products, as before VNNI",
    rates=(1 / 3, 2 / 3, 1),
)
VPMADDUBSW_SPLIT = replace(
    VPMADDUBSW,
    name="vpmaddubsw, split",
    emit=vpmaddubsw_split,
    explained="three instructions for four products, as before VNNI; twice, so none saturates",
    composed=True,
)

# The sets. A set made of another by `replace` names all of its features, instructions and tiles
# anew; begin with the largest set that every such CPU has. Tiles are (MR, NR in vectors). 32 vector
# registers hold 6 x 4 sums, 4 vectors of weights and a broadcast, and 16 registers hold 6 x 2 sums.
# It is 4 x 2 where a multiplication takes several instructions, whose copies need registers too. A
# step multiplies MR * NR times and loads MR + NR times: the squarer the tile, the fewer loads.

WIDE, NARROW, LOW = (6, 4), (6, 2), (4, 2)
AVX2_FEATURES = frozenset({"avx2", "fma"})
AVX512_FEATURES = AVX2_FEATURES | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

AVX2 = ISA(
    "avx2",
    AVX2_FEATURES,
    lanes=8,
    instructions={"f32": FMA, "bf16": FMA_OF_HALVES, "u8s8": VPMADDWD},
    tiles={"f32": NARROW, "bf16": LOW, "u8s8": LOW},
    others=(VPMADDUBSW,),
)
AVXVNNI = replace(
    AVX2,
    name="avxvnni",
    features=AVX2_FEATURES | {"avxvnni"},
    instructions={"f32": FMA, "bf16": FMA_OF_HALVES, "u8s8": VPDPBUSD},
    tiles={"f32": NARROW, "bf16": LOW, "u8s8": NARROW},
)
AVX512 = replace(
    AVX2,
    name="avx512",
    features=AVX512_FEATURES,
    lanes=16,
    tiles={"f32": WIDE, "bf16": LOW, "u8s8": LOW},
)
AVX512VNNI = replace(
    AVX512,
    name="avx512vnni",
    features=AVX512_FEATURES | {"avx512vnni"},
    instructions={"f32": FMA, "bf16": FMA_OF_HALVES, "u8s8": VPDPBUSD},
    tiles={"f32": WIDE, "bf16": LOW, "u8s8": WIDE},
)
AVX512BF16 = replace(
    AVX512VNNI,
    name="avx512bf16",
    features=AVX512_FEATURES | {"avx512vnni", "avx512bf16"},
    instructions={"f32": FMA, "bf16": VDPBF16PS, "u8s8": VPDPBUSD},
    tiles={"f32": WIDE, "bf16": WIDE, "u8s8": WIDE},
)

# For study: how u8 was multiplied by s8 before VNNI, made exact. Never chosen unless MINIRES_ISA
# names it.
BEFORE_VNNI = [
    replace(
        isa,
        name=f"{isa.name}-vpmaddubsw",
        instructions={**isa.instructions, "u8s8": VPMADDUBSW_SPLIT},
    )
    for isa in (AVX2, AVX512)
]
