"""Rungs one by one: sizes, threads and tiles that the ladder itself does not ask of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minires.kernels.isa.generic import GENERIC
from minires.ladder import blocks, fused, implicit, loops, ordered, panels, threads, tiled
from minires.ladder.climb import problem, vector_isa
from minires.ladder.product import Product, product_of
from minires.layers import OPERATORS, Layer

Array = npt.NDArray[Any]


def small(relu: bool = False, shape: tuple[int, ...] = (2, 7, 5, 6)) -> tuple[Any, ...]:
    layer = Layer("conv", "conv", ("input",), 6, 37, 3, 1, 1, relu=relu)
    return problem("int8", layer, shape)


def product(layer: Layer, p: Any, count: int = 1) -> Product:
    return product_of(layer, p, "int8", vector_isa("u8s8"), count)


@pytest.mark.parametrize("prepare", [loops.prepare, ordered.prepare, tiled.prepare])
@pytest.mark.parametrize("M", [1, 3, 4, 9])
def test_sums_are_those_of_integers(prepare: Callable[..., Any], M: int) -> None:
    layer, p, _ = small()
    a = np.random.default_rng(M).integers(0, 256, (M, 54), dtype=np.uint8)
    c = prepare(product(layer, p))(a)
    assert c.dtype == np.int32
    assert np.array_equal(c, a.astype(np.int32) @ p.w_s8.T.astype(np.int32))


@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("M", [1, 2, 7, 10])
def test_a_tile_may_have_any_size(tile: tuple[int, int], M: int) -> None:
    layer, p, _ = small()
    a = np.random.default_rng(M).integers(0, 256, (M, 54), dtype=np.uint8)
    instruction = GENERIC.instructions["u8s8"]
    c = panels.prepare(product(layer, p), instruction, tile)(a)
    assert np.array_equal(c, a.astype(np.int32) @ p.w_s8.T.astype(np.int32))


@pytest.mark.parametrize("prepare", [fused.prepare, blocks.prepare])
@pytest.mark.parametrize("relu", [False, True])
def test_the_epilogue_is_the_definitions(prepare: Callable[..., Any], relu: bool) -> None:
    layer, p, _ = small(relu)
    x = np.random.default_rng(1).integers(0, 256, (1, 1, 9, 6), dtype=np.uint8)
    layer = Layer("conv", "conv", ("input",), 6, 37, relu=relu, qparams=layer.qparams)
    p = p._replace(w_s8=np.ascontiguousarray(p.w_s8[:, :6]))
    expected = OPERATORS["int8"]["conv"](layer, p, x)
    assert expected.any()
    assert np.array_equal(prepare(product(layer, p))(x.reshape(9, 6)), expected.reshape(9, 37))


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_any_number_of_threads_gives_the_same(count: int) -> None:
    """More than there are rows, too: then some have nothing to do."""
    layer, p, x = small()
    expected = OPERATORS["int8"]["conv"](layer, p, x)
    assert np.array_equal(implicit.prepare(product(layer, p, count))(x), expected)
    a = np.random.default_rng(1).integers(0, 256, (9, 54), dtype=np.uint8)
    one = fused.prepare(product(layer, p))(a)
    assert np.array_equal(threads.prepare(product(layer, p, count))(a), one)


def test_padding_is_the_zero_point_and_stays_so() -> None:
    """Inputs of two shapes take turns, and a result is nobody else's memory."""
    layer, p, x = small()
    p = p._replace(x_qparams=p.x_qparams._replace(zero_point=77))
    other = x[:1, :4, :4]
    convolve = implicit.prepare(product(layer, p))
    first, second = convolve(x), convolve(other)
    convolve(255 - x)
    assert np.array_equal(first, OPERATORS["int8"]["conv"](layer, p, x))
    assert np.array_equal(second, OPERATORS["int8"]["conv"](layer, p, other))
