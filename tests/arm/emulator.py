"""Runs a microkernel for ARM on an x86 Linux: under qemu, in a program of a few instructions.

There is no C library and no Python on the other side. The program reads all of its memory from its
input, calls the tile with the operands that lie at the front, and writes its memory to its output.
What it takes is two packages, which Debian and Ubuntu call qemu-user-static and
binutils-aarch64-linux-gnu.
"""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir

from minires.kernels.epilogue import SCALARS
from minires.kernels.ir import ARM, F32, FAMILY, I32, I64, VOID, load
from minires.kernels.microkernel import Microkernel, assembly

Array = npt.NDArray[Any]
TOOLS = ("qemu-aarch64-static", "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld")
# The least CPU that has a set: what is beyond it ends the program.
CPUS = {"generic": "cortex-a72", "neon": "cortex-a72", "neon-dotprod": "neoverse-n1"}
BASE, ROOM = 0x20000000, 2**22  # where its memory begins, and how many bytes it has
OPERANDS = 13  # int64, in the order of `Tile`; the scalars follow
# Linux's system calls have numbers: 63 reads, 64 writes, 93 ends the process.
START = f"""
    .bss
    .balign 64
memory:
    .skip {ROOM}
    .text
    .globl _start
_start:
    mov x8, #63
    mov x0, #0
    ldr x1, =memory
    ldr x2, ={ROOM}
    svc #0
    bl run
    mov x8, #64
    mov x0, #1
    ldr x1, =memory
    ldr x2, ={ROOM}
    svc #0
    mov x8, #93
    mov x0, #0
    svc #0
"""


def is_there() -> bool:
    """Tell whether tiles for ARM can be run here."""
    return FAMILY != ARM and all(map(shutil.which, TOOLS))


def _call() -> str:
    """Write the call of a tile, with the operands that lie at the front of the memory."""
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    scalars = ir.LiteralStructType(list(SCALARS.values()))
    tile = ir.Function(module, ir.FunctionType(VOID, [I64] * OPERANDS + [scalars]), "tile")
    run = ir.Function(module, ir.FunctionType(VOID, []), "run")
    builder = ir.IRBuilder(run.append_basic_block())
    operands = [load(builder, I64(BASE + 8 * i), I64) for i in range(OPERANDS)]
    numbers = ir.Constant(scalars, ir.Undefined)
    for i, kind in enumerate(SCALARS.values()):
        value = load(builder, I64(BASE + 8 * OPERANDS + 4 * i), kind)
        numbers = builder.insert_value(numbers, value, i)
    builder.call(tile, [*operands, numbers])
    builder.ret_void()
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(cpu="generic", opt=1)
    return str(machine.emit_assembly(binding.parse_assembly(str(module))))


@functools.cache
def _scratch() -> Any:
    return tempfile.TemporaryDirectory(prefix="minires-arm-")  # gone when the process ends


@functools.cache
def _program(name: str) -> Path:
    """Compile, assemble and link a microkernel's program."""
    folder = Path(_scratch().name)
    file = folder / f"{len(list(folder.iterdir()))}"
    text = assembly(Microkernel.named(name))
    objects = []
    for part, source in (("tile", text), ("call", _call()), ("start", START)):
        objects.append(file.with_suffix(f".{part}.o"))
        command = [TOOLS[1], "-march=armv8.6-a", "-o", objects[-1], "-"]
        subprocess.run(command, input=source, text=True, check=True)
    subprocess.run([TOOLS[2], f"-Tbss={BASE:#x}", "-o", file, *objects], check=True)
    return file


def run_tile(
    kernel: Microkernel,
    arrays: list[Array | None],  # x, x_offsets, w, bias, m, residual, y and y_offsets
    groups: int,
    scalars: list[float],
) -> None:
    """Compute a tile of one run of groups; y gets the result."""
    memory = np.zeros(ROOM, np.uint8)
    free, places = 4096, []
    for array in arrays:
        places.append(0 if array is None else BASE + free)
        if array is not None:
            memory[free : free + array.nbytes] = array.reshape(-1).view(np.uint8)
            free += -(-array.nbytes // 64) * 64 + 64
    x, x_offsets, w, bias, m, residual, y, y_offsets = places
    operands = [x, x_offsets, w, 1, groups, 0, w, 0, bias, m, residual, y, y_offsets]
    memory[: 8 * OPERANDS] = np.array(operands, np.int64).view(np.uint8)
    for i, (value, kind) in enumerate(zip(scalars, SCALARS.values(), strict=True)):
        number = np.array([value], np.float32 if kind == F32 else np.int32)
        assert kind in (F32, I32)
        at = 8 * OPERANDS + 4 * i
        memory[at : at + 4] = number.view(np.uint8)
    program = _program(kernel.name)
    cpu = CPUS.get(kernel.isa.name, "max")
    command = [TOOLS[0], "-cpu", cpu, str(program)]
    with tempfile.TemporaryFile() as file:
        file.write(memory)
        file.seek(0)
        done = subprocess.run(command, stdin=file, capture_output=True, check=False)
    assert done.returncode == 0, f"{kernel.name} ended with {done.returncode} on {cpu}"
    after = np.frombuffer(done.stdout, np.uint8)
    result = arrays[6]
    assert result is not None
    begin = y - BASE
    result[...] = after[begin : begin + result.nbytes].view(result.dtype).reshape(result.shape)
