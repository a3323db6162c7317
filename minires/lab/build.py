"""Compile the microkernels to WebAssembly: ``python -m minires.lab.build``, in a checkout.

The modules that come out, of a few kilobytes, are part of the checkout: a page needs no compiler.
Each kernel is one exported function, which computes a whole layer. llvmlite makes the object files,
and wasm-ld from the package ziglang links them.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llvmlite import binding, ir

from minires.errors import MiniresError
from minires.kernels.epilogue import SCALARS
from minires.kernels.ir import I32, VOID, Builder, Value, loop
from minires.kernels.isa import wasm
from minires.kernels.isa.instruction import Tile
from minires.kernels.microkernel import Microkernel, write_tile

ENGINE = Path(__file__).parent / "page" / "engine"
# What a layer's function takes, in order; the epilogue's scalars come behind.
ADDRESSES = ["x", "x_offsets", "w", "bias", "m", "residual", "y", "y_offsets"]
COUNTS = ["runs", "groups", "run_stride", "rows", "block", "panels", "panel_bytes"]
LINKER = (sys.executable, "-m", "ziglang", "wasm-ld")
WORD = I32  # WebAssembly's addresses
# By module, then by the function's name.
MODULES: dict[str, dict[str, Microkernel]] = {
    "kernels": {
        "conv_f32": Microkernel.of(wasm.WASM, "f32", "activate"),
        "conv_u8s8": Microkernel.of(wasm.WASM, "u8s8", "requantize"),
        "linear_u8s8": Microkernel.of(wasm.WASM, "u8s8", "dequantize"),
        "conv_bytes": Microkernel.of(wasm.WASM_BYTES, "u8s8", "requantize"),
    },
    "relaxed": {
        "conv_f32": Microkernel.of(wasm.WASM_RELAXED, "f32", "activate"),
        "conv_u8s8": Microkernel.of(wasm.WASM_RELAXED, "u8s8", "requantize"),
        "conv_split": Microkernel.of(wasm.WASM_SPLIT, "u8s8", "requantize"),
        "sums": Microkernel.of(wasm.WASM_RELAXED, "u8s8", "store"),
    },
}


def write_layer(module: Any, name: str, kernel: Microkernel) -> None:
    """Write a layer's function: blocks of rows of tiles, panels, and the tiles where they meet."""
    scalars = ir.LiteralStructType(list(SCALARS.values()))
    signature = ir.FunctionType(VOID, [WORD] * 13 + [scalars])
    tile = ir.Function(module, signature, f"{name}_tile")
    tile.linkage = "internal"
    tile.attributes.add("noinline")
    builder = ir.IRBuilder(tile.append_basic_block())
    write_tile(builder, kernel, Tile(*tile.args))
    builder.ret_void()

    numbers = [WORD] * (len(ADDRESSES) + len(COUNTS))
    layer = ir.Function(module, ir.FunctionType(VOID, [*numbers, *SCALARS.values()]), name)
    builder = ir.IRBuilder(layer.append_basic_block())
    step = dict(zip([*ADDRESSES, *COUNTS], layer.args, strict=False))
    packed = ir.Constant(scalars, ir.Undefined)
    for i, value in enumerate(layer.args[len(numbers) :]):
        packed = builder.insert_value(packed, value, i)
    _write_loops(builder, kernel, tile, step, packed)
    builder.ret_void()


def _write_loops(
    builder: Builder, kernel: Microkernel, tile: Value, step: Mapping[str, Value], scalars: Value
) -> None:
    """Let the tiles of a GEMM follow each other as `operators._tiles` does, on one thread."""
    table = WORD(4 * kernel.rows)  # bytes of a tile's rows, in a table of offsets
    item = WORD(4 if kernel.epilogue in ("activate", "dequantize", "store") else 1)

    def block(top: Value) -> list[Value]:
        left = builder.sub(step["rows"], top)
        whole = builder.icmp_signed("<", step["block"], left)
        rows = builder.select(whole, step["block"], left)

        def panel(w: Value, column: Value) -> list[Value]:
            values, numbers = builder.mul(column, item), builder.mul(column, WORD(4))
            there = builder.icmp_signed("!=", step["residual"], WORD(0))
            beside = builder.add(step["residual"], values)
            residual = builder.select(there, beside, WORD(0))

            def tiles(at: Value) -> list[Value]:
                operands = Tile(
                    x=step["x"],
                    x_offsets=builder.add(step["x_offsets"], at),
                    w=w,
                    runs=step["runs"],
                    groups=step["groups"],
                    run_stride=step["run_stride"],
                    later=w,  # WebAssembly cannot fetch ahead
                    later_step=WORD(0),
                    bias=builder.add(step["bias"], numbers),
                    m=builder.add(step["m"], numbers),
                    residual=residual,
                    y=builder.add(step["y"], values),
                    y_offsets=builder.add(step["y_offsets"], at),
                    scalars=scalars,
                )
                builder.call(tile, operands)
                return [builder.add(at, table)]

            loop(builder, rows, [builder.mul(top, table)], tiles)
            following = builder.add(column, WORD(kernel.columns))
            return [builder.add(w, step["panel_bytes"]), following]

        loop(builder, step["panels"], [step["w"], WORD(0)], panel)
        return [builder.add(top, step["block"])]

    blocks = builder.sdiv(
        builder.sub(builder.add(step["rows"], step["block"]), WORD(1)), step["block"]
    )
    loop(builder, blocks, [WORD(0)], block)


def compile_module(kernels: Mapping[str, Microkernel]) -> tuple[bytes, str]:
    """Make the object file of some layers' functions, and its assembly."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = "wasm32-unknown-unknown"
    for name, kernel in kernels.items():
        write_layer(module, name, kernel)
    features = sorted(set().union(*(kernel.isa.features for kernel in kernels.values())))
    target = binding.Target.from_triple(module.triple)
    machine = target.create_target_machine(
        cpu="mvp", features=",".join(f"+{feature}" for feature in features), opt=3
    )
    parsed = binding.parse_assembly(str(module))
    parsed.data_layout = str(machine.target_data)
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    return machine.emit_object(parsed), machine.emit_assembly(parsed)


def link(content: bytes, names: list[str]) -> bytes:
    """Turn an object file into a module that exports some functions, and imports its memory."""
    with tempfile.TemporaryDirectory() as folder:
        source, linked = Path(folder, "object.o"), Path(folder, "module.wasm")
        source.write_bytes(content)
        exports = [f"--export={name}" for name in names]
        options = ["--no-entry", "--import-memory", "--strip-all", *exports]
        command = [*LINKER, *options, str(source), "-o", str(linked)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise MiniresError(
                f"wasm-ld did not link ({run.stderr.strip()}); pip install ziglang has it"
            )
        return linked.read_bytes()


if __name__ == "__main__":
    for name, kernels in MODULES.items():
        code = link(compile_module(kernels)[0], list(kernels))
        (ENGINE / f"{name}.wasm").write_bytes(code)
        print(f"{name}.wasm: {len(code)} bytes, {', '.join(kernels)}")
