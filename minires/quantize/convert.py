"""From float32 weights and calibrated ranges to the INT8 network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minires.checkpoint import lock
from minires.errors import MiniresError, check_choice, check_is, short
from minires.layers import Array, FloatParams, Int8Params, Layer
from minires.mixed import KeptParams
from minires.model import ResNet50
from minires.quantize.calibrate import STORED_CALIBRATION, Calibration, quantized_edges
from minires.quantize.correction import CORRECTIONS
from minires.quantize.moments import Moments
from minires.quantize.observers import qparams_of_range
from minires.quantize.rounding import ROUNDINGS
from minires.reference import QParams

# Both leave the accumulator room: 1.5 * 2**30 + 2 * 150,405,120 < 2**31.
BIAS_LIMIT = 2.0**30
BIAS_MOST = 1.5 * BIAS_LIMIT  # with its correction


def quantize_weights(
    p: FloatParams,
    x_qparams: QParams,
    rounding: str = "nearest",
    correction: str = "off",
    moments: Moments | None = None,
) -> tuple[Array, Array, Array]:
    """Quantize a layer's weights, symmetric and per output channel, and its bias: equation 7.1.

    Parameters
    ----------
    p : FloatParams
        Weight (N, K) and bias (N,), BatchNorm folded in, float32.
    x_qparams : QParams
        The input's scale and zero point.
    rounding : str
        A key of `ROUNDINGS`.
    correction : str
        A key of `CORRECTIONS`.
    moments : Moments, optional
        Of the layer's inputs, from `calibrate`. Only "nearest" with "off" does without.

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
    steps = p.weight / w_scale[:, np.newaxis]
    w_s8 = ROUNDINGS[rounding](steps, moments).astype(np.int8)
    correct = CORRECTIONS[correction](p.weight - w_s8 * w_scale[:, np.newaxis], moments)
    bias = np.rint((p.bias + correct) / (np.float64(x_scale) * w_scale))
    fold = x_zero_point * w_s8.sum(axis=1, dtype=np.int64)
    bias = np.clip(bias, -BIAS_MOST, BIAS_MOST).astype(np.int64)
    return w_s8, w_scale, (bias - fold).astype(np.int32)


def quantize_model(
    model: ResNet50,
    calibration: Calibration,
    rounding: str | None = None,
    correction: str = "off",
    progress: Callable[[Sequence[Layer]], Iterable[Layer]] = iter,
    keep: Iterable[str] = (),
) -> ResNet50:
    """Build the INT8 network.

    Parameters
    ----------
    model : ResNet50
        The network in fp32.
    calibration : Calibration
        A range for every edge, and moments for a rounding or correction that looks at inputs.
    rounding, correction : str
        Keys of `ROUNDINGS` and `CORRECTIONS`. Rounding is "gptq" where there are moments, else
        "nearest", unless you give one.
    progress : callable, optional
        Gets the layers and yields them again, for example to show a bar.
    keep : iterable of str
        Layers that stay in float32, between others in eight bits.

    Returns
    -------
    ResNet50
        In "int8", on the model's backend; its layers know their outputs' scale and zero point.

    Raises
    ------
    MiniresError
        For an unknown rounding, correction or layer, and where moments are needed but missing.

    Examples
    --------
    >>> calibration = minires.quantize.calibrate(model, [x])
    >>> minires.quantize.quantize_model(model, calibration).precision
    'int8'
    """
    check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
    check_is("calibration", calibration, Calibration, "what minires.quantize.calibrate returns")
    rounding = _check_recipe(rounding, correction, calibration.moments)
    qparams = {edge: _edge_qparams(edge, calibration) for edge in quantized_edges(model.layers)}
    qparams["maxpool"] = qparams["conv1"]  # a max-pool computes no new value: it picks one
    marked = keep_layers(model.layers, keep)
    layers = [replace(layer, qparams=qparams.get(layer.name)) for layer in marked]
    params: dict[str, Any] = {}
    for layer in progress(layers):
        inputs = [qparams[name] for name in layer.inputs]
        made = _quantize_layer(layer, model, inputs, rounding, correction, calibration)
        if made is not None:
            params[layer.name] = lock(made)
    meta = {**model.meta, "saturated": calibration.saturated}
    recipe = {"observer": calibration.observer, "images": calibration.images}
    meta["calibration"] = {**recipe, "rounding": rounding, "correction": correction}
    meta.pop("accuracy", None)  # it was measured in fp32
    meta.pop(STORED_CALIBRATION, None)  # "calibration" tells of the one that was used
    int8 = ResNet50(layers, params, "int8", meta)
    int8.backend = model.backend  # or its time would be compared with compiled kernels'
    return int8


def _edge_qparams(edge: str, calibration: Calibration) -> QParams:
    """Choose an edge's scale and zero point; somebody may have written the range by hand."""
    try:
        low, high = calibration.ranges[edge]
    except (TypeError, ValueError, LookupError) as error:
        raise MiniresError(
            f"the calibration has no range (low, high) for {edge}; take that of "
            "minires.quantize.calibrate"
        ) from error
    return qparams_of_range(low, high)


def _quantize_layer(
    layer: Layer,
    model: ResNet50,
    inputs: list[QParams],
    rounding: str,
    correction: str,
    calibration: Calibration,
) -> Any:
    """Make a layer's parameters for INT8; a layer such as a max-pool needs none."""
    given: Any = model.params.get(layer.name)
    if layer.kept:
        return KeptParams(inputs[0], *given, *inputs[1:])
    if layer.op in ("conv", "linear"):
        seen = calibration.moments.get(layer.name)
        weights = quantize_weights(given, inputs[0], rounding, correction, seen)
        return Int8Params(inputs[0], *weights, *inputs[1:])
    return inputs[0] if layer.op == "avgpool" else None


def _check_recipe(rounding: str | None, correction: str, moments: Mapping[str, Moments]) -> str:
    """Return the rounding, which has to be known and must find the moments that it needs."""
    rounding = ("gptq" if moments else "nearest") if rounding is None else rounding
    check_choice("rounding", rounding, ROUNDINGS)
    check_choice("correction", correction, CORRECTIONS)
    if not moments and (rounding, correction) != ("nearest", "off"):
        raise MiniresError(
            f"rounding {rounding} with correction {correction} looks at the layers' inputs; "
            "calibrate with moments=True"
        )
    return rounding


def keep_layers(layers: Iterable[Layer], names: Iterable[str]) -> list[Layer]:
    """Mark the layers that stay in float32; refuse the name of one that has no weights."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise MiniresError(f"keep is {short(names)}; wanted names of layers, such as ['fc']")
    layers, names = list(layers), list(names)
    with_weights = {layer.name for layer in layers if layer.op in ("conv", "linear")}
    for name in names:
        if not isinstance(name, str) or name not in with_weights:
            raise MiniresError(
                f"no layer with weights is called {short(name)}; minires summary lists them"
            )
    return [replace(layer, kept=layer.name in names) for layer in layers]
