"""A GPU made of NumPy: what each kernel is to do with the memory that its arguments name.

The engine for GPUs is run on it, plan, packed weights, offsets, arguments and all, and its answers
are held to the definitions. What no NumPy can show, that the compiled kernels do the same, is shown
on a GPU by ``benchmarks/gpu.py``.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minires.kernels.cuda import driver, engine, launches
from minires.kernels.cuda.block import STEP
from minires.kernels.cuda.epilogue import ITEM
from minires.kernels.cuda.fragments import column_order
from minires.kernels.cuda.gemm import Arguments, Gemm
from minires.kernels.cuda.instructions import INSTRUCTIONS
from minires.kernels.cuda.operators import Format
from minires.reference import requantize_ref, round_bf16_ref, round_tf32_ref

GPU = driver.Gpu("GPU of NumPy", (9, 0), 132, os.getpid())
FACTORS = {"u8s8": (np.uint8, np.int8), "f16": (np.float16,) * 2, "bf16": (np.int16,) * 2}


class DeviceArray(np.ndarray):
    """An array that says where it lies, and is copied to and from."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"data": (self.ctypes.data, False)}

    def copy_to_device(self, source: Any, stream: Any = None) -> None:
        np.asarray(self)[...] = source

    def copy_to_host(self, stream: Any = None) -> Any:
        return np.array(self)


class Stream:
    handle = 0

    def synchronize(self) -> None:
        pass


class Event:
    """Events are one millisecond apart."""

    count = 0

    def record(self, _: Any = None) -> None:
        Event.count += 1
        self.at = Event.count

    def elapsed_time(self, other: "Event") -> float:
        return float(other.at - self.at)


class Graph:
    """What was recorded, to be run by one launch."""

    recording: "Graph | None" = None  # of those, the one that is being recorded

    def __init__(self) -> None:
        self.work: list[Any] = []

    def launch(self, stream: Any) -> None:
        assert Graph.recording is None
        for run in self.work:
            run()


@contextlib.contextmanager
def recording(stream: Any) -> Iterator[Graph]:
    """Record, in place of the driver."""
    Graph.recording = graph = Graph()
    try:
        yield graph
    finally:
        Graph.recording = None


def record_event(event: Event, stream: Any) -> None:
    assert Graph.recording
    Graph.recording.work.append(event.record)


class Kernel:
    """Stands for a compiled kernel: launched by ``kernel[grid, block, stream](*arguments)``."""

    def __init__(self, run: Any) -> None:
        self.run, self.launches = run, 0

    def __getitem__(self, configuration: Any) -> Any:
        grid = configuration[0]

        def launch(*arguments: Any) -> None:
            self.launches += 1
            if Graph.recording:
                Graph.recording.work.append(lambda: self.run(grid, *arguments))
            else:
                self.run(grid, *arguments)

        return launch


def memory(address: int, dtype: Any, count: int) -> Any:
    """View memory from an address on."""
    size = np.dtype(dtype).itemsize * count
    return np.frombuffer((ctypes.c_uint8 * size).from_address(int(address)), dtype)


def device_array(shape: Any, dtype: Any) -> DeviceArray:
    """Allocate memory, in which anything may lie."""
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xA5
    return array.view(DeviceArray)


def to_device(array: Any) -> DeviceArray:
    return np.array(array).view(DeviceArray)


def real(values: Any, form: str) -> Any:
    """Read 16-bit numbers as float32."""
    if form == "bf16":
        return (values.astype(np.int32) << 16).view(np.float32)
    return values.view(np.float16).astype(np.float32) if form == "f16" else values


def gemm(kernel: Gemm, grid: Any, *arguments: Any) -> None:
    """Multiply and finish, tile by tile: what `block` and `epilogue` are compiled to."""
    p = Arguments(*arguments)
    instruction = INSTRUCTIONS[kernel.instruction]
    of_x, of_w = FACTORS.get(instruction.operands, (np.float32, np.float32))
    steps = p.k_bytes // STEP
    assert kernel.tile.splits == (grid[2] > 1)
    if kernel.tile.splits:
        assert (grid[2] - 1) * p.steps_each < steps <= grid[2] * p.steps_each
    rows, columns = grid[1] * kernel.tile.rows, grid[0] * kernel.tile.columns
    offsets = memory(p.x_offsets, np.int32, rows).astype(np.int64)
    y_offsets = memory(p.y_offsets, np.int32, rows)
    runs = p.k_bytes // p.run
    assert (offsets % 16 == 0).all(), "16 bytes are copied at once"
    assert p.run_stride % 16 == 0
    assert p.run % STEP == 0
    at = offsets[:, None, None] + p.run_stride * np.arange(runs)[:, None] + np.arange(p.run)
    x = memory(p.x, np.uint8, int(at.max()) + 1)[at].reshape(rows, -1).view(of_x)
    w = memory(p.w, np.uint8, columns * p.k_bytes).reshape(columns, -1).view(of_w)
    place = np.argsort(column_order())  # of a column, in its slab
    slabs = np.arange(columns).reshape(-1, len(place))
    w = w[slabs[:, place].ravel()]
    if instruction.operands == "u8s8":
        # Exact in float64, and BLAS is quick.
        total = (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int32)
        t = total + memory(p.bias, np.int32, columns)
    else:
        form = instruction.operands
        t = real(x, form) @ real(w, form).T + memory(p.bias, np.float32, columns)
    size = ITEM[kernel.out]
    there = y_offsets >= 0
    into = y_offsets[there, None].astype(np.int64) + np.arange(columns)
    stored = {"u8": np.uint8, "f16": np.int16, "bf16": np.int16}.get(kernel.out, np.float32)
    y = memory(p.y, stored, int(into.max()) + 1)
    residual = memory(p.residual, stored, int(into.max()) + 1)[into] if kernel.residual else None
    y[into] = finish(kernel, p, t[there], residual, columns)
    assert y.itemsize == size


def finish(kernel: Gemm, p: Arguments, t: Any, residual: Any, columns: int) -> Any:
    """Do what a layer's definition does after its product."""
    if t.dtype == np.int32:
        m = memory(p.m, np.float32, columns)
        if kernel.out == "logits":
            return t.astype(np.float32) * m
        shortcut = None
        if residual is not None:
            steps = residual.astype(np.int32) - p.residual_zero_point
            shortcut = steps.astype(np.float32) * np.float32(p.m_residual)
        assert (p.low, p.high) == (-p.zero_point, 255 - p.zero_point)
        return requantize_ref(t, m, p.zero_point, shortcut)
    if residual is not None:
        t = t + real(residual, kernel.out)
    t = np.maximum(t, np.float32(p.low))
    return narrow(t, kernel.out)


def narrow(t: Any, out: str) -> Any:
    if out == "tf32":
        return round_tf32_ref(t)
    if out == "bf16":
        return (round_bf16_ref(t).view(np.int32) >> 16).astype(np.int16)
    return t.astype(np.float16).view(np.int16) if out == "f16" else t


def view(memory: Any, shape: Any, strides: Any) -> Any:
    """View pixels: (images, rows, columns, values), from strides in values."""
    first, *apart = strides
    flat = np.asarray(memory).ravel()[first:]
    return np.lib.stride_tricks.as_strided(
        flat, shape, [stride * flat.itemsize for stride in (*apart, 1)]
    )


def operators(form: Format) -> dict[str, Any]:
    """What the kernels of operators.py do."""

    def fill(grid: Any, y: Any, value: Any) -> None:
        y[...] = value

    def input_nhwc(grid: Any, x: Any, y: Any, strides: Any, scale: Any, zero_point: Any) -> None:
        nhwc = np.asarray(x).transpose(0, 2, 3, 1)
        if form.out == "u8":
            steps = np.clip(np.rint(nhwc / scale), -zero_point, 255 - zero_point)
            nhwc = (steps.astype(np.int32) + zero_point).astype(np.uint8)
        view(y, nhwc.shape, strides)[...] = narrow(nhwc, form.out)

    def maxpool(grid: Any, x: Any, y: Any, shape: Any, x_strides: Any, y_strides: Any) -> None:
        batch, height, width, words = shape
        stored = np.asarray(y).view(form.stored.name)
        count = 4 // stored.itemsize
        x_values, y_values = (
            view(array.view(form.stored.name), (batch, h, w, count * words),
                 [count * stride for stride in strides])
            for array, h, w, strides in (
                (x, 2 * height + 1, 2 * width + 1, x_strides), (y, height, width, y_strides))
        )  # fmt: skip
        taps = [
            x_values[:, i : i + 2 * height : 2, j : j + 2 * width : 2]
            for i in range(3) for j in range(3)
        ]  # fmt: skip
        y_values[...] = np.max(taps, axis=0)

    def avgpool(
        grid: Any,
        x: Any,
        y: Any,
        shape: Any,
        strides: Any,
        m: Any,
        x_zero_point: Any,
        zero_point: Any,
    ) -> None:
        pixels = view(x, shape, strides)
        if form.out == "u8":
            total = pixels.sum(axis=(1, 2), dtype=np.int32)
            acc = total - shape[1] * shape[2] * x_zero_point
            mean = requantize_ref(acc, m, zero_point)
        else:
            mean = narrow(real(pixels, form.out).mean(axis=(1, 2)), form.out)
        y[: mean.size] = mean.ravel()

    return {"fill": fill, "input": input_nhwc, "maxpool": maxpool, "avgpool": avgpool}


class Cuda:
    """What engine.py uses of `numba.cuda`."""

    stream, event = Stream, Event
    pinned_array = staticmethod(np.empty)
    device_array, to_device = staticmethod(device_array), staticmethod(to_device)

    @staticmethod
    def jit(_: Any) -> Any:
        return Kernel


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put NumPy in the GPU's place, until the test ends."""
    for module in (engine, launches):
        monkeypatch.setattr(module, "cuda", Cuda)
    monkeypatch.setattr(driver, "open_gpu", lambda: GPU)
    monkeypatch.setattr(launches, "gemm_function", lambda kernel: functools.partial(gemm, kernel))
    monkeypatch.setattr(
        launches,
        "operators",
        lambda form: {name: (run, None) for name, run in operators(form).items()},
    )
    monkeypatch.setattr(driver, "recording", recording)
    monkeypatch.setattr(driver, "record_event", record_event)
