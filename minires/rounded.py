"""FP32 with fewer bits: simulated INT8 and bfloat16. What is kept is rounded; sums are float32."""

from typing import Any

from minires import reference as ref
from minires.layers import Array, FloatParams, Int8Params, Layer, Operator


def simulated(operator: Operator) -> Operator:
    """Have an FP32 operator use dequantized weights and round its output to eight bits."""

    def run(layer: Layer, p: Any, *inputs: Array) -> Array:
        y = operator(layer, p.dequantize() if isinstance(p, Int8Params) else None, *inputs)
        return ref.fake_quantize_ref(y, *layer.qparams) if layer.qparams else y

    return run


def bfloat16(operator: Operator) -> Operator:
    """Have an FP32 operator use rounded weights and round its output; logits stay float32."""

    def run(layer: Layer, p: FloatParams | None, *inputs: Array) -> Array:
        rounded = FloatParams(ref.round_bf16_ref(p.weight), p.bias) if p else None
        y = operator(layer, rounded, *inputs)
        return y if layer.op == "linear" else ref.round_bf16_ref(y)

    return run
