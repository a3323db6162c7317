"""Runs rungs of the GPU's ladder in numba-cuda's simulator, each thread as a thread of Python.

It is a program of its own, since Numba asks for its simulator when it is imported. Inline PTX does
not run there, so `dp4a`, `mma` and `requantize` are written in NumPy: `mma` puts the fragments of a
warp's lanes together, as `fragments.py` says, and multiplies.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"

import importlib
import sys
import threading
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from minires.kernels.cuda.fragments import a_places, b_places, sum_places
from minires.ladder.climb import check, problem
from minires.ladder.cuda.convolution import convolution_of
from minires.layers import OPERATORS, Array, Layer

LANES = 32
fragments: dict[int, tuple[Any, Any]] = {}  # of A and of B, by the thread


def dp4a(total: Any, a: Any, b: Any) -> Any:
    of_a, of_b = (np.array([word], np.int32) for word in (a, b))
    return np.int32(total + of_a.view(np.uint8).astype(np.int32) @ of_b.view(np.int8))


def requantize(total: Any, m: Any, zero_point: Any) -> Any:
    t = np.clip(np.float32(total) * m, -zero_point, 255 - zero_point)
    return np.uint8(np.rint(t) + zero_point)


def mma(sums: Any, a: Any, b: Any) -> Any:
    me: Any = threading.current_thread()  # the simulator's
    fragments[me.threadIdx.x] = a, b
    me.syncthreads()
    warp, lane = divmod(me.threadIdx.x, LANES)
    lanes = [fragments[LANES * warp + i] for i in range(LANES)]
    whole_a = _whole(16, a_places, np.array([a for a, _ in lanes], np.int32).view(np.uint8))
    whole_b = _whole(8, b_places, np.array([b for _, b in lanes], np.int32).view(np.int8))
    product = whole_a @ whole_b.T
    mine = [tuple(place[lane] for place in sum_places(number)) for number in range(4)]
    me.syncthreads()  # before anyone puts the next fragments there
    return tuple(np.int32(total + product[at]) for total, at in zip(sums, mine, strict=True))


def _whole(rows: int, places: Any, parts: Array) -> Array:
    """Put a matrix of some rows by 32 bytes together, of four bytes from each lane's words."""
    whole = np.zeros((rows, 32), np.int32)
    for number in range(parts.shape[1] // 4):
        row, first = places(number)
        whole[row[:, None], first[:, None] + np.arange(4)] = parts[:, 4 * number :][:, :4]
    return whole


words: Any = ModuleType("minires.ladder.cuda.words")
words.dp4a, words.mma, words.requantize = dp4a, mma, requantize
sys.modules[words.__name__] = words

# By the rung, a small tile, and a layer: channels, kernel, stride, and the input's size.
CASES: dict[str, tuple[tuple[Any, ...], str, tuple[int, ...], tuple[int, ...]]] = {
    "loop": ((), "fp32", (3, 5, 3, 2), (2, 5, 3)),
    "tiles": ((4, 2), "fp32", (8, 16, 3, 1), (2, 2, 3)),
    "dp4a": ((4, 2), "int8", (32, 8, 3, 2), (1, 5, 6)),
    "mma": (((2, 1), 1, 2), "int8", (64, 16, 3, 1), (1, 2, 9)),
}


def simulate(name: str) -> None:
    """Compute a convolution by a rung, and compare it with its definition."""
    tile, precision, (in_c, out_c, kernel, stride), size = CASES[name]
    rung = importlib.import_module(f"minires.ladder.cuda.{name}")
    layer = Layer("conv", "conv", ("input",), in_c, out_c, kernel, stride, kernel // 2, relu=True)
    layer, p, x = problem(precision, layer, (*size, in_c))
    if precision == "int8":  # so that padding is not zero; nor is the output's zero point
        assert layer.qparams
        p = p._replace(x_qparams=p.x_qparams._replace(zero_point=77))
        layer = replace(layer, qparams=layer.qparams._replace(zero_point=100))
    expected = OPERATORS[precision]["conv"](layer, p, x)
    assert len(np.unique(expected)) > 10
    y = rung.prepare(convolution_of(layer, p, x), *tile).answer(expected.shape)
    if precision == "fp32":  # much nearer than a ladder's check asks for
        assert np.abs(y - expected).max() < 1e-4
    check(y, expected, layer, precision)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        simulate(name)
        print(name)
