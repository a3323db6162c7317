"""One output value by hand: the arithmetic of chapter 9, for any layer and pixel of a photograph.

The network runs in FP32 and in INT8. Of one layer's output one value is then computed anew from the
layer's own inputs, line by line, with the definitions of reference.py. The line at the end has to
be what the network itself had there: in INT8 to the bit.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import reference as ref
from minires.errors import MiniresError, no_layer
from minires.layers import Array, FloatParams, Int8Params, Layer
from minires.model import ResNet50, Step
from minires.show import layer_names

SHOWN = 8  # products in the table: those that add most to the sum
EPS = float(np.finfo(np.float32).eps)
Pixel = tuple[int, int, int]  # row, column, channel


def explain(fp32: ResNet50, int8: ResNet50, x: Array, name: str, pixel: Pixel | None = None) -> str:
    """Compute one value of a layer's output by hand, in both precisions, and say how.

    x is one image, (1, 3, H, W). `pixel` is the value's row, column and channel; unless given, the
    middle of the picture, and the channel that is largest there. A layer without rows and columns
    has them at 0. It raises `MiniresError` for a layer or pixel that there is not.
    """
    real, quantized = (_step(model, x, name) for model in (fp32, int8))
    output = _as_pixels(real.output)
    row, column, channel = pixel = pixel or _brightest(output)
    for what, at, size in zip(("row", "column", "channel"), pixel, output.shape[1:], strict=True):
        if not 0 <= at < size:
            raise MiniresError(f"{name} has no {what} {at}; the last one is {size - 1}")
    layer = int8[name]
    kind = f", {_kind(layer)}" if layer.op != name else ""
    lines = [f"{name}{kind}: row {row}, column {column}, channel {channel} of its output"]
    lines += _seen(fp32, layer, pixel, x.shape[2:])
    lines += ["", *EXPLAINED[layer.op](fp32, int8, (real, quantized), pixel)]
    return "\n".join(lines)


def _step(model: ResNet50, x: Array, name: str) -> Step:
    """Run a network up to a layer."""
    if name not in (names := layer_names(model)):
        raise no_layer(name, names, "minires summary")
    return next(step for step in model.steps(x) if step.name == name)


def _as_pixels(values: Array) -> Array:
    """Give what has lost rows and columns one of each: (batch, 1, 1, channels)."""
    return values if values.ndim == 4 else values[:, np.newaxis, np.newaxis]


def _brightest(output: Array) -> Pixel:
    row, column = output.shape[1] // 2, output.shape[2] // 2
    return row, column, int(output[0, row, column].argmax())


def _kind(layer: Layer) -> str:
    if layer.op != "conv":
        return layer.op
    stride = f", stride {layer.stride}" if layer.stride > 1 else ""
    return f"a {layer.kernel}x{layer.kernel} convolution of {layer.in_c} channels{stride}"


def _seen(model: ResNet50, layer: Layer, pixel: Pixel, size: tuple[int, ...]) -> list[str]:
    """Tell a value's receptive field: by equation 9.1, from layer to layer back to the image."""
    spans = [(at, at) for at in pixel[:2]]  # first and last row, and column
    while layer.inputs:
        if layer.op in ("avgpool", "linear"):
            return []  # it depends on the whole image
        k, stride, p = layer.kernel, layer.stride, layer.padding
        spans = [(stride * first - p, stride * last - p + k - 1) for first, last in spans]
        # A shortcut, the second input, is read at one pixel, which lies within the first's span.
        layer = model[layer.inputs[0]]
    (top, bottom), (left, right) = (
        (max(0, first), min(last, most - 1))
        for (first, last), most in zip(spans, size, strict=True)
    )
    return [
        f"It depends on rows {top} to {bottom} and columns {left} to {right} of the "
        f"{size[0]} x {size[1]} image."
    ]


def _check(ours: Any, network: Any, bound: float) -> str:
    """Hold what was computed by hand to what the network had; the answer says so."""
    if not abs(float(ours) - float(network)) <= bound:  # so that NaN fails
        raise MiniresError(f"by hand it is {ours}, but the network has {network}; report this")
    return (
        "the network has the same" if bound == 0 else "the network has the same, but for rounding"
    )


def _explain_sum(
    fp32: ResNet50, int8: ResNet50, steps: tuple[Step, Step], pixel: Pixel
) -> Iterator[str]:
    """Explain a convolution's value, or the linear layer's: a sum of products."""
    real, quantized = steps
    layer = int8[real.name]
    channel = pixel[2]
    p_f32 = fp32.params[real.name]
    p = int8.params[real.name]
    assert isinstance(p_f32, FloatParams)
    assert isinstance(p, Int8Params)
    x_scale, x_zero_point = p.x_qparams
    x_f32 = _patch(layer, real.inputs[0], pixel, 0)  # (K,)
    x_u8 = _patch(layer, quantized.inputs[0], pixel, x_zero_point)
    w_f32 = p_f32.weight[channel]
    w_s8 = p.w_s8[channel]
    w_scale = p.w_scale[channel]
    yield f"In FP32 {len(x_f32)} numbers x meet as many weights w. In INT8 they are whole numbers:"
    yield f"x is about {x_scale:.6g} x (x_u8 - {x_zero_point}), and w about {w_scale:.6g} x w_s8."
    yield "    k          x  x_u8       back           w  w_s8        back  x_u8 x w_s8"
    for k in sorted(np.argsort(-np.abs(x_f32 * w_f32), kind="stable")[:SHOWN]):
        x_back = (int(x_u8[k]) - x_zero_point) * x_scale
        yield (
            f"{k:>5}{x_f32[k]:>11.5f}{x_u8[k]:>6}{x_back:>11.5f}{w_f32[k]:>12.6f}{w_s8[k]:>6}"
            f"{w_s8[k] * w_scale:>12.6f}{int(x_u8[k]) * int(w_s8[k]):>13}"
        )
    if len(x_f32) > SHOWN:
        yield f"  ... and {len(x_f32) - SHOWN} more, which add less"
    acc = int(ref.gemm_u8s8_ref(x_u8[np.newaxis], w_s8[:, np.newaxis])[0, 0])
    bias = int(p.bias_s32[channel])
    yield ""
    yield f"All products of whole numbers, summed in 32 bits without rounding: acc = {acc}"
    back = ", and takes x's zero point back out" if x_zero_point else ""
    yield f"The bias counts in the same steps{back}:"
    yield f"  {acc} {'-' if bias < 0 else '+'} {abs(bias)} = {acc + bias}"
    exact = np.float32(np.dot(x_f32.astype(np.float64), w_f32) + p_f32.bias[channel])
    if layer.op == "linear":
        ours = np.float32(acc + bias) * (x_scale * w_scale)
        classes = int8.meta.get("categories", [])
        of = f" of {classes[channel]}" if channel < len(classes) else ""
        yield f"A step is {x_scale:.6g} x {w_scale:.6g}, so this is the logit{of}: {ours:.5f}"
        yield "  " + _check(ours, _at(quantized.output, pixel), 0)
        yield f"In FP32 it is {exact:.5f}: INT8 is off by {ours - exact:+.5f}"
        return
    yield from _requantized(layer, p, steps, pixel, acc + bias)
    if real.inputs[1:]:
        exact += _at(real.inputs[1], pixel)
    exact = max(exact, np.float32(0)) if layer.relu else exact
    bound = 2 * (len(x_f32) + 2) ** 2 * EPS * float(np.abs(x_f32).max() * np.abs(w_f32).max() + 1)
    _check(exact, _at(real.output, pixel), bound)
    yield from _beside(layer, float(exact), int(_at(quantized.output, pixel)))


def _patch(layer: Layer, x: Array, pixel: Pixel, fill: int) -> Any:
    """Take the numbers behind an output pixel out of a layer's input: (K,)."""
    if layer.op == "linear":
        return x.reshape(-1)
    k, s, p = layer.kernel, layer.stride, layer.padding
    width = ref.output_size(x.shape[2], k, s, p)
    columns: Array = ref.im2col_ref(x, k, k, s, p, fill)  # (M, K)
    return columns[pixel[0] * width + pixel[1]]


def _at(values: Array, pixel: Pixel) -> Any:
    return _as_pixels(values)[0][pixel]


def _requantized(
    layer: Layer, p: Int8Params, steps: tuple[Step, Step], pixel: Pixel, total: int
) -> Iterator[str]:
    """Explain how a sum comes back to eight bits: equations 7.2 and 7.3, or with a residual 8.1."""
    assert layer.qparams is not None
    y_scale, y_zero_point = layer.qparams
    x_scale = p.x_qparams.scale
    w_scale = p.w_scale[pixel[2]]
    m = x_scale * w_scale / y_scale
    shortcut: Array | None = None
    yield ""
    yield f"Back to eight bits. A step of the sum is worth {x_scale:.6g} x {w_scale:.6g}. A step of"
    yield f"the output is worth {y_scale:.6g}. So the sum is multiplied by their ratio:"
    yield f"  m = {x_scale:.6g} x {w_scale:.6g} / {y_scale:.6g} = {m:.8g}"
    yield f"  {total} x {m:.8g} = {np.float32(total) * m:.4f}"
    if p.residual_qparams is not None:
        scale, zero_point = p.residual_qparams
        residual = int(_at(steps[1].inputs[1], pixel))
        shortcut = np.array([[residual - zero_point]], np.float32) * (scale / y_scale)
        steps_of_it = f"({residual} - {zero_point}) x {scale:.6g} / {y_scale:.6g}"
        yield f"  the shortcut adds {steps_of_it} = {shortcut.item():.4f}"
    low, high = -y_zero_point, 255 - y_zero_point
    sums = np.array([[total]], np.int32)
    y_u8 = int(ref.requantize_ref(sums, m, y_zero_point, shortcut)[0, 0])
    relu = ", which is the ReLU too" if layer.relu else ""
    yield f"  clipped to {low} ... {high}{relu}, rounded, plus {y_zero_point}: y_u8 = {y_u8}"
    yield "  " + _check(y_u8, _at(steps[1].output, pixel), 0)


def _beside(layer: Layer, exact: float, y_u8: int) -> Iterator[str]:
    """Compare the eight bits with FP32's number."""
    assert layer.qparams is not None
    scale, zero_point = layer.qparams
    y = (y_u8 - zero_point) * float(scale)
    yield ""
    yield f"FP32 has {exact:.6g}. INT8 has {scale:.6g} x ({y_u8} - {zero_point}) = {y:.6g}:"
    off = f"off by {(y - exact) / float(scale):+.2f} steps"
    yield f"  {off}, of which rounding this value alone makes half a step at most"


def _explain_input(
    fp32: ResNet50, int8: ResNet50, steps: tuple[Step, Step], pixel: Pixel
) -> Iterator[str]:
    """Explain a colour of a pixel: a division and a rounding."""
    layer = int8[steps[0].name]
    assert layer.qparams is not None
    scale, zero_point = layer.qparams
    x = _at(steps[0].output, pixel)
    x_u8 = int(ref.quantize_ref(np.array([x]), scale, zero_point)[0])
    yield f"The pixel's colour, normalized, is {x:.6f}"
    yield f"  {x:.6f} / {scale:.6g}, rounded, plus {zero_point}: x_u8 = {x_u8}"
    yield "  " + _check(x_u8, _at(steps[1].output, pixel), 0)
    yield from _beside(layer, float(x), x_u8)


def _explain_pool(
    fp32: ResNet50, int8: ResNet50, steps: tuple[Step, Step], pixel: Pixel
) -> Iterator[str]:
    """Explain a value of a pool: the largest of a window, or the mean of all pixels."""
    real, quantized = steps
    layer = int8[real.name]
    channel = pixel[2]
    assert layer.qparams is not None
    x_f32, x_u8 = (step.inputs[0][0, :, :, channel] for step in steps)
    if layer.op == "maxpool":
        rows, columns = (
            slice(
                max(0, at * layer.stride - layer.padding),
                at * layer.stride - layer.padding + layer.kernel,
            )
            for at in pixel[:2]
        )
        exact = x_f32[rows, columns].max()
        y_u8 = int(x_u8[rows, columns].max())
        yield f"The largest of a window, in INT8 as in FP32: {x_u8[rows, columns].tolist()}"
        yield f"  y_u8 = {y_u8}"
    else:
        before = next(one for one in int8.layers if one.name == layer.inputs[0])
        assert before.qparams is not None
        scale, zero_point = before.qparams
        y_scale, y_zero_point = layer.qparams
        acc = int(x_u8.sum(dtype=np.int64)) - x_u8.size * zero_point
        m = scale / (y_scale * np.float32(x_u8.size))
        y_u8 = int(ref.requantize_ref(np.array([[acc]], np.int32), m, y_zero_point)[0, 0])
        exact = x_f32.mean(dtype=np.float64)
        yield f"The mean of {x_u8.size} pixels. Their sum is {acc}, without the zero points"
        yield f"  m = {scale:.6g} / ({y_scale:.6g} x {x_u8.size}) = {m:.8g} divides, too"
        t = np.float32(acc) * m
        yield f"  {acc} x {m:.8g} = {t:.4f}, rounded, plus {y_zero_point}: y_u8 = {y_u8}"
    yield "  " + _check(y_u8, _at(quantized.output, pixel), 0)
    _check(exact, _at(real.output, pixel), x_f32.size * EPS * float(np.abs(x_f32).max() + 1))
    yield from _beside(layer, float(exact), y_u8)


EXPLAINED = {
    "input": _explain_input,
    "conv": _explain_sum,
    "linear": _explain_sum,
    "maxpool": _explain_pool,
    "avgpool": _explain_pool,
}
