"""Runs microkernels for ARM on an x86 Linux: under qemu, in a program of a few instructions.

There is no C library and no Python on the other side. The program reads its memory from its input,
calls the tile with each of the operands that lie at the front, and writes its memory to its output.
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
from minires.kernels.ir import ARM, F32, FAMILY, I64, VOID, after, load, loop
from minires.kernels.isa.instruction import Tile
from minires.kernels.microkernel import Microkernel, assembly

Array = npt.NDArray[Any]
TOOLS = ("qemu-aarch64-static", "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld")
# The least CPU that has a set: what is beyond it ends the program.
CPUS = {"generic": "cortex-a72", "neon": "cortex-a72", "neon-dotprod": "neoverse-n1"}
BASE, ROOM = 0x20000000, 2**26  # where its memory begins, and how many bytes it may have
# The memory begins with two int64: how many calls there are, and how many bytes are used. Calls
# follow: 13 int64 in the order of `Tile`, and 6 scalars.
FIRST, CALL, NUMBERS = 64, 128, 13
ADDRESSES = [i for i, name in enumerate(Tile._fields) if name not in
             ("runs", "groups", "run_stride", "later_step", "scalars")]  # fmt: skip
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
    ldr x2, [x1, #8]
    svc #0
    mov x8, #93
    mov x0, #0
    svc #0
"""


def is_there() -> bool:
    """Tell whether tiles for ARM can be run here."""
    return FAMILY != ARM and all(map(shutil.which, TOOLS))


def _calls() -> str:
    """Write the loop over the calls, as assembly."""
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    scalars = ir.LiteralStructType(list(SCALARS.values()))
    tile = ir.Function(module, ir.FunctionType(VOID, [I64] * NUMBERS + [scalars]), "tile")
    run = ir.Function(module, ir.FunctionType(VOID, []), "run")
    builder = ir.IRBuilder(run.append_basic_block())

    def call(at: Any) -> list[Any]:
        operands = [load(builder, after(builder, at, 8 * i), I64) for i in range(NUMBERS)]
        values = ir.Constant(scalars, ir.Undefined)
        for i, kind in enumerate(SCALARS.values()):
            value = load(builder, after(builder, at, 8 * NUMBERS + 4 * i), kind)
            values = builder.insert_value(values, value, i)
        builder.call(tile, [*operands, values])
        return [after(builder, at, CALL)]

    loop(builder, load(builder, I64(BASE), I64), [I64(BASE + FIRST)], call)
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
    for part, source in (("tile", text), ("calls", _calls()), ("start", START)):
        objects.append(file.with_suffix(f".{part}.o"))
        command = [TOOLS[1], "-march=armv8.6-a", "-o", objects[-1], "-"]
        subprocess.run(command, input=source, text=True, check=True)
    subprocess.run([TOOLS[2], f"-Tbss={BASE:#x}", "-o", file, *objects], check=True)
    return file


def run_tiles(
    kernel: Microkernel,
    operands: Array,  # (calls, 13) int64, with addresses of this process
    scalars: list[float],
    arrays: list[Array],  # all that the addresses lie in; what they hold comes back changed
) -> None:
    """Compute tiles, one after another, as the microkernel would do here."""
    memory = np.zeros(ROOM, np.uint8)
    places, free = np.zeros_like(operands), FIRST + CALL * len(operands)
    held = []
    for array in arrays:
        content = array.reshape(-1).view(np.uint8)
        assert np.shares_memory(content, array)
        free += -free % 64
        begin = array.ctypes.data
        inside = (operands >= begin) & (operands < begin + content.nbytes)
        places[inside] = operands[inside] - begin + BASE + free
        held.append((content, slice(free, free + content.nbytes)))
        memory[held[-1][1]] = content
        free += content.nbytes
    memory[:16] = np.array([len(operands), free]).view(np.uint8)
    table = memory[FIRST : FIRST + CALL * len(operands)].reshape(-1, CALL)
    numbers = operands.copy()
    numbers[:, ADDRESSES] = places[:, ADDRESSES]
    table[:, : 8 * NUMBERS] = numbers.view(np.uint8)
    for i, (value, kind) in enumerate(zip(scalars, SCALARS.values(), strict=True)):
        at = 8 * NUMBERS + 4 * i
        number = np.array([value], np.float32 if kind == F32 else np.int32)
        table[:, at : at + 4] = number.view(np.uint8)
    result = _run(kernel, memory[:free])
    for content, place in held:
        content[...] = result[place]


def _run(kernel: Microkernel, memory: Array) -> Array:
    """Hand the program its memory, and return what it makes of it."""
    cpu = CPUS.get(kernel.isa.name, "max")
    command = [TOOLS[0], "-cpu", cpu, str(_program(kernel.name))]
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as answer:
        file.write(memory)
        file.seek(0)
        done = subprocess.run(command, stdin=file, stdout=answer, check=False)
        assert done.returncode == 0, f"{kernel.name} ended with {done.returncode} on {cpu}"
        answer.seek(0)
        return np.frombuffer(answer.read(), np.uint8)
