"""Calibration: run the FP32 network on a few images and note each edge's range."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minires.errors import MiniresError, check_choice, check_is
from minires.layers import Array, Layer
from minires.model import ResNet50
from minires.quantize.observers import OBSERVERS

STORED_CALIBRATION = "stored_calibration"  # the key in a float network's meta, if its file has one


@dataclass(frozen=True)
class Calibration:
    """The result of calibration; an edge is called after the layer whose output it is."""

    ranges: dict[str, tuple[float, float]]  # by edge, the real numbers to cover with 256 steps
    saturated: dict[str, float]  # by edge, the share of the values seen outside its range
    observer: str  # a key of `OBSERVERS`
    images: int  # how many images, or crops, were seen


def quantized_edges(layers: Sequence[Layer]) -> list[str]:
    """Name the edges that need a range of their own, in the order the layers run.

    A max-pool's output has the range of its input, and the logits stay float32.
    """
    return [layer.name for layer in layers if layer.op not in ("maxpool", "linear")]


def calibrate(model: ResNet50, batches: Iterable[Array], observer: str = "mse") -> Calibration:
    """Observe every edge of the FP32 network.

    Parameters
    ----------
    model : ResNet50
        The network in fp32.
    batches : iterable of ndarray
        Inputs of the model, (N, 3, H, W) float32. None is kept.
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

    Examples
    --------
    >>> minires.quantize.calibrate(model, [x], "minmax").ranges["conv1"][0]
    0.0
    """
    check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
    check_is("batches", batches, Iterable, "several inputs of the network, in a list or one by one")
    if model.precision != "fp32":
        raise MiniresError(f"calibration wants a network in fp32; this one is {model.precision}")
    check_choice("observer", observer, OBSERVERS)
    edges = {name: OBSERVERS[observer]() for name in quantized_edges(model.layers)}
    images = 0
    for x in batches:
        for step in model.steps(x):
            if step.name in edges:
                edges[step.name].observe(step.output)
        images += len(x)
    if not images:
        raise MiniresError("calibration got no images; at least one is needed")
    return Calibration(
        {name: edge.range() for name, edge in edges.items()},
        {name: edge.saturated() for name, edge in edges.items()},
        observer,
        images,
    )
