"""How many images a CPU takes through the network at once, so that its caches hold them."""

import math
from collections.abc import Sequence

from minires.kernels.plan import Division, Tiling
from minires.layers import Layer, Shape
from minires.summary import summarize


def divide(layers: Sequence[Layer], size: Shape, tiling: Tiling) -> Division:
    """Count the images, of this height and width, whose activations stay in a cache."""
    y = [tiling.item * math.prod(row.output_shape) for row in summarize(layers, *size)]
    channels = {layer.name: tiling.channels(layer) for layer in layers}
    w = [
        tiling.packed_bytes(layer, channels[layer.inputs[0]] if layer.inputs else 0)
        for layer in layers
    ]
    # Where a residual has been added, nothing else is left for later steps to read.
    ends = [i for i, layer in enumerate(layers[:-1]) if layer.inputs[1:]]
    late = next((i + 1 for i in ends if w[i + 1] > y[i] + y[i + 1]), 0)
    few = max(1, tiling.room // (2 * max(y)))  # one is read while another is written
    more = max(few, tiling.last // (2 * max(y[late:]))) if late else few
    return Division(late, few, more)
