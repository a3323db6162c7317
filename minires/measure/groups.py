"""The ways to group and to sort a profile's rows.

They are not in the profiler, because the command line lists their names in its help, and the
profiler needs Numba, which takes a second to import.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minires.layers import Layer

if TYPE_CHECKING:
    from minires.measure.rows import Row


def kind_of(layer: Layer) -> str:
    """Name an operator; for a convolution add its kernel, stride and whether it adds a residual."""
    if layer.op != "conv":
        return layer.op
    stride = f"/{layer.stride}" if layer.stride > 1 else ""
    return f"conv {layer.kernel}x{layer.kernel}{stride}{' + add' if layer.inputs[1:] else ''}"


GROUPS: dict[str, Callable[[Layer, str], str]] = {
    "phase": lambda layer, phase: f"{layer.name} {'' if phase == layer.op else phase}".rstrip(),
    "step": lambda layer, _: layer.name,
    "operator": lambda layer, _: kind_of(layer),
    "block": lambda layer, _: ".".join(layer.name.split(".")[: 2 if "layer" in layer.name else 1]),
    "stage": lambda layer, _: layer.name.split(".")[0],
}
SORTS: dict[str, Callable[["Row"], Any]] = {
    "order": lambda row: 0,  # as they run
    "time": lambda row: -row.seconds,
    "calls": lambda row: -row.calls,
    "macs": lambda row: -row.macs,
    "bytes": lambda row: -row.bytes,
    "gops": lambda row: -row.gops,
    "intensity": lambda row: -row.intensity,
    "name": lambda row: row.name,
}
