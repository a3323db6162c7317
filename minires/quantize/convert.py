"""From float32 weights and calibrated ranges to the INT8 network."""

from dataclasses import replace
from typing import Any

import numpy as np

from minires.checkpoint import lock
from minires.errors import check_is
from minires.layers import Array, FloatParams, Int8Params
from minires.model import ResNet50
from minires.quantize.calibrate import STORED_CALIBRATION, Calibration
from minires.quantize.observers import qparams_of_range
from minires.reference import QParams

BIAS_LIMIT = 2.0**30  # leaves the accumulator room: 2**30 + 2 * 150,405,120 < 2**31


def quantize_weights(p: FloatParams, x_qparams: QParams) -> tuple[Array, Array, Array]:
    """Quantize a layer's weights, symmetric and per output channel, and its bias: equation 7.1.

    Parameters
    ----------
    p : FloatParams
        Weight (N, K) and bias (N,), BatchNorm folded in, float32.
    x_qparams : QParams
        The input's scale and zero point.

    Returns
    -------
    w_s8 : ndarray
        (N, K) int8, -127 to 127.
    w_scale : ndarray
        (N,) float32. As large as the weights need, and so large that the bias fits in 2**30
        steps of x_scale * w_scale. A dead channel gets the smallest float, not zero.
    bias_s32 : ndarray
        (N,) int32. The input's zero point adds the same to every sum of a channel, so it is taken
        off here, once: the sum of (x - x_zero_point) * w is the sum of x * w, less x_zero_point
        times the sum of w (equation 5.4).

    Examples
    --------
    >>> image = minires.reference.QParams(np.float32(0.02), 128)
    >>> w_s8, w_scale, bias_s32 = minires.quantize.quantize_weights(model.params["conv1"], image)
    >>> w_s8.dtype, int(abs(w_s8).max())
    (dtype('int8'), 127)
    """
    x_scale, x_zero_point = x_qparams
    for_weights = np.abs(p.weight).max(axis=1) / np.float32(127)
    for_bias = (np.abs(p.bias) / (np.float64(x_scale) * BIAS_LIMIT)).astype(np.float32)
    w_scale = np.maximum(np.maximum(for_weights, for_bias), np.finfo(np.float32).tiny)
    w_s8 = np.clip(np.rint(p.weight / w_scale[:, np.newaxis]), -127, 127).astype(np.int8)
    bias = np.rint(p.bias / (np.float64(x_scale) * w_scale))
    fold = x_zero_point * w_s8.sum(axis=1, dtype=np.int64)
    return w_s8, w_scale, (bias.astype(np.int64) - fold).astype(np.int32)


def quantize_model(model: ResNet50, calibration: Calibration) -> ResNet50:
    """Build the INT8 network.

    Parameters
    ----------
    model : ResNet50
        The network in fp32.
    calibration : Calibration
        A range for every edge.

    Returns
    -------
    ResNet50
        With precision "int8"; its layers know their outputs' scale and zero point.

    Examples
    --------
    >>> calibration = minires.quantize.calibrate(model, [x])
    >>> minires.quantize.quantize_model(model, calibration).precision
    'int8'
    """
    check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
    check_is("calibration", calibration, Calibration, "what minires.quantize.calibrate returns")
    qparams = {name: qparams_of_range(*limits) for name, limits in calibration.ranges.items()}
    qparams["maxpool"] = qparams["conv1"]  # a max-pool computes no new value: it picks one
    layers = [replace(layer, qparams=qparams.get(layer.name)) for layer in model.layers]
    params: dict[str, Any] = {}
    for layer in layers:
        inputs = [qparams[name] for name in layer.inputs]
        if layer.op in ("conv", "linear"):
            weights = quantize_weights(model.params[layer.name], inputs[0])
            params[layer.name] = lock(Int8Params(inputs[0], *weights, *inputs[1:]))
        elif layer.op == "avgpool":
            params[layer.name] = inputs[0]
    recipe = {"observer": calibration.observer, "images": calibration.images}
    meta = {**model.meta, "calibration": recipe, "saturated": calibration.saturated}
    meta.pop("accuracy", None)  # it was measured in fp32
    meta.pop(STORED_CALIBRATION, None)  # "calibration" tells of the one that was used
    return ResNet50(layers, params, "int8", meta)
