"""Calibration: run the FP32 network on a few images and note each edge's range."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minires.errors import MiniresError
from minires.layers import Array, Layer
from minires.model import ResNet50
from minires.quantize.observers import OBSERVERS

STORED_CALIBRATION = "stored_calibration"  # in a float network's meta, where its file had one


@dataclass(frozen=True)
class Calibration:
    """What calibration found out.

    Attributes
    ----------
    ranges : dict
        The range of real numbers to cover with 256 steps, by the name of the layer whose output
        the edge is.
    saturated : dict
        The share of the values seen that lie outside of it.
    observer : str
        A key of `OBSERVERS`.
    images : int
        How many images, or crops, were seen.
    """

    ranges: dict[str, tuple[float, float]]
    saturated: dict[str, float]
    observer: str
    images: int


def quantized_edges(layers: Sequence[Layer]) -> list[str]:
    """Name the edges that need a range of their own.

    A max-pool's output has its input's, and the logits stay float32.

    Parameters
    ----------
    layers : sequence of Layer
        The network.

    Returns
    -------
    list of str
        In the order the layers run.
    """
    return [layer.name for layer in layers if layer.op not in ("maxpool", "linear")]


def calibrate(model: ResNet50, batches: Iterable[Array], observer: str = "mse") -> Calibration:
    """Observe every edge of the FP32 network.

    Parameters
    ----------
    model : ResNet50
        The network in fp32.
    batches : iterable of ndarray
        What the model takes, (N, 3, H, W) float32; none is kept.
    observer : str
        A key of `OBSERVERS`.

    Returns
    -------
    Calibration
        For `quantize_model`.

    Raises
    ------
    MiniresError
        For a network that is quantized already, an unknown observer, no images, or NaN or infinity
        on an edge.
    """
    if model.precision != "fp32":
        raise MiniresError(f"calibration wants a network in fp32; this one is {model.precision}")
    if observer not in OBSERVERS:
        raise MiniresError(f"there is no observer {observer!r}; there are {', '.join(OBSERVERS)}")
    edges = {name: OBSERVERS[observer]() for name in quantized_edges(model.layers)}
    images = 0
    for x in batches:
        images += len(x)
        for step in model.steps(x):
            if step.name in edges:
                edges[step.name].observe(step.output)
    if not images:
        raise MiniresError("calibration got no images; at least one is needed")
    return Calibration(
        {name: edge.range() for name, edge in edges.items()},
        {name: edge.saturated() for name, edge in edges.items()},
        observer,
        images,
    )
