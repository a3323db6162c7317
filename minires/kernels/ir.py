"""Short functions that write LLVM IR, for the kernels: types, vectors, loops, loads.

A Numba intrinsic is given a builder, and writes instructions with it. Addresses and counts are
integers: of 64 bits, because compiled Python has them in this form, or of 32 for WebAssembly.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from llvmlite import binding, ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
VOID = ir.VoidType()
Value: TypeAlias = Any  # llvmlite's own types say nothing to mypy
Builder: TypeAlias = Any

X86, ARM = "x86_64", "aarch64"
FAMILY = binding.get_default_triple().partition("-")[0].replace("arm64", ARM)  # this machine's CPUs
LLVM_22 = binding.llvm_version_info >= (22,)  # from here on dot products take vectors of elements
LINE = 128 if (FAMILY, sys.platform) == (ARM, "darwin") else 64  # bytes a cache fetches at once
ROOM_AHEAD = 4096  # how many bytes ahead a panel is fetched, much of it from the second cache

# Numba does this only on x86. On other CPUs any inline assembly would end the process without it.
binding.initialize_native_asmparser()


class BFloat(ir.Type):
    """bfloat16: LLVM has this type, but llvmlite has no class for it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


# llvmlite's types, for files that do not import llvmlite themselves.
vector = ir.VectorType
array = ir.ArrayType


def bytes_of(scalar: Any) -> int:
    """Count the bytes of a float32 or an integer."""
    return 4 if scalar == F32 else scalar.width // 8


def call(builder: Builder, name: str, returns: Any, *arguments: Value) -> Value:
    """Call a function of LLVM or of C by its name."""
    signature = ir.FunctionType(returns, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, arguments)


def inline_asm(
    builder: Builder,
    text: str,
    constraint: str,
    returns: Any,
    *arguments: Value,
    side_effect: bool = False,
) -> Value:
    """Write an instruction that LLVM has no function for."""
    signature = ir.FunctionType(returns, [a.type for a in arguments])
    return builder.asm(signature, text, constraint, arguments, side_effect=side_effect)


def opaque(builder: Builder, value: Value, register: str) -> Value:
    """Pass a value through an empty inline asm: LLVM must assume nothing about its result."""
    return inline_asm(builder, "", f"={register},0", value.type, value)


# Vectors


def splat(builder: Builder, value: Value, lanes: int) -> Value:
    """Copy a scalar into all lanes."""
    wide = vector(value.type, lanes)
    first = builder.insert_element(ir.Constant(wide, ir.Undefined), value, I32(0))
    zeros = ir.Constant(vector(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(wide, ir.Undefined), zeros)


def constant(wide: Any, value: float) -> Value:
    """Make a vector whose lanes are all the same number."""
    return ir.Constant(wide, [ir.Constant(wide.element, value)] * wide.count)


def take_lanes(builder: Builder, value: Value, first: int, count: int, times: int) -> Value:
    """Repeat `count` neighbouring lanes of a vector, from `first` on, so many times in another."""
    lanes = [I32(first + i) for i in range(count)] * times
    picked = ir.Constant(vector(I32, len(lanes)), lanes)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), picked)


# Memory


def after(builder: Builder, address: Value, count: int) -> Value:
    """Return the address that lies `count` bytes behind another."""
    return builder.add(address, address.type(count))


def pointer_to(builder: Builder, address: Value) -> Value:
    """Turn an address into a pointer."""
    return builder.inttoptr(address, POINTER)


def load(builder: Builder, address: Value, what: Any) -> Value:
    """Load a scalar or a vector, from an address that need not be aligned."""
    return builder.load(pointer_to(builder, address), align=1, typ=what)


def store(builder: Builder, value: Value, address: Value) -> None:
    """Store a scalar or a vector, to an address that need not be aligned."""
    builder.store(value, pointer_to(builder, address), align=1)


def load_offset(builder: Builder, table: Value, row: int) -> Value:
    """Load an entry of a table of int32, to be added to an address."""
    return builder.sext(load(builder, after(builder, table, 4 * row), I32), table.type)


def prefetch(
    builder: Builder, address: Value, ahead: int, size: int, cache: int = 1, write: bool = False
) -> None:
    """Fetch `size` bytes that begin `ahead` bytes behind an address into a cache, by lines."""
    signature = ir.FunctionType(VOID, [POINTER, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    access, near, data = I32(int(write)), I32(4 - cache), I32(1)
    for line in range(0, size, LINE):
        place = pointer_to(builder, after(builder, address, ahead + line))
        builder.call(function, [place, access, near, data])


def local(builder: Builder, what: Any) -> Value:
    """Reserve memory on the stack, for as long as the function runs."""
    with builder.goto_entry_block():
        return builder.alloca(what)


# Control


def loop(builder: Builder, count: Value, carried: list[Value], body: Callable[..., Any]) -> Any:
    """Repeat ``carried = body(*carried)`` `count` times, at least once, in registers.

    Each carried value is a phi node: in the first round it has the value from before the loop, in
    every later round the value from the end of the round before. So sums stay in registers.
    """
    start = builder.block
    first, one = count.type(0), count.type(1)
    head = builder.append_basic_block("loop")
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(count.type)
    phis = [builder.phi(value.type) for value in carried]
    later = body(*phis)
    following = builder.add(i, one)
    end = builder.block  # not `head` if the body has a loop of its own
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, count), head, done)
    for phi, before, value in zip([i, *phis], [first, *carried], [following, *later], strict=True):
        phi.add_incoming(before, start)
        phi.add_incoming(value, end)
    builder.position_at_end(done)
    return later
