"""How a network, a step of it and its facts look at the prompt and in a notebook."""

import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from minires import html
from minires.backends import INT8
from minires.layers import Array
from minires.summary import SummaryRow, format_edges, format_summary, summarize

if TYPE_CHECKING:  # model.py imports this file
    from minires.model import ResNet50, Step

UNKNOWN_SIDE = 224  # pixels: what most ResNet-50s take
MOST_CHANNELS = 64  # in a picture
TILE = 48  # pixels of a channel in it; larger channels keep their own size
WIDTH = 800  # pixels of the picture
GAP = 2
LONGEST_TEXT = 100  # characters of one fact


class Meta(dict[str, Any]):
    """What is known of weights: a dictionary that prints a fact a line, and long ones in short."""

    def __repr__(self) -> str:
        writer = _Short()
        facts = (f"{key!r}: {writer.repr(value)}" for key, value in self.items())
        return "{" + ",\n ".join(facts) + "}"


class _Short(reprlib.Repr):
    """Writes the first few of many names, and how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict = 3
        self.maxstring = self.maxother = LONGEST_TEXT

    def repr_list(self, x: list[Any], level: int) -> str:
        first = [self.repr1(value, level - 1) for value in x[:3]]
        more = [f"... {len(x)} in all"] if len(x) > 3 else []
        return f"[{', '.join(first + more)}]"


def layer_names(model: "ResNet50") -> list[str]:
    """List what may stand in ``model[""]``; IPython completes it."""
    return [layer.name for layer in model.layers]


def network_line(model: "ResNet50") -> str:
    """Name a network's weights, how it runs, and what goes in and comes out."""
    machine = model.backends[model.backend].machine()
    where = f"{model.backend} on {machine}" if machine else model.backend
    facts = [model.meta.get("name", "unnamed"), model.precision, where]
    facts += [f"{model.layers[-1].out_c} classes"]
    facts += [f"{_side(model)} x {_side(model)} pixels"]
    return f"{type(model).__name__}({', '.join(facts)})"


def network_text(model: "ResNet50") -> str:
    """Lay the layers out as text, and below them an INT8 network's edges."""
    table = format_summary(_rows(model))
    if model.precision not in INT8:
        return table
    return f"{table}\n\n{format_edges(model.layers, model.meta.get('saturated', {}))}"


def network_html(model: "ResNet50") -> str:
    """Show the line, and the table of layers when it is unfolded."""
    rows = _rows(model)
    total = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    title = f"{len(rows)} layers, {total[0]:,} parameters, {total[1]:,} multiply-adds"
    head = ["name", "operator", "output (NHWC)", "parameters", "MACs", ""]
    largest = max(row.macs for row in rows) or 1
    lines = []
    for name, op, shape, parameters, macs in rows:
        sizes = " x ".join(map(str, shape))
        lines.append([name, op, sizes, parameters, macs, html.bar(macs / largest)])
    return html.lines(network_line(model), html.fold(title, html.table(head, lines)))


def step_line(step: "Step") -> str:
    """Tell a step's name, operator, shapes and multiply-adds."""
    shapes = ", ".join(map(str, step.input_shapes))
    return f"Step({step.name}, {step.op}: {shapes} -> {step.output_shape}, {step.macs:,} MACs)"


def step_html(step: "Step") -> str:
    """Show the line, and the channels of the first image as a picture."""
    image, shown, across = channels_picture(step.output)
    low, high = step.output[0].min(), step.output[0].max()
    of = f"channels 0 to {shown - 1} of {step.output.shape[-1]}, {across} in a row, "
    of += f"from {low:.4g} (black) to {high:.4g}"
    return html.lines(step_line(step), html.picture(image, f"{step.name}: {of}"), of)


def channels_picture(output: Array) -> tuple[Image.Image, int, int]:
    """Draw the channels of a batch's first image side by side, on one scale from black to white.

    You get the picture, how many channels it has, and how many of them stand in a row.
    """
    values = np.nan_to_num(output[0].astype(np.float32))
    values = (values - values.min()) * (255 / (values.max() - values.min() or 1))
    if values.ndim == 1:  # after the average pool
        values = values[np.newaxis, np.newaxis]
    height, width, channels = values.shape
    shown = min(channels, MOST_CHANNELS)
    zoom = max(1, TILE // max(height, width))
    across = max(1, min(shown, WIDTH // (zoom * width + GAP)))
    down = -(-shown // across)
    size = across * (zoom * width + GAP) - GAP, down * (zoom * height + GAP) - GAP
    picture = Image.new("LA", size)  # gaps are transparent: a page may be light or dark
    for channel in range(shown):
        tile = Image.fromarray(values[:, :, channel].astype(np.uint8))
        row, column = divmod(channel, across)
        place = column * (zoom * width + GAP), row * (zoom * height + GAP)
        nearest = Image.Resampling.NEAREST
        picture.paste(tile.resize((zoom * width, zoom * height), nearest).convert("LA"), place)
    return picture, shown, across


def _side(model: "ResNet50") -> int:
    """Tell which side the network's own images have."""
    preset = model.meta.get("preset")
    return preset.side if preset else UNKNOWN_SIDE


def _rows(model: "ResNet50") -> list[SummaryRow]:
    return summarize(model.layers, _side(model), _side(model))
