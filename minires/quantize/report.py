"""The cost of quantization: noise layer by layer, saturation, and labels that changed."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.layers import Array
from minires.model import ResNet50
from minires.reference import dequantize_ref


class LayerReport(NamedTuple):
    """One quantized edge."""

    name: str
    sqnr_db: float  # signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - q)^2)
    saturated: float  # the share of float values outside the range that 0 to 255 stand for


class Report(NamedTuple):
    """The INT8 network against the FP32 one, on the same images."""

    layers: list[LayerReport]
    agreement: float  # the share of the images that get the same label
    images: int


class Noise(NamedTuple):
    """What quantization adds to logits. Of few photographs it tells more than labels do."""

    sqnr_db: float  # signal-to-quantization-noise ratio, over all logits
    kl: float  # mean Kullback-Leibler divergence from FP32's probabilities, in nats


def logit_noise(logits: Array, fp32: Array) -> Noise:
    """Compare INT8's logits with FP32's, both (N, num_classes) float32."""
    told, right = logits.astype(np.float64), fp32.astype(np.float64)
    noise = np.sum((told - right) ** 2)
    with np.errstate(divide="ignore"):  # no signal at all gives minus infinity
        sqnr = 10 * np.log10(np.sum(right**2) / noise) if noise else np.inf
    told, right = _log_softmax(told), _log_softmax(right)
    kl = np.sum(np.exp(right) * (right - told), axis=1)
    return Noise(float(sqnr), float(kl.mean()))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def report(fp32: ResNet50, int8: ResNet50, batches: Iterable[Array]) -> Report:
    """Run both networks side by side, and compare each quantized edge in the order they run.

    The INT8 network has to be made from the float one. A layer's noise includes the noise that
    earlier layers have passed on. Batches are (N, 3, H, W) float32. If there is no image at all,
    it raises `MiniresError`.
    """
    sums: dict[str, Array] = {}  # signal, noise, values beyond the range, values
    images = same = 0
    for x in batches:
        for real, quantized in zip(fp32.steps(x), int8.steps(x), strict=True):
            if quantized.layer.qparams is None:
                images += len(x)
                same += int(np.sum(real.output.argmax(axis=1) == quantized.output.argmax(axis=1)))
                continue
            scale, zero_point = quantized.layer.qparams
            steps = np.rint(real.output / scale) + zero_point
            noise = real.output - dequantize_ref(quantized.output, scale, zero_point)
            beyond = np.count_nonzero((steps < 0) | (steps > 255))
            row = np.array([np.sum(np.square(a, dtype=np.float64)) for a in (real.output, noise)])
            row = np.concatenate([row, [beyond, steps.size]])
            sums[real.name] = sums.get(real.name, 0) + row
    if not images:
        raise MiniresError("no images to compare on; at least one is needed")
    layers = []
    for name, (signal, noise_power, beyond_count, count) in sums.items():
        with np.errstate(divide="ignore"):  # no signal at all gives minus infinity
            sqnr = 10 * np.log10(signal / noise_power) if noise_power else np.inf
        layers.append(LayerReport(name, float(sqnr), float(beyond_count / count)))
    return Report(layers, same / images, images)


def format_report(result: Report) -> str:
    """Lay a report out as text: a line for each edge, and one on the labels."""
    lines = [f"{'edge':<22}{'SQNR (dB)':>10}{'saturated':>12}"]
    lines += [f"{r.name:<22}{r.sqnr_db:>10.1f}{r.saturated:>12.4%}" for r in result.layers]
    lines.append(f"FP32 and INT8 agree on {result.agreement:.1%} of {result.images} images")
    return "\n".join(lines)
