"""What can compute a network: the definitions, or an engine that takes their place."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from minires.errors import MiniresError, check_choice
from minires.layers import Array, Layer, Record, Shape


class Engine(Protocol):
    """Runs a network in place of the definitions, by compiled kernels that are laid out for it."""

    def __call__(self, x: Array, record: Record | None, started: float) -> Array:
        """Run the whole network; `started` is when the caller began, by time.perf_counter."""

    def run(self, shape: Shape, layer: Layer, *inputs: Array) -> Array:
        """Run one layer of a network whose input has this shape."""


def _needs_none(*_: object) -> Engine:
    raise AssertionError("the definitions need no engine")


class Backend(NamedTuple):
    """A way to compute: the precisions it runs, and the function that makes its engine."""

    precisions: tuple[str, ...]
    make: Callable[..., Engine] = _needs_none  # of layers, params and precision


def check_backend(backends: Mapping[str, Backend], backend: str, precision: str) -> None:
    """Refuse a backend that is unknown, or that does not run the precision."""
    check_choice("backend", backend, backends)
    runs = backends[backend].precisions
    if precision not in runs:
        raise MiniresError(f"backend {backend} runs {', '.join(runs)}, and not {precision}")
