import numpy as np
import pytest

from minires.layers import OPERATORS, FloatParams, Layer
from tests import scipy_oracle
from tests.comparing import Array, assert_close, assert_same, gemm_bound
from tests.seeded_weights import uniform

FP32 = OPERATORS["fp32"]


def conv_layer(kernel: int, stride: int, relu: bool) -> Layer:
    return Layer("conv", "conv", ("x",), 8, 5, kernel, stride, kernel // 2, "bn", relu)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("in_h", "in_w"), [(6, 6), (7, 4), (1, 1)])
def test_conv_with_its_epilogue(
    kernel: int, stride: int, relu: bool, with_residual: bool, in_h: int, in_w: int
) -> None:
    layer = conv_layer(kernel, stride, relu)
    x = uniform(-1, 1, (2, in_h, in_w, 8), 0)
    weight, bias = uniform(-1, 1, (5, kernel, kernel, 8), 1), uniform(-1, 1, (5,), 2)
    shape = layer.output_shape(x.shape)
    residual = uniform(-1, 1, shape, 3) if with_residual else np.zeros(shape, np.float32)
    sums = scipy_oracle.convolve(x, weight, stride, kernel // 2) + bias + residual
    expected = np.maximum(sums, 0) if relu else sums
    assert (sums < 0).any()
    magnitude = scipy_oracle.convolve(np.abs(x), np.abs(weight), stride, kernel // 2)
    magnitude += np.abs(bias) + np.abs(residual)

    inputs = (x, residual) if with_residual else (x,)
    before = [array.copy() for array in inputs]
    y = FP32["conv"](layer, FloatParams(weight.reshape(5, -1), bias), *inputs)
    assert_close(y, expected, gemm_bound(kernel**2 * 8, magnitude))
    for array, copy in zip(inputs, before, strict=True):
        assert_same(array, copy)


def test_input_turns_nchw_into_nhwc() -> None:
    x = uniform(-1, 1, (2, 3, 5, 4), 0)
    y = FP32["input"](Layer("input", "input", (), 3, 3), None, x)
    assert y.flags.c_contiguous
    assert y.shape == (2, 5, 4, 3)
    assert all(y[n, h, w, c] == x[n, c, h, w] for n, c, h, w in np.ndindex(*x.shape))


def test_linear_is_a_product_and_a_bias() -> None:
    x, weight, bias = (
        uniform(-1, 1, (3, 40), 0),
        uniform(-1, 1, (7, 40), 1),
        uniform(-1, 1, (7,), 2),
    )
    y = FP32["linear"](Layer("fc", "linear", ("x",), 40, 7), FloatParams(weight, bias), x)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weight.T) + np.abs(bias)
    assert_close(y, x.astype(np.float64) @ weight.T + bias, gemm_bound(40, magnitude))


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        (conv_layer(7, 2, True), (2, 224, 224, 8), (2, 112, 112, 5)),
        (conv_layer(3, 2, True), (1, 13, 7, 8), (1, 7, 4, 5)),
        (conv_layer(1, 1, True), (1, 1, 1, 8), (1, 1, 1, 5)),
        (Layer("p", "maxpool", ("x",), 8, 8, 3, 2, 1), (3, 5, 8, 8), (3, 3, 4, 8)),
        (Layer("p", "avgpool", ("x",), 8, 8), (3, 5, 8, 8), (3, 8)),
        (Layer("fc", "linear", ("x",), 8, 5), (3, 8), (3, 5)),
        (Layer("relu", "relu", ("x",), 8, 8), (3, 5, 8, 8), (3, 5, 8, 8)),
    ],
)
def test_output_shape(layer: Layer, x: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert layer.output_shape(x) == expected


def test_macs_and_parameters_are_counted() -> None:
    conv = conv_layer(3, 1, True)  # 8 channels to 5
    assert conv.macs((2, 4, 6, 5)) == 2 * 4 * 6 * 5 * 9 * 8
    assert conv.parameters == 5 * 9 * 8 + 2 * 5  # gamma and beta
    linear = Layer("fc", "linear", ("x",), 8, 5)
    assert linear.macs((3, 5)) == 3 * 5 * 8
    assert linear.parameters == 8 * 5 + 5
    pool = Layer("p", "maxpool", ("x",), 8, 8, 3, 2, 1)
    assert (pool.macs((1, 2, 2, 8)), pool.parameters) == (0, 0)


def test_a_handle_removes_its_own_hook_alone() -> None:
    layer = conv_layer(1, 1, True)

    def first(layer: Layer, inputs: tuple[Array, ...], y: Array) -> None: ...
    def second(layer: Layer, inputs: tuple[Array, ...], y: Array) -> None: ...

    handle = layer.register_forward_hook(first)
    layer.register_forward_hook(second)
    handle.remove()
    handle.remove()
    assert [handle.hook for handle in layer.hooks] == [second]
    with layer.register_forward_hook(first):
        assert [handle.hook for handle in layer.hooks] == [second, first]
    assert [handle.hook for handle in layer.hooks] == [second]


def test_a_hook_registered_twice_is_removed_once() -> None:
    layer = conv_layer(1, 1, True)

    def hook(layer: Layer, inputs: tuple[Array, ...], y: Array) -> None: ...

    once, twice = layer.register_forward_hook(hook), layer.register_forward_hook(hook)
    once.remove()
    once.remove()
    assert layer.hooks == [twice]


def test_a_with_statement_removes_its_hook_after_an_error() -> None:
    layer = conv_layer(1, 1, True)
    with pytest.raises(ZeroDivisionError), layer.register_forward_hook(lambda *_: None):
        raise ZeroDivisionError
    assert layer.hooks == []
