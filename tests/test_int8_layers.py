"""What INT8 layers compute: against exact integers, and simulated against real INT8."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from minires.layers import OPERATORS, Int8Params, Layer
from minires.model import ResNet50, Step
from minires.preprocess import IMAGENET_V1, preprocess
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from minires.reference import QParams, dequantize_ref, im2col_ref, quantize_ref, requantize_ref
from tests.comparing import EPS, assert_close, assert_same
from tests.int8_oracle import ConvCase, conv_cases, exact_sums, requantize_exact
from tests.seeded_weights import seeded_input, seeded_state_dict, uniform

INT8 = OPERATORS["int8"]

Array = npt.NDArray[Any]


# Against exact integers


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_conv_is_the_integers_convolution(case: ConvCase) -> None:
    """By integers alone: the sums, the bias and the rounding."""
    sums = exact_sums(case.x, case.x_qparams.zero_point, case.weight, case.stride, case.padding)
    acc = sums + case.bias  # (batch, out_h, out_w, out_c)
    assert np.abs(acc).max() < 2**31
    m = case.x_qparams.scale * case.w_scale / case.y_qparams.scale
    columns = [requantize_exact(acc[..., c], m[c], case.y_qparams.zero_point)
               for c in range(len(m))]  # fmt: skip
    assert_same(INT8["conv"](case.layer, case.params, case.x), np.stack(columns, axis=-1))


@given(conv_cases())
@settings(derandomize=True, deadline=None, max_examples=50)
def test_conv_with_a_residual_rounds_once(case: ConvCase) -> None:
    """conv3 of a block: the residual has a scale and a zero point of its own."""
    sums = exact_sums(case.x, case.x_qparams.zero_point, case.weight, case.stride, case.padding)
    residual = np.random.RandomState(case.x.sum()).randint(0, 256, sums.shape).astype(np.uint8)
    r_qparams = QParams(case.y_qparams.scale * np.float32(0.7), 77)
    m = case.x_qparams.scale * case.w_scale / case.y_qparams.scale
    steps = (residual.astype(np.int32) - 77).astype(np.float32)
    shortcut = steps * (r_qparams.scale / case.y_qparams.scale)
    acc = (sums + case.bias).astype(np.int32)
    expected = requantize_ref(acc, m, case.y_qparams.zero_point, shortcut)
    params = case.params._replace(residual_qparams=r_qparams)
    before = residual.copy()
    assert_same(INT8["conv"](case.layer, params, case.x, residual), expected)
    assert_same(residual, before)


@given(conv_cases(linear=True))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_linear_dequantizes_the_exact_sums(case: ConvCase) -> None:
    acc = exact_sums(case.x, case.x_qparams.zero_point, case.weight, 1, 0)[:, 0, 0] + case.bias
    layer = Layer("fc", "linear", ("x",), case.weight.shape[-1], len(case.weight))
    logits = INT8["linear"](layer, case.params, case.x[:, 0, 0])
    scale = case.x_qparams.scale.astype(np.float64) * case.w_scale
    assert_close(logits, acc * scale, 2 * EPS * np.abs(acc * scale))


@pytest.mark.parametrize("zero_points", [(0, 0), (3, 250), (255, 128), (128, 0)])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5)])
def test_avgpool_rounds_the_exact_mean(zero_points: tuple[int, int], size: tuple[int, int]) -> None:
    x = np.random.RandomState(0).randint(0, 256, (3, *size, 300)).astype(np.uint8)
    x_qparams = QParams(np.float32(0.05), zero_points[0])
    y_qparams = QParams(np.float32(0.03), zero_points[1])
    layer = Layer("avgpool", "avgpool", ("x",), 300, 300, qparams=y_qparams)
    acc = x.sum(axis=(1, 2), dtype=np.int64) - size[0] * size[1] * zero_points[0]
    m = x_qparams.scale / (y_qparams.scale * np.float32(size[0] * size[1]))
    y = INT8["avgpool"](layer, x_qparams, x)
    assert_same(y, requantize_exact(acc, m, zero_points[1]))
    mean = acc * (np.float64(x_qparams.scale) / (np.float64(y_qparams.scale) * size[0] * size[1]))
    real = np.clip(mean, -zero_points[1], 255 - zero_points[1]) + zero_points[1]
    assert np.abs(y - real).max() <= 0.5 + 255 * 4 * EPS


def test_input_is_quantized_in_nhwc() -> None:
    x = uniform(-3, 3, (2, 3, 5, 4), 0)
    layer = Layer("input", "input", (), 3, 3, qparams=QParams(np.float32(0.02), 114))
    y = INT8["input"](layer, None, x)
    expected = np.clip(np.rint(x / np.float32(0.02)) + 114, 0, 255).astype(np.uint8)
    assert_same(y, np.ascontiguousarray(expected.transpose(0, 2, 3, 1)))
    assert set(np.unique(y)) >= {0, 255}  # it saturates on both sides


def test_padding_stands_for_zero() -> None:
    """A 3x3 kernel of ones over zeros: the border, padded with the zero point, is zero too."""
    x = np.full((1, 4, 4, 1), 99, np.uint8)
    params = Int8Params(QParams(np.float32(1), 99), np.ones((1, 9), np.int8),
                        np.ones(1, np.float32), np.array([-99 * 9], np.int32))  # fmt: skip
    layer = Layer("c", "conv", ("x",), 1, 1, 3, 1, 1, qparams=QParams(np.float32(1), 7))
    assert_same(INT8["conv"](layer, params, x), np.full((1, 4, 4, 1), 7, np.uint8))


def test_dequantized_parameters_are_the_real_numbers_meant() -> None:
    w_s8 = np.random.RandomState(1).randint(-128, 128, (6, 40)).astype(np.int8)
    w_scale, x = uniform(0.001, 0.1, (6,), 2), QParams(np.float32(0.013), 201)
    bias = np.random.RandomState(3).randint(-(2**30), 2**30, 6)
    fold = x.zero_point * w_s8.sum(axis=1, dtype=np.int64)
    real = Int8Params(x, w_s8, w_scale, (bias - fold).astype(np.int32)).dequantize()
    assert_close(real.weight, w_s8 * w_scale[:, np.newaxis].astype(np.float64),
                 EPS * np.abs(real.weight))  # fmt: skip
    expected = bias * (np.float64(x.scale) * w_scale)
    assert_close(real.bias, expected, EPS * np.abs(expected))


# Simulated against real


@pytest.fixture(scope="module")
def seeded_int8() -> ResNet50:
    model = ResNet50.from_state_dict(seeded_state_dict())
    return quantize_model(model, calibrate(model, [seeded_input((2, 3, 64, 64))], "percentile"))


def exact_output(step: Step, p: Any, signed: bool) -> Array:
    """Compute what a layer stands for, in float64 from its integers, before it is rounded.

    Parameters
    ----------
    step : Step
        Of the INT8 network.
    p : Int8Params or QParams
        The layer's parameters.
    signed : bool
        False sums magnitudes instead, for the error bound.
    """
    layer, x = step.layer, step.inputs[0].astype(np.float64)
    plain = (lambda a: a) if signed else np.abs
    if layer.op == "avgpool":
        return p.scale * plain(x - p.zero_point).mean(axis=(1, 2))
    steps = plain(x - p.x_qparams.zero_point)
    if layer.op == "conv":
        steps = im2col_ref(steps, layer.kernel, layer.kernel, layer.stride, layer.padding)
    bias = p.bias_s32 + p.x_qparams.zero_point * p.w_s8.sum(axis=1, dtype=np.int64)
    unit = np.float64(p.x_qparams.scale) * p.w_scale
    y = (steps @ plain(p.w_s8.astype(np.float64)).T + plain(bias)) * unit  # (M, N)
    if p.residual_qparams is not None:
        residual = step.inputs[1].reshape(y.shape) - np.float64(p.residual_qparams.zero_point)
        y += plain(residual * np.float64(p.residual_qparams.scale))
    return y.reshape(step.output.shape)


def products(layer: Layer, x: Array) -> int:
    """Count the terms of one output's sum."""
    return x.shape[1] * x.shape[2] if layer.op == "avgpool" else layer.kernel**2 * layer.in_c


def compare_layers(model: ResNet50, x: Array) -> Iterator[tuple[str, int, int]]:
    """Give every layer of the INT8 network's walk to both precisions, on the same quantized input.

    Yields
    ------
    name, different, size : str, int, int
        How many of a layer's values are a step apart.
    """
    qparams = {layer.name: layer.qparams for layer in model.layers}
    for step in model.steps(x):
        layer, p = step.layer, model.params.get(step.name)
        edges = zip(step.inputs, layer.inputs, strict=False)  # the input layer reads no edge
        inputs = [dequantize_ref(q, *qparams[name]) for q, name in edges] or [x]
        y = OPERATORS["int8-simulated"][layer.op](layer, p, *inputs)
        if layer.op in ("input", "maxpool"):  # nothing is computed: not a bit may differ
            assert_same(y, dequantize_ref(step.output, *layer.qparams))
            continue
        exact, magnitude = (exact_output(step, p, signed) for signed in (True, False))
        K = products(layer, step.inputs[0])
        # One float32 sum of K products (Higham, section 3.1: K * eps / 2 to first order; the real
        # one is exact), and a few roundings more: of the two scales, the bias, the residual.
        bound = (K / 2 + 8) * EPS * magnitude
        if layer.op == "linear":
            assert_close(y, step.output.astype(np.float64), bound)
            continue
        scale, zero_point = layer.qparams
        steps = quantize_ref(y, scale, zero_point)
        assert_same(dequantize_ref(steps, scale, zero_point), y)  # it holds eight bits
        apart = np.abs(steps.astype(int) - step.output)
        assert apart.max() <= 1, f"{step.name}: {apart.max()} steps apart"
        t = exact / np.float64(scale)
        from_tie = np.abs(t - np.floor(t) - 0.5)  # at most 0.5: a bound beyond that says nothing
        telling = bound < 0.5 * np.float64(scale)
        assert telling.mean() >= 0.85, f"{step.name}: the bound tells of {telling.mean():.0%} only"
        unexplained = (apart > 0) & ~(from_tie <= bound / np.float64(scale))
        assert not unexplained.any(), (
            f"{step.name}: {np.count_nonzero(apart)} of {apart.size} values differ, "
            f"{np.count_nonzero(unexplained)} of them where the exact value is not at a tie, "
            f"up to {from_tie[unexplained].max():.3g} steps from it"
        )
        yield step.name, int(np.count_nonzero(apart)), apart.size


def check_simulated(model: ResNet50, x: Array) -> None:
    rows = list(compare_layers(model, x))
    assert len(rows) == 53 + 1  # convolutions and the average pool
    different, size = (sum(row[i] for row in rows) for i in (1, 2))
    worst = max(rows, key=lambda row: row[1] / row[2])
    share = different / size
    text = f"{different} of {size} values differ by a step ({share:.2e}), most in {worst}"
    print(text)
    # A bound that let everything pass as a tie would not do: few values are at ties.
    assert share <= 1e-3, text
    assert worst[1] <= max(2, 5e-3 * worst[2]), text


def test_simulated_and_real_differ_at_ties_alone(seeded_int8: ResNet50) -> None:
    check_simulated(seeded_int8, seeded_input((1, 3, 64, 64), 1))


def test_simulated_and_real_with_real_weights(
    test_data: Path, real_state_dict: dict[str, Array]
) -> None:
    model = ResNet50.from_state_dict(real_state_dict)
    x = preprocess(test_data / "images" / "chelsea.png", IMAGENET_V1)
    int8 = quantize_model(model, calibrate(model, [x], "minmax"))
    check_simulated(int8, x)


@pytest.mark.parametrize("name", ["layer1.0.conv2", "layer4.2.conv2"])
def test_the_check_sees_a_value_that_is_off_by_a_step(seeded_int8: ResNet50, name: str) -> None:
    """A hook that shifts one value of one layer by one step."""

    def shift(layer: Layer, inputs: tuple[Array, ...], y: Array) -> Array:
        shifted = y.copy()
        inside = np.argwhere((y > 5) & (y < 250))
        for index in map(tuple, inside[:20]):  # not all of them can lie at ties
            shifted[index] += 1
        return shifted

    with (
        seeded_int8[name].register_forward_hook(shift),
        pytest.raises(AssertionError, match=rf"{re.escape(name)}: .* not at a tie"),
    ):
        check_simulated(seeded_int8, seeded_input((1, 3, 64, 64), 1))
