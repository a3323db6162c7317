"""The GPU's rungs without a GPU: simulated where they can be, compiled and assembled all."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.kernels.cuda.fragments import SLAB, column_order
from minires.kernels.cuda.gemm import LARGE
from minires.ladder.climb import LAYER, problem
from minires.ladder.cuda import stages
from minires.ladder.cuda.climb import RUNGS, Rung
from minires.ladder.cuda.convolution import Convolution, Launch, convolution_of
from minires.layers import OPERATORS, Layer
from minires.reference import im2col_ref, requantize_ref
from tests.ptxas import NEW, OLD, compile_and_assemble

SIMULATED = ("loop", "tiles", "dp4a", "mma")
REGISTERS = 2**16  # of a multiprocessor


def ladder_layer(precision: str, batch: int = 1) -> Convolution:
    """Make the layer that is climbed, of few images."""
    layer, p, x = problem(precision, LAYER, (batch, 28, 28, 128))
    return convolution_of(layer, p, x)


def test_rungs_are_the_definition_in_the_simulator() -> None:
    """With small tiles, padding that is not zero, two strides, and rows that fill up a tile."""
    program = Path(__file__).with_name("simulate.py")
    root = Path(__file__).parents[3]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, str(program), *SIMULATED],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (run.returncode, run.stdout.split()) == (0, list(SIMULATED)), run.stderr


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_rows_and_runs_are_the_im2col_matrix(kernel: int, stride: int) -> None:
    layer = Layer("conv", "conv", ("input",), 4, 8, kernel, stride, kernel // 2)
    layer, p, x = problem("int8", layer, (2, 5, 7, 4))
    p = p._replace(x_qparams=p.x_qparams._replace(zero_point=9))
    conv = convolution_of(layer, p, x)
    M = int(np.prod(conv.shape[:3]))
    starts = conv.rows(64)
    assert len(starts) % 64 == 0
    assert np.all(starts[M:] == starts[M - 1])
    _, runs, values = conv.weight.shape
    offsets = conv.line * np.arange(runs)[:, None] + np.arange(values)
    a = conv.x.ravel()[starts[:M, None] + offsets.ravel()]
    assert np.array_equal(a, im2col_ref(x, kernel, kernel, stride, kernel // 2, 9))


@pytest.mark.usefixtures("on_host")
def test_stages_hands_the_engines_kernel_the_convolution() -> None:
    """What the kernel reads at its addresses, and writes where it is told, multiplied in NumPy."""
    layer = Layer("conv", "conv", ("input",), 64, 128, 3, 2, 1, relu=True)
    layer, p, x = problem("int8", layer, (2, 9, 8, 64))
    p = p._replace(x_qparams=p.x_qparams._replace(zero_point=77))
    expected = OPERATORS["int8"]["conv"](layer, p, x)
    conv = convolution_of(layer, p, x)
    launch = stages.prepare(conv)
    given: Any = launch.arguments
    x_padded, x_offsets, w, y_offsets, bias, m = launch.keeps
    addresses = [array.ctypes.data for array in (*launch.keeps, launch.y)]
    assert addresses == [
        given.x,
        given.x_offsets,
        given.w,
        given.y_offsets,
        given.bias,
        given.m,
        given.y,
    ]
    runs = np.arange(given.k_bytes // given.run)
    k = (given.run_stride * runs[:, None] + np.arange(given.run)).ravel()
    a = np.asarray(x_padded)[x_offsets[:, None] + k].astype(np.int32)
    product = a @ w.reshape(-1, given.k_bytes).T.astype(np.int32)
    acc = np.empty((len(a), len(bias) // SLAB, SLAB), np.int32)
    acc[..., column_order()] = product.reshape(acc.shape)
    y = requantize_ref(acc.reshape(len(a), -1) + bias, m, given.zero_point)
    written = np.zeros(launch.y.size, np.uint8)
    for row, offset in zip(y, y_offsets, strict=True):
        if offset >= 0:
            written[offset : offset + len(row)] = row
    assert np.array_equal(written[: expected.size].reshape(expected.shape), expected)
    assert launch.grid == (128 // LARGE.columns, len(a) // LARGE.rows, 1)
    assert (given.low, given.high) == (0, 255)


def launch_on_host(rung: Rung) -> Launch:
    return rung.prepare(ladder_layer(rung.precision))


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_the_grid_covers_the_output(rung: Rung) -> None:
    launch = launch_on_host(rung)
    M, N = launch.y.shape
    assert M >= 28 * 28
    assert N == 128
    blocks, threads = (np.prod(sizes, dtype=int) for sizes in (launch.grid, launch.block))
    outputs = M * N / (blocks * threads)  # of a thread
    assert outputs == (1 if rung.name == "loop" else 64)


# What a rung's PTX has to have, and how much of it at least.
WANTED = {
    "loop": {"fma.rn.f32": 1},
    "tiles": {"fma.rn.f32": 64, "bar.sync": 2, "ld.shared.": 16},
    "dp4a": {"dp4a.u32.s32": 64, "bar.sync": 2, "ld.shared.": 16, "cvt.rni.s32.f32": 64},
    "mma": {"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32": 16, "ld.shared.": 24},
    "stages": {
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32": 32,
        "ldmatrix.sync.aligned.m8n8.x4": 12,
        "cp.async.cg.shared.global": 8,
    },
}


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("capability", [OLD, NEW], ids=str)
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_rungs_assemble_without_spills(
    rung: Rung, capability: tuple[int, int], tmp_path: Path
) -> None:
    launch = launch_on_host(rung)
    function, signature, options = launch.kernel
    found = compile_and_assemble(function, signature, capability, tmp_path, **options)
    for text, least in WANTED[rung.name].items():
        assert len(re.findall(re.escape(text), found.ptx)) >= least, text
    assert rung.instruction.mnemonic in found.ptx
    assert found.spilled == 0
    assert ".local" not in found.ptx, "a thread's sums are not in registers"
    if rung.name != "loop":
        # Nothing but tiles is loaded often: two for 8 x 8 products, or a fragment for more.
        assert ("ldmatrix" if rung.name == "stages" else "st.shared") in found.ptx
        threads = int(np.prod(launch.block))
        assert 2 * threads * found.registers <= REGISTERS, "two blocks share a multiprocessor"
