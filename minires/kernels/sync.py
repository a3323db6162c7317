"""Means for threads that work together: a clock, counts that all of them see, and waiting."""

import ctypes
import sys
from typing import Any

from llvmlite import binding
from numba.core import cgutils, types
from numba.extending import intrinsic

from minires.kernels.ir import (
    ARM,
    FAMILY,
    I32,
    I64,
    VOID,
    X86,
    Builder,
    Value,
    call,
    inline_asm,
    pointer_to,
)

# How often a thread looks at a count before it goes to sleep; a look takes some 40 ns. Threads that
# all have a core of their own wait for less than these 0.4 ms: going to sleep would slow them down.
PATIENCE = 10_000
# How a thread sleeps between two looks. Compiled code knows the function by this name.
SLEEP = "minires_sleep"
if sys.platform == "win32":
    # 0 offers the core to other threads; Windows would make 15 milliseconds of the next number, 1.
    _sleep, NAP = ctypes.WinDLL("kernel32").Sleep, 0
else:
    _sleep, NAP = ctypes.CDLL(None).usleep, 50  # microseconds
binding.add_symbol(SLEEP, ctypes.cast(_sleep, ctypes.c_void_p).value)


@intrinsic
def ticks(_: Any) -> Any:
    """Read a counter that runs at a steady but unknown rate; it takes some 20 ns."""

    def codegen(_: Any, builder: Builder, __: Any, ___: Any) -> Value:
        if FAMILY == ARM:  # LLVM would read a counter that only Linux may read
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
def count_up(_: Any, address: Any, by: Any) -> Any:
    """Add to an int64 that several threads count with, and return its old value."""

    def codegen(_: Any, builder: Builder, __: Any, arguments: Any) -> Value:
        place = pointer_to(builder, arguments[0])
        return builder.atomic_rmw("add", place, arguments[1], "acq_rel")

    return types.int64(types.uintp, types.int64), codegen


@intrinsic
def wait_for(_: Any, address: Any, count: Any) -> Any:
    """Wait until an int64 that other threads count with has reached `count`.

    The thread stays awake at first, because the others are usually about to be done, and going to
    sleep would take longer. If they are not, one of them has lost its core to another program. Then
    this thread sleeps between its looks, so that its own core is free for the one that is late.
    """

    def codegen(context: Any, builder: Builder, _: Any, arguments: Any) -> Value:
        place = pointer_to(builder, arguments[0])
        start = builder.block
        look = builder.append_basic_block("look")
        pause = builder.append_basic_block("pause")
        end = builder.append_basic_block("end")
        builder.branch(look)
        builder.position_at_end(look)
        looks = builder.phi(I64)
        looks.add_incoming(I64(0), start)
        counted = builder.load_atomic(place, "acquire", 8, typ=I64)
        builder.cbranch(builder.icmp_signed("<", counted, arguments[1]), pause, end)
        builder.position_at_end(pause)
        patient = builder.icmp_signed("<", looks, I64(PATIENCE))
        with builder.if_else(patient) as (awake, asleep):
            with awake:
                _rest(builder)
            with asleep:
                call(builder, SLEEP, VOID, I32(NAP))
        looks.add_incoming(builder.add(looks, I64(1)), builder.block)
        builder.branch(look)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.none(types.uintp, types.int64), codegen


def _rest(builder: Builder) -> None:
    """Let the core rest for some 40 ns, in which its other thread gets all of it."""
    if FAMILY == X86:
        call(builder, "llvm.x86.sse2.pause", VOID)
    elif FAMILY == ARM:  # its "yield" does nothing on most cores
        inline_asm(builder, "isb", "", VOID, side_effect=True)
