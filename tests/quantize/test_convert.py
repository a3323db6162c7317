from pathlib import Path

import numpy as np
import pytest

from minires.api import make_cuda_engine
from minires.errors import MiniresError
from minires.layers import OPERATORS, FloatParams, Int8Params
from minires.model import ResNet50
from minires.quantize.calibrate import Calibration, calibrate
from minires.quantize.convert import BIAS_LIMIT, quantize_model, quantize_weights
from minires.quantize.int8_file import load_int8, save_int8
from minires.quantize.moments import Moments
from minires.quantize.observers import qparams_of_range
from minires.quantize.report import logit_noise
from minires.quantize.rounding import ROUNDINGS, round_nearest
from minires.reference import QParams, dequantize_ref, quantize_ref
from tests.comparing import Array, assert_same
from tests.seeded_weights import seeded_input, seeded_state_dict, uniform

X = QParams(np.float32(0.02), 0)
LARGEST_K = 4608


def unfolded(bias_s32: Array, w_s8: Array, x: QParams) -> Array:
    """Take the input's zero point out of the bias again."""
    return bias_s32 + x.zero_point * w_s8.sum(axis=1, dtype=np.int64)


# Weights


def test_weights_are_symmetric_and_per_channel() -> None:
    weight = uniform(-1, 1, (5, 200), 0) * np.float32([[1e-3], [0.1], [1], [30], [7]])
    w_s8, w_scale, _ = quantize_weights(FloatParams(weight, np.zeros(5, np.float32)), X)
    assert (w_s8.dtype, w_scale.dtype) == (np.int8, np.float32)
    assert np.abs(w_s8.astype(int)).max(axis=1).tolist() == [127] * 5
    np.testing.assert_allclose(w_scale, np.abs(weight).max(axis=1) / 127, rtol=1e-6)
    error = np.abs(w_s8 * w_scale[:, np.newaxis].astype(np.float64) - weight)
    assert (error <= 0.5001 * w_scale[:, np.newaxis]).all()


@pytest.mark.parametrize("zero_point", [0, 1, 114, 255])
def test_the_bias_holds_the_zero_point_of_the_input(zero_point: int) -> None:
    """Convolving all of one real value v gives sum(w) * v + bias, in steps of both scales."""
    weight, bias = uniform(-1, 1, (7, 300), 1), uniform(-2, 2, (7,), 2)
    x = QParams(np.float32(0.02), zero_point)
    w_s8, w_scale, bias_s32 = quantize_weights(FloatParams(weight, bias), x)
    assert bias_s32.dtype == np.int32
    real = unfolded(bias_s32, w_s8, x) * (np.float64(x.scale) * w_scale)
    assert (np.abs(real - bias) <= 0.5001 * x.scale * w_scale).all()
    for q in (0, zero_point, 255):
        acc = (q * w_s8.astype(np.int64)).sum(axis=1) + bias_s32
        meant = w_s8.astype(np.int64).sum(axis=1) * (q - zero_point) + unfolded(bias_s32, w_s8, x)
        np.testing.assert_array_equal(acc, meant)


@pytest.mark.parametrize("bias", [0.0, 0.5, -3.0])
def test_a_channel_of_zeros_has_a_scale_and_keeps_its_bias(bias: float) -> None:
    weight = uniform(-1, 1, (3, 50), 3)
    weight[1] = 0
    given = np.float32([0.1, bias, -0.1])
    w_s8, w_scale, bias_s32 = quantize_weights(FloatParams(weight, given), X)
    assert (w_scale > 0).all()
    assert np.isfinite(w_scale).all()
    assert not w_s8[1].any()
    real = bias_s32 * (np.float64(X.scale) * w_scale)
    assert (np.abs(real - given) <= 0.5001 * X.scale * w_scale + 1e-6 * np.abs(given)).all()


def test_weights_below_the_smallest_scale_become_zero() -> None:
    weight = np.full((1, 4), 1e-42, np.float32)
    w_s8, w_scale, bias_s32 = quantize_weights(FloatParams(weight, np.zeros(1, np.float32)), X)
    assert w_scale == np.finfo(np.float32).tiny
    assert not w_s8.any()
    assert not bias_s32.any()


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("bias", [1.0, 1e3, 1e10, 1e20])
def test_no_bias_can_overflow_the_accumulator(zero_point: int, sign: int, bias: float) -> None:
    """A bias far larger than the weights raises their scale, so that |acc| stays below 2**31.

    The weights are all of one sign and the products as large as any can be: the accumulator of
    the largest K with the zero point of the input still in it, and the bias that takes it off.
    """
    weight = np.full((2, LARGEST_K), 1e-9, np.float32)
    weight[1] = np.float32(bias) * uniform(0.5, 1, (LARGEST_K,), 4)
    x = QParams(np.float32(1e-4), zero_point)
    p = FloatParams(sign * weight, np.full(2, sign * bias, np.float32))
    w_s8, w_scale, bias_s32 = quantize_weights(p, x)
    steps = unfolded(bias_s32, w_s8, x)
    assert np.abs(steps).max() <= BIAS_LIMIT * (1 + 2.0**-21)  # the scale itself is rounded
    np.testing.assert_allclose(steps * (np.float64(x.scale) * w_scale), p.bias, rtol=1e-6)
    for products in (np.zeros(2, np.int64), 255 * w_s8.sum(axis=1, dtype=np.int64)):
        assert np.abs(products + bias_s32).max() < 2**31
    # Whatever the weights: the folded bias, and all products on top of it.
    assert BIAS_LIMIT * (1 + 2.0**-21) + 2 * 255 * 128 * LARGEST_K < 2**31


# The network


@pytest.fixture(scope="module")
def model() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict(), meta={"name": "seeded"})


@pytest.fixture(scope="module")
def calibration(model: ResNet50) -> Calibration:
    return calibrate(model, [seeded_input((1, 3, 32, 32))], "minmax")


@pytest.fixture(scope="module")
def int8(model: ResNet50, calibration: Calibration) -> ResNet50:
    return quantize_model(model, calibration)


def test_every_layer_gets_its_ranges(int8: ResNet50, calibration: Calibration) -> None:
    assert int8.precision == "int8"
    edges = {layer.name: layer.qparams for layer in int8.layers}
    expected = {name: qparams_of_range(*limits) for name, limits in calibration.ranges.items()}
    assert edges == {**expected, "maxpool": edges["conv1"], "fc": None}
    for layer in int8.layers:
        p = int8.params.get(layer.name)
        if isinstance(p, Int8Params):
            residual = edges[layer.inputs[1]] if len(layer.inputs) == 2 else None
            assert (p.x_qparams, p.residual_qparams) == (edges[layer.inputs[0]], residual)
    assert sum(isinstance(p, Int8Params) for p in int8.params.values()) == 54


def test_only_tensors_that_can_be_negative_have_a_zero_point(int8: ResNet50) -> None:
    with_zero_point = {q.name for q in int8.layers if q.qparams and q.qparams.zero_point}
    downsamples = {layer.name for layer in int8.layers if "downsample" in layer.name}
    assert with_zero_point == {"input"} | downsamples


def test_the_float_network_is_left_alone(model: ResNet50, int8: ResNet50) -> None:
    assert model.precision == "fp32"
    assert all(layer.qparams is None for layer in model.layers)
    assert model.meta == {"name": "seeded"}
    with int8["fc"].register_forward_hook(lambda *_: None):
        assert model["fc"].hooks == []


def test_meta_tells_the_recipe(int8: ResNet50, calibration: Calibration) -> None:
    assert int8.meta == {
        "name": "seeded",
        "calibration": {
            "observer": "minmax",
            "images": 1,
            "rounding": "nearest",
            "correction": "off",
        },
        "saturated": calibration.saturated,
    }


def test_the_int8_network_follows_the_float_one(model: ResNet50, int8: ResNet50) -> None:
    x = seeded_input((1, 3, 32, 32))
    expected, logits = model(x), int8(x)
    assert logits.dtype == np.float32
    noise = np.linalg.norm(logits - expected) / np.linalg.norm(expected - expected.mean())
    assert noise < 0.2


def test_dead_channels_do_not_harm_the_network(calibration: Calibration) -> None:
    """Channels that BatchNorm has switched off, and a convolution that is all zero."""
    state = dict(seeded_state_dict())
    gamma = state["layer2.1.bn2.weight"].copy()
    gamma[:40] = 0
    state["layer2.1.bn2.weight"] = gamma
    state["layer3.2.conv1.weight"] = np.zeros_like(state["layer3.2.conv1.weight"])
    model = ResNet50.from_state_dict(state)
    x = seeded_input((1, 3, 32, 32))
    int8 = quantize_model(model, calibrate(model, [x], "mse"))
    for p in int8.params.values():
        if isinstance(p, Int8Params):
            assert (p.w_scale > 0).all()
            assert np.isfinite(p.w_scale).all()
    for step in int8.steps(x):
        assert np.isfinite(step.output).all()
        assert step.layer.qparams is None or 0 < step.layer.qparams.scale < np.inf


def test_images_far_outside_the_calibrated_range_saturate(int8: ResNet50) -> None:
    far = np.clip(seeded_input((1, 3, 32, 32)) * 50, -99, 99)
    first = next(int8.steps(far))
    assert set(np.unique(first.output)) >= {0, 255}
    assert np.isfinite(int8(far)).all()
    assert_same(int8(far), int8(far))


# Rounding by moments


def test_what_looks_at_inputs_needs_moments(model: ResNet50, calibration: Calibration) -> None:
    for how in ("gptq", "off"), ("nearest", "on"), ("nearest", "shrunk"):
        with pytest.raises(MiniresError, match=r"calibrate with moments=True"):
            quantize_model(model, calibration, *how)
    for how in ("best", "off"), ("nearest", "maybe"):
        with pytest.raises(MiniresError, match=r"there is no (rounding|correction) '(best|maybe)'"):
            quantize_model(model, calibration, *how)


def test_each_layer_is_rounded_by_its_own_moments(
    model: ResNet50, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by GPTQ, unless told otherwise, where there are any."""
    seen = calibrate(model, [seeded_input((1, 3, 32, 32))], "minmax", moments=True)
    met: list[object] = []

    def note(steps: Array, moments: Moments | None) -> Array:
        met.append(moments)
        return round_nearest(steps)

    monkeypatch.setitem(ROUNDINGS, "gptq", note)
    int8 = quantize_model(model, seen)
    assert met == list(seen.moments.values())
    assert int8.meta["calibration"]["rounding"] == "gptq"
    shown: list[object] = []
    quantize_model(model, seen, "nearest", "on", lambda layers: shown.extend(layers) or layers)
    assert [layer.name for layer in shown] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_int8_runs_where_the_float_network_does(
    model: ResNet50, calibration: Calibration, backend: str
) -> None:
    """Otherwise NumPy's INT8 stands beside compiled FP32, and seems to be slow."""
    fp32 = ResNet50(model.layers, model.params)
    fp32.backend = backend
    assert quantize_model(fp32, calibration).backend == backend


# Layers that stay in float32

KEPT = ["conv1", "layer1.0.conv3", "layer1.0.downsample.0", "fc"]


@pytest.fixture(scope="module")
def mixed(model: ResNet50, calibration: Calibration) -> ResNet50:
    return quantize_model(model, calibration, keep=KEPT)


def test_layers_and_hooks_say_what_is_kept(mixed: ResNet50) -> None:
    x = seeded_input((1, 3, 32, 32))
    met: list[str] = []
    handles = [
        layer.register_forward_hook(
            lambda layer, *_: met.append(layer.name) if layer.kept else None
        )
        for layer in mixed
    ]
    kept = [step.name for step in mixed.steps(x) if step.layer.kept]
    for handle in handles:
        handle.remove()
    assert sorted(kept) == sorted(met) == sorted(KEPT)


def test_a_kept_layer_computes_in_float32_between_eight_bits(
    mixed: ResNet50, model: ResNet50
) -> None:
    """By the definitions, from what the network itself hands it."""
    outputs = {}
    for step in mixed.steps(seeded_input((1, 3, 32, 32))):
        if step.layer.kept:
            real = [
                dequantize_ref(outputs[name], *mixed[name].qparams) for name in step.layer.inputs
            ]
            y = OPERATORS["fp32"][step.op](step.layer, model.params[step.name], *real)
            assert_same(
                step.output, quantize_ref(y, *step.layer.qparams) if step.layer.qparams else y
            )
        outputs[step.name] = step.output


@pytest.mark.parametrize("precision", ["int8", "int8-simulated"])
def test_mixed_networks_run_on_both_backends(mixed: ResNet50, precision: str) -> None:
    x = seeded_input((2, 3, 32, 32))
    network = ResNet50(mixed.layers, mixed.params, precision, mixed.meta)
    expected = network(x)
    network.backend = "numba"
    if precision == "int8":
        assert_same(network(x), expected)
    np.testing.assert_allclose(network(x), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_fewer_rounded_weights_are_nearer_to_float32(
    model: ResNet50, calibration: Calibration, int8: ResNet50
) -> None:
    """With all layers kept, only activations are rounded."""
    x = seeded_input((1, 3, 32, 32))
    names = [layer.name for layer in model.layers if layer.op in ("conv", "linear")]
    kept = quantize_model(model, calibration, keep=names)
    assert not any(isinstance(p, Int8Params) for p in kept.params.values())
    noises = [logit_noise(network(x), model(x)).sqnr_db for network in (int8, kept)]
    assert noises[0] < noises[1]


@pytest.mark.parametrize("name", ["maxpool", "layer9", "conv1 ", ""])
def test_what_has_no_weights_cannot_be_kept(
    model: ResNet50, calibration: Calibration, name: str
) -> None:
    with pytest.raises(MiniresError, match="no layer with weights is called"):
        quantize_model(model, calibration, keep=[name])


def test_a_file_keeps_what_is_kept(mixed: ResNet50, tmp_path: Path) -> None:
    save_int8(mixed, tmp_path / "mixed.safetensors")
    loaded = load_int8(tmp_path / "mixed.safetensors")
    assert [layer.name for layer in loaded if layer.kept] == [
        layer.name for layer in mixed if layer.kept
    ]
    x = seeded_input((1, 3, 32, 32))
    assert_same(loaded(x), mixed(x))


def test_a_gpu_is_told_not_to_run_them(mixed: ResNet50, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(MiniresError, match="runs no layers kept in float32"):
        make_cuda_engine(mixed.layers, mixed.params, "int8")
