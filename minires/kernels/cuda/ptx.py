"""Words for PTX, the assembly of NVIDIA's GPUs, that the kernels of this folder are written in.

PTX is one instruction set for all cards; the driver makes a card's own code of it. Section numbers
are those of "PTX ISA" (NVIDIA, docs.nvidia.com/cuda/parallel-thread-execution), part 9.7.
"""

from typing import Any

from llvmlite import ir

from minires.kernels.ir import F32, I8, I16, I32, I64, VOID, Builder, Value, inline_asm, vector

SHARED = 3  # LLVM's number for the memory that the threads of a block share


def register(builder: Builder, name: str) -> Value:
    """Read one of the special registers, such as tid.x: a thread's number in its block."""
    return inline_asm(builder, f"mov.u32 $0, %{name};", "=r", I32)


def load(builder: Builder, address: Value, what: Any, align: int) -> Value:
    """Load a scalar or a vector. NVVM wants typed pointers, which kernels/ir.py has no more."""
    return builder.load(builder.inttoptr(address, ir.PointerType(what)), align=align)


def store(builder: Builder, value: Value, address: Value, align: int) -> None:
    """Store a scalar or a vector."""
    builder.store(value, builder.inttoptr(address, ir.PointerType(value.type)), align=align)


def load_shared(builder: Builder, address: Value, what: Any, align: int) -> Value:
    """Load from the block's own memory, whose addresses have 32 bits."""
    pointer = builder.inttoptr(address, ir.PointerType(what, addrspace=SHARED))
    return builder.load(pointer, align=align)


def shared_memory(builder: Builder, name: str, size: int) -> Value:
    """Reserve memory that a block's threads share; tell its address, 32 bits."""
    what = ir.ArrayType(I8, size)
    memory = ir.GlobalVariable(builder.module, what, name, addrspace=SHARED)
    memory.linkage = "internal"
    memory.align = 128
    memory.initializer = ir.Constant(what, ir.Undefined)
    return builder.trunc(builder.ptrtoint(memory, I64), I32)


def barrier(builder: Builder) -> None:
    """Wait for all threads of the block."""
    inline_asm(builder, "bar.sync 0;", "~{memory}", VOID, side_effect=True)


def copy_16(builder: Builder, to: Value, address: Value) -> None:
    """Copy 16 bytes to shared memory through registers: until they are there, the thread waits."""
    words = vector(I32, 4)
    pointer = builder.inttoptr(to, ir.PointerType(words, addrspace=SHARED))
    builder.store(load(builder, address, words, 16), pointer, align=16)


def start_copying_16(builder: Builder, to: Value, address: Value) -> None:
    """Start copying 16 bytes to shared memory, past the registers and past the near cache."""
    text = "cp.async.cg.shared.global [$0], [$1], 16;"
    inline_asm(builder, text, "r,l,~{memory}", VOID, to, address, side_effect=True)


def commit_copies(builder: Builder) -> None:
    """Make a group of the copies started since the last one."""
    inline_asm(builder, "cp.async.commit_group;", "~{memory}", VOID, side_effect=True)


def wait_for_copies(builder: Builder, but: int) -> None:
    """Wait for this thread's groups of copies, but for so many of the latest."""
    text = f"cp.async.wait_group {but};"
    inline_asm(builder, text, "~{memory}", VOID, side_effect=True)


def load_matrices(builder: Builder, address: Value) -> list[Value]:
    """Load four matrices of 8 rows by 16 bytes; each lane names one row, and gets 4 bytes of each.

    ldmatrix: section "Warp-level matrix instructions". Lanes 0 to 7 name the rows of the first
    matrix, 8 to 15 the second's. Lane l gets the bytes 4 * (l % 4) and on of row l / 4.
    """
    text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];"
    returns = ir.LiteralStructType([I32] * 4)
    four = inline_asm(builder, text, "=r,=r,=r,=r,r,~{memory}", returns, address, side_effect=True)
    return [builder.extract_value(four, i) for i in range(4)]


def multiply_matrices(
    builder: Builder, mnemonic: str, sums: list[Value], a: list[Value], b: list[Value]
) -> list[Value]:
    """Multiply a warp's fragments and add the product to its sums."""
    count = len(sums)
    letter = "f" if sums[0].type == F32 else "r"
    places = iter(range(2 * count + len(a) + len(b)))
    groups = [", ".join(f"${next(places)}" for _ in group) for group in (sums, a, b, sums)]
    text = f"{mnemonic} {{{'}, {'.join(groups)}}};"
    words = ["r"] * (len(a) + len(b))
    constraint = ",".join([f"={letter}"] * count + words + [letter] * count)
    returns = ir.LiteralStructType([sums[0].type] * count)
    found = inline_asm(builder, text, constraint, returns, *a, *b, *sums)
    return [builder.extract_value(found, i) for i in range(count)]


def rounded(builder: Builder, operation: str, a: Value, b: Value) -> Value:
    """Add or multiply in float32 and round, so that nothing is fused with the next operation."""
    return inline_asm(builder, f"{operation}.rn.f32 $0, $1, $2;", "=f,f,f", F32, a, b)


def to_integer(builder: Builder, x: Value) -> Value:
    """Round to the nearest integer, half to even."""
    return inline_asm(builder, "cvt.rni.s32.f32 $0, $1;", "=r,f", I32, x)


def limits(builder: Builder, zero_point: Value) -> tuple[Value, Value]:
    """Tell the least and the greatest step that eight bits hold, less the zero point."""
    low = builder.neg(zero_point)
    high = builder.sub(I32(255), zero_point)
    return builder.sitofp(low, F32), builder.sitofp(high, F32)


def requantize(builder: Builder, t: Value, low: Value, high: Value, zero_point: Value) -> Value:
    """Clip, round to the nearest integer, half to even, and add the zero point."""
    t = builder.select(builder.fcmp_ordered(">", t, low), t, low)
    t = builder.select(builder.fcmp_ordered("<", t, high), t, high)
    return builder.add(to_integer(builder, t), zero_point)


def pair(builder: Builder, form: str, low: Value, high: Value, turing: bool) -> Value:
    """Round two float32 to f16 or bf16, side by side in 32 bits; a Turing card does it in turns."""
    if turing:
        half = f"cvt.rn.{form}.f32"
        text = f"{{ .reg .b16 %l, %h; {half} %l, $2; {half} %h, $1; mov.b32 $0, {{%l, %h}}; }}"
        return inline_asm(builder, text, "=r,f,f", I32, high, low)
    return inline_asm(builder, f"cvt.rn.{form}x2.f32 $0, $1, $2;", "=r,f,f", I32, high, low)


def from_f16(builder: Builder, x: Value) -> Value:
    """Turn the bits of an f16 into a float32."""
    return inline_asm(builder, "cvt.f32.f16 $0, $1;", "=f,h", F32, x)


def split_word(builder: Builder, word: Value, bits: int) -> list[Value]:
    """Cut 32 bits into bytes or halves, the lowest first."""
    part = {8: I8, 16: I16}[bits]
    return [builder.trunc(builder.lshr(word, I32(bits * i)), part) for i in range(32 // bits)]


def release(builder: Builder) -> None:
    """Let all threads of the GPU see what this one has stored."""
    inline_asm(builder, "membar.gl;", "~{memory}", VOID, side_effect=True)


def count_round(builder: Builder, address: Value, last: Value) -> Value:
    """Add one to a counter in memory, which begins anew after `last`; tell what it was."""
    text = "atom.global.inc.u32 $0, [$1], $2;"
    return inline_asm(builder, text, "=r,l,r,~{memory}", I32, address, last, side_effect=True)


def load_volatile(builder: Builder, address: Value, what: Any) -> Value:
    """Load 32 bits that another block has stored: from the cache that all share."""
    text, letter = (
        ("ld.volatile.global.f32 $0, [$1];", "f")
        if what == F32
        else ("ld.volatile.global.u32 $0, [$1];", "r")
    )
    return inline_asm(builder, text, f"={letter},l,~{{memory}}", what, address, side_effect=True)
