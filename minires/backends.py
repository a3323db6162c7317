"""Which precisions and backends a network can run in, and what an engine has to offer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from minires.errors import MiniresError, check_choice
from minires.layers import Array, Layer, PhaseTime, Shape

INT8 = {"int8", "int8-simulated"}  # run with parameters in eight bits, all others with real numbers


class Ran(NamedTuple):
    """Steps that have run one after another, as a network's record is told of them."""

    layers: Sequence[Layer]
    shape: Shape  # of the images that went through together, NCHW
    call: int  # 0 for the first, because an engine may run a large batch in several calls
    times: Any  # when each step started and ended, by time.perf_counter: (steps, 2)
    phases: Sequence[PhaseTime] = ()  # of a step that ran phase by phase
    # When each of the kernels' threads began a step, and was done with its pieces: (steps, threads,
    # 2). The caller is thread 0. A thread that found no piece has NaN.
    worked: Any = ()


Record = Callable[[Ran], None]


class Engine(Protocol):
    """Runs a network in place of the definitions, by compiled kernels that are laid out for it."""

    def __call__(self, x: Array, record: Record | None, started: float) -> Array:
        """Run the whole network; `started` is when the caller began, by time.perf_counter."""

    def run(self, shape: Shape, layer: Layer, *inputs: Array) -> Array:
        """Run one layer of a network whose input has this shape."""


def _needs_none(*_: object) -> Engine:
    raise AssertionError("the definitions need no engine")


class Backend(NamedTuple):
    """A way to compute: the precisions that it runs, and the functions that know its engine."""

    precisions: tuple[str, ...]
    make: Callable[..., Engine] = _needs_none  # of layers, params and precision
    machine: Callable[[], str] = str  # names what it computes with: "" where that is NumPy


def check_backend(backends: Mapping[str, Backend], backend: str, precision: str) -> None:
    """Refuse a backend that is unknown, or that does not run the precision."""
    check_choice("backend", backend, backends)
    runs = backends[backend].precisions
    if precision not in runs:
        raise MiniresError(f"backend {backend} runs {', '.join(runs)}, and not {precision}")


def check_parameters(loaded: str, precision: str) -> None:
    """Refuse a precision that needs other parameters than those that were loaded."""
    if (loaded in INT8) != (precision in INT8):
        raise MiniresError(
            f"weights in {loaded} cannot run in {precision}; "
            f'load a network that can: minires.resnet50(weights, precision="{precision}")'
        )
