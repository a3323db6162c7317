"""Layers of an INT8 network that stay in float32, between neighbours in eight bits."""

from typing import NamedTuple

from minires.layers import OPERATORS, Array, FloatParams, Layer
from minires.reference import QParams, dequantize_ref, quantize_ref


class KeptParams(NamedTuple):
    """The parameters of a layer whose `kept` is true; its weights were never rounded."""

    x_qparams: QParams  # the input's scale and zero point
    weight: Array  # (N, K) float32
    bias: Array  # (N,) float32
    residual_qparams: QParams | None = None  # those of the residual, if one is added


def run_kept(layer: Layer, p: KeptParams, *inputs_u8: Array) -> Array:
    """Turn the inputs into real numbers, compute as in FP32, and bring the output to eight bits.

    The classifier's output, the logits, stays float32 as in all of INT8.
    """
    real = [dequantize_ref(inputs_u8[0], *p.x_qparams)]
    if p.residual_qparams:
        real.append(dequantize_ref(inputs_u8[1], *p.residual_qparams))
    y = OPERATORS["fp32"][layer.op](layer, FloatParams(p.weight, p.bias), *real)
    return quantize_ref(y, *layer.qparams) if layer.qparams else y
