"""Means for threads that work together: a clock, counts that all of them see, and waiting."""

import sys
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from minires.kernels.ir import FAMILY, I32, I64, VOID, Builder, Value, call, inline_asm, pointer_to

# How often a thread looks at a count before it offers its core to others; a look takes some 40 ns.
PATIENCE = 1000


@intrinsic
def ticks(_: Any) -> Any:
    """Read a counter that runs at a steady but unknown rate; it takes some 20 ns."""

    def codegen(_: Any, builder: Builder, __: Any, ___: Any) -> Value:
        if FAMILY in ("aarch64", "arm64"):  # LLVM would read a counter that only Linux may read
            return inline_asm(builder, "mrs $0, cntvct_el0", "=r", I64, side_effect=True)
        return call(builder, "llvm.readcyclecounter", I64)

    return types.int64(), codegen


@intrinsic
def pointer(_: Any, address: Any) -> Any:
    """Take an int64 for an address, as `numba.carray` wants it."""

    def codegen(_: Any, builder: Builder, __: Any, arguments: Any) -> Value:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def count_up(_: Any, address: Any) -> Any:
    """Add 1 to an int64 that several threads count with, and return its old value."""

    def codegen(_: Any, builder: Builder, __: Any, arguments: Any) -> Value:
        return builder.atomic_rmw("add", pointer_to(builder, arguments[0]), I64(1), "acq_rel")

    return types.int64(types.uintp), codegen


@intrinsic
def wait_for(_: Any, address: Any, count: Any) -> Any:
    """Wait until an int64 that other threads count with has reached `count`.

    The thread stays awake, because the others are usually about to be done and going to sleep would
    take longer. If they are not, there may be more threads than cores: so every now and then it
    offers its core to others.
    """

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        place = pointer_to(builder, arguments[0])
        start = builder.block
        look = builder.append_basic_block("look")
        end = builder.append_basic_block("end")
        builder.branch(look)
        builder.position_at_end(look)
        looks = builder.phi(I64)
        if FAMILY == "x86_64":
            call(builder, "llvm.x86.sse2.pause", VOID)
        often = builder.icmp_unsigned("==", builder.urem(looks, I64(PATIENCE)), I64(PATIENCE - 1))
        with builder.if_then(often):
            if sys.platform != "win32":
                call(builder, "sched_yield", I32)
        looks.add_incoming(I64(0), start)
        looks.add_incoming(builder.add(looks, I64(1)), builder.block)
        counted = builder.load_atomic(place, "acquire", 8, typ=I64)
        builder.cbranch(builder.icmp_signed("<", counted, arguments[1]), look, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.none(types.uintp, types.int64), codegen
