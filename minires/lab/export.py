"""What Python gives the page: a network's plan and facts as JSON, its weights, and an example.

The page finds everything beside itself in ``weights/``:

- ``int8.json`` and ``fp32.json``: the plan for the size of image that the network wants, with the
  network's layers, categories and preset
- ``int8.safetensors`` and ``fp32.safetensors``: the weights, the second as torchvision has them
- ``example.rgb``: an image as the network is given it, in bytes

A network that comes in INT8 alone has no ``fp32`` files.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from minires import api, checkpoint, download
from minires.images import ImageSource, open_image
from minires.kernels.isa.instruction import PER_GROUP
from minires.kernels.isa.wasm import WASM
from minires.kernels.plan import Buffer, Division, Gemm, Place, Plan, Step, Tiling, lay_out
from minires.layers import Array
from minires.model import ResNet50
from minires.preprocess import resize_and_crop
from minires.quantize import save_int8
from minires.quantize.int8_file import is_int8_file

OPERANDS = {"int8": "u8s8", "fp32": "f32"}


def export_network(
    weights: str | download.Weights = download.FALLBACK,
    image: ImageSource | None = None,
    **own: Any,
) -> dict[str, bytes]:
    """Make a network's files, by name; without an image the example is the cat.

    `own` are the categories and the preset that `minires.resnet50` takes.
    """
    path, _ = download.resolve(weights)
    int8 = api.resnet50(weights, "int8", "numpy", **own)
    with open_image(find_cat() if image is None else image) as decoded:
        pixels = resize_and_crop(decoded, int8.meta["preset"])
    files = {"example.rgb": pixels.tobytes()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "int8.safetensors")
        save_int8(int8, file)
        files[file.name] = file.read_bytes()
    if not is_int8_file(path):
        fp32 = api.resnet50(weights, "fp32", "numpy", **own)
        state = checkpoint.read_checkpoint(path)
        tensors = {name: np.ascontiguousarray(value) for name, value in state.items()}
        files |= {"fp32.json": _plan_text(fp32), "fp32.safetensors": save(tensors)}
    # The page reads this before the reader fetches anything large.
    sizes = {p: len(files[f"{p}.safetensors"]) for p in OPERANDS if f"{p}.safetensors" in files}
    return files | {"int8.json": _plan_text(int8, sizes=sizes)}


def find_cat() -> Path:
    """Find the cat: in the installed package, or among the examples of a checkout."""
    installed = Path(__file__).with_name("cat.jpg")
    return (
        installed if installed.exists() else Path(__file__).parents[2] / "examples/images/cat.jpg"
    )


def _plan_text(model: ResNet50, **more: Any) -> bytes:
    return json.dumps(describe(model) | more, separators=(",", ":")).encode()


def plan_for(model: ResNet50, size: int | None = None) -> Plan:
    """Lay a network out for one square image, as the microkernels of WebAssembly want it."""
    operands = OPERANDS[model.precision]
    rows, vectors = WASM.tiles[operands]
    quantized = model.precision == "int8"
    tiling = Tiling(
        item=1 if quantized else 4,
        group=PER_GROUP[operands],
        quantized=quantized,
        rows=rows,
        columns=vectors * WASM.lanes,
    )
    side = size or model.meta["preset"].side
    return lay_out(model.layers, (1, 3, side, side), tiling, Division(0, 1, 1))


def describe(model: ResNet50, size: int | None = None) -> dict[str, Any]:
    """Describe a network and its plan, in what JSON can hold."""
    plan = plan_for(model, size)
    return {
        "precision": model.precision,
        "name": model.meta["name"],
        "categories": list(model.meta["categories"]),
        "preset": asdict(model.meta["preset"]),
        "size": plan.shape[2],
        "tiling": {name: getattr(plan.tiling, name) for name in ("item", "group", "columns")},
        "buffers": [_buffer(buffer) for buffer in plan.buffers],
        "steps": [_step(step) for step in plan.steps],
    }


def _buffer(buffer: Buffer) -> dict[str, Any]:
    return {
        "values": math.prod(buffer.shape) + buffer.spare,
        "fill": buffer.fill,
        "pad": buffer.pad,
    }


def _step(step: Step) -> dict[str, Any]:
    layer = step.layer
    told = {name: getattr(layer, name) for name in ("name", "op", "inputs", "kernel", "stride")}
    told |= {"padding": layer.padding, "relu": layer.relu}
    told |= {"inChannels": layer.in_c, "outChannels": layer.out_c}
    told |= {"inHeight": step.in_h, "inWidth": step.in_w, "height": step.out_h}
    told |= {"width": step.out_w, "channels": step.channels, "xRow": step.x_row}
    told |= {"yRow": step.y_row, "gemm": _gemm(step.gemm) if step.gemm else None}
    return told | {name: _place(getattr(step, name)) for name in ("x", "y", "residual")}


def _place(place: Place | None) -> dict[str, int] | None:
    return place._asdict() if place else None


def _gemm(gemm: Gemm) -> dict[str, Any]:
    return {
        "xOffsets": in_runs(gemm.x_offsets),
        "yOffsets": in_runs(gemm.y_offsets),
        "rows": gemm.rows,
        "block": gemm.block,
        "panels": gemm.panels,
        "panelBytes": gemm.panel_bytes,
        "runs": gemm.runs,
        "groups": gemm.groups,
        "runStride": gemm.run_stride,
    }


def in_runs(offsets: Array) -> list[Sequence[int]]:
    """Shorten a table of offsets: runs of equal distances, each (first, distance, how many)."""
    runs: list[Sequence[int]] = []
    at = 0
    apart = np.append(np.diff(offsets), 0)
    while at < len(offsets):
        changes = np.flatnonzero(apart[at : len(offsets) - 1] != apart[at])
        end = at + int(changes[0]) + 1 if len(changes) else len(offsets)
        runs.append((int(offsets[at]), int(apart[at]), end - at))
        at = end
    return runs
