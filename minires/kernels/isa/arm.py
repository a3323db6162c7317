"""Multiplying on 64-bit ARM: NEON, and what its extensions for dot products add.

A vector has 128 bits, four lanes of 32, and there are 32 of them. One operand of a multiplication
may be a single lane of a vector, as if it were copied to all lanes. So a row's activations are
loaded a whole vector at a time, four groups along K, and nothing is copied. LLVM knows the lane
only in one place: it is the last operand of `fmla`, `sdot` and `bfdot`. `usmmla` takes no lane, but
two rows and two columns at once: `minires.kernels.isa.pairs`.

A CPU of 2013 has NEON. `dotprod` came with Armv8.2 (Graviton 2, Apple M1, Raspberry Pi 5), `i8mm`
and `bf16` with Armv8.6 (Graviton 3, Apple M2). Arm's architecture reference manual, DDI 0487, tells
what each instruction does.
"""

from dataclasses import replace

from minires.kernels.ir import ARM, I8, I16, BFloat, Builder, Value, call, constant, vector
from minires.kernels.isa.generic import fma, of_halves
from minires.kernels.isa.instruction import ISA, Instruction

# Emitting, as in x86.py. acc, a and b are vectors of 128 bits.


def less_128(builder: Builder, a: Value) -> Value:
    """Take 128 from each u8, which makes s8 of it: that only flips the upper bit."""
    octets = vector(I8, a.type.count * a.type.element.width // 8)
    flipped = builder.xor(builder.bitcast(a, octets), constant(octets, -128))
    return builder.bitcast(flipped, a.type)


def _dot(name: str, builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    octets = vector(I8, 16)
    a, b = builder.bitcast(a, octets), builder.bitcast(b, octets)
    return call(builder, f"llvm.aarch64.neon.{name}.v4i32.v16i8", acc.type, acc, a, b)


def sdot(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products of s8 and s8 in s32 by one instruction."""
    return _dot("sdot", builder, acc, b, a)


def usdot(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products of u8 and s8 in s32 by one instruction.

    `usdot` has u8 first. Only `sudot`, which has them last, can take them from a lane; LLVM writes
    that where `a` is one.
    """
    return _dot("usdot", builder, acc, a, b)


def usmmla(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add eight products of u8 and s8 to each of four sums, two rows by two columns."""
    octets = vector(I8, 16)
    a, b = builder.bitcast(a, octets), builder.bitcast(b, octets)
    return call(builder, "llvm.aarch64.neon.usmmla.v4i32.v16i8", acc.type, acc, a, b)


def bfdot(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add two products of bfloat16 by one instruction."""
    a, b = (builder.bitcast(v, vector(BFloat(), 8)) for v in (a, b))
    return call(builder, "llvm.aarch64.neon.bfdot.v4f32.v8bf16", acc.type, acc, b, a)


def bfcvtn(builder: Builder, t: Value) -> Value:
    """Round float32 to bfloat16, to nearest even."""
    half = builder.fptrunc(t, vector(BFloat(), 4))
    return builder.bitcast(half, vector(I16, 4))


def smull(builder: Builder, acc: Value, a: Value, b: Value) -> Value:
    """Add four products of s8 and s8, as before dot products: smull and sadalp, each twice.

    smull makes s16 of two bytes of each lane; a product is at most 128 * 128, which s16 holds.
    sadalp adds both products of a lane to s32.
    """
    lanes = acc.type
    a, b = builder.bitcast(a, lanes), builder.bitcast(b, lanes)
    for shift in (0, 16):
        x, w = (builder.lshr(v, constant(lanes, shift)) for v in (a, b))
        x, w = (builder.trunc(v, vector(I16, 4)) for v in (x, w))
        x, w = (builder.bitcast(v, vector(I8, 8)) for v in (x, w))
        pairs = call(builder, "llvm.aarch64.neon.smull.v8i16", vector(I16, 8), x, w)
        quads = call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", lanes, pairs)
        acc = builder.add(acc, quads)
    return acc


# Describing. 24 sums in turn keep four units busy for as long as six cycles; Apple's cores and the
# larger Neoverse have four units.

SUMS, RATES = 24, (1 / 2, 1, 2, 4)
FMLA = Instruction("fmla", "f32", fma, ("fmla",), lanes_loaded=4, sums=SUMS, rates=RATES)
FMLA_OF_HALVES = Instruction("fmla of halves", "bf16", of_halves(fma), ("fmla",), composed=True)
# Of eight bfloat16, LLVM finds only the first four as lanes.
BFDOT = Instruction(
    "bfdot",
    "bf16",
    bfdot,
    ("bfdot",),
    lanes_loaded=2,
    narrow=bfcvtn,
    sums=SUMS,
    rates=RATES,
)
USDOT = Instruction(
    "usdot", "u8s8", usdot, ("usdot|sudot",), lanes_loaded=4, sums=SUMS, rates=RATES
)
USMMLA = Instruction(
    "usmmla", "u8s8", usmmla, ("usmmla",), rows=2, groups=2, sums=SUMS, rates=RATES
)
# Activations could lie in memory as s8. That would save 8 of the 137 instructions of sdot's loop.
# But six places know u8: those that convert an image, round sums, fill padding, read residuals,
# pool, and hand out a layer's output. Each would need two forms.
SDOT = Instruction(
    "sdot",
    "u8s8",
    sdot,
    ("sdot",),
    explained="the vector instruction sdot, for which both must be s8: activations less 128",
    lanes_loaded=4,
    before=less_128,
    less=128,
    sums=SUMS,
    rates=RATES,
)
SMULL = Instruction(
    "smull",
    "u8s8",
    smull,
    ("smull", "sadalp"),
    explained="four instructions for four products, as before dot products",
    lanes_loaded=4,
    before=less_128,
    less=128,
    sums=8,
    rates=(),
)

# The sets. Tiles are (MR, NR in vectors), as in x86.py: 6 x 4 sums, 6 vectors of activations and 2
# of weights fill the 32 registers.

WIDE = (6, 4)

NEON = ISA(
    "neon",
    frozenset({"neon"}),
    lanes=4,
    instructions={"f32": FMLA, "bf16": FMLA_OF_HALVES, "u8s8": SMULL},
    tiles={"f32": WIDE, "bf16": (4, 4), "u8s8": (4, 2)},
    family=ARM,
)
NEON_DOTPROD = ISA(
    "neon-dotprod",
    NEON.features | {"dotprod"},
    lanes=4,
    instructions={"f32": FMLA, "bf16": FMLA_OF_HALVES, "u8s8": SDOT},
    tiles={"f32": WIDE, "bf16": (4, 4), "u8s8": WIDE},
    others=(SMULL,),
    family=ARM,
)
NEON_I8MM = ISA(
    "neon-i8mm",
    NEON_DOTPROD.features | {"i8mm"},
    lanes=4,
    instructions={"f32": FMLA, "bf16": FMLA_OF_HALVES, "u8s8": USDOT},
    tiles={"f32": WIDE, "bf16": (4, 4), "u8s8": WIDE},
    others=(SMULL, SDOT),
    family=ARM,
)
NEON_BF16 = ISA(
    "neon-bf16",
    NEON_I8MM.features | {"bf16"},
    lanes=4,
    instructions={"f32": FMLA, "bf16": BFDOT, "u8s8": USDOT},
    tiles={"f32": WIDE, "bf16": WIDE, "u8s8": WIDE},
    others=(SMULL, SDOT),
    family=ARM,
)
# By LLVM's models of Neoverse V1, N2 and V2 a tile by usmmla takes 0.57 of the time. No clock of a
# real one has told it yet: neon-bf16 has all of this but usmmla, so that you can compare.
NEON_MMLA = replace(
    NEON_BF16,
    name="neon-mmla",
    instructions={**NEON_BF16.instructions, "u8s8": USMMLA},
    others=(SMULL, SDOT, USDOT),
)
