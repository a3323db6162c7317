"""What each layer's eight-bit weights cost: the gain if this one layer's stayed float32."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from minires.layers import Array, Layer
from minires.measure import plots
from minires.model import ResNet50
from minires.quantize.report import logit_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Gain(NamedTuple):
    """One layer whose weights are left in float32, all others being in INT8."""

    name: str
    gain_db: float  # how much the logits' signal-to-quantization-noise ratio rises


def sensitivity(
    fp32: ResNet50,
    int8: ResNet50,
    x: Array,
    progress: Callable[[Sequence[Layer]], Iterable[Layer]] = iter,
) -> list[Gain]:
    """Leave the weights of one layer at a time in float32, and compare the logits.

    What passes between layers stays in eight bits. The networks are simulated, because in float32
    arithmetic weights of both kinds can be mixed. `progress` gets the layers and yields them again.

    Parameters
    ----------
    fp32, int8 : ResNet50
        The second was made from the first.
    x : ndarray
        (N, 3, H, W) float32.
    progress : callable
        For example to show a bar.

    Returns
    -------
    list of Gain
        In the order the layers run. A gain of 0 says that a layer's rounding is lost in the rest.
    """
    right = fp32(x)

    def ratio(**left_in_float: object) -> float:
        params = {**int8.params, **left_in_float}
        mixed = ResNet50(int8.layers, params, "int8-simulated", int8.meta)
        mixed.backend = fp32.backend
        return logit_noise(mixed(x), right).sqnr_db

    before = ratio()
    layers = [layer for layer in fp32.layers if layer.op in ("conv", "linear")]
    return [
        Gain(layer.name, ratio(**{layer.name: fp32.params[layer.name]}) - before)
        for layer in progress(layers)
    ]


def format_sensitivity(gains: Iterable[Gain]) -> str:
    """Lay the gains out as text, the largest first, each with a bar: a plot for a terminal."""
    gains = sorted(gains, key=lambda gain: -gain.gain_db)
    most = max(gain.gain_db for gain in gains)
    lines = [f"{'left in float32':<22}{'gain (dB)':>10}"]
    for name, gain in gains:
        bar = "#" * round(30 * gain / most) if most > 0 else ""
        lines.append(f"{name:<22}{gain:>10.2f}  {bar}".rstrip())
    return "\n".join(lines)


def plot_sensitivity(
    gains: Sequence[Gain],
    title: str,
    path: str | os.PathLike[str] | None = None,
    dark: bool = False,
) -> "Figure":
    """Draw a bar for each layer, in the order they run; needs matplotlib."""
    with plots.drawing(path, title, 8, 10, dark=dark) as (drawn, axes):
        names, decibels = zip(*gains, strict=True)
        axes.barh(range(len(names)), decibels, color=plots.COLORS["int8"])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("dB gained where the weights of this one layer stay float32")
    return drawn
