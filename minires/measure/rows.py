"""What a profile holds: steps that have run, and rows that add them up, beside their roofs."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minires.backends import Ran
from minires.errors import MiniresError
from minires.layers import Layer, PhaseTime, Shape
from minires.measure.machine import Roofs
from minires.measure.trust import percent
from minires.summary import ACTIVATION_BYTES, summarize

SHORT = 20e-6  # seconds: a call that is shorter shows its time, but no speed
FUSED, EPILOGUE = "fused", "epilogue"  # a compiled step's only phase; a NumPy step's last phase


class Event(NamedTuple):
    """A step that has run."""

    layer: Layer
    shape: Shape  # of the images that went through together, NCHW
    call: int  # 0 for the first, because an engine may run a large batch in several calls
    started: float  # seconds, as time.perf_counter counts them
    ended: float
    phases: tuple[PhaseTime, ...]  # empty for a compiled step
    thread: str  # the name of Python's thread that called the network
    # When each of the kernels' threads began, and was done with its pieces; None if it had none.
    worked: tuple[tuple[float, float] | None, ...] = ()

    @property
    def seconds(self) -> dict[str, float]:
        """The time of each phase. They add up to the step's time.

        The microseconds between phases count for the last phase.
        """
        found: dict[str, float] = {}
        for name, started, ended in self.phases:
            found[name] = found.get(name, 0.0) + ended - started
        gemm = self.layer.op in ("conv", "linear")
        rest = (EPILOGUE if self.phases else FUSED) if gemm else self.layer.op
        between = self.ended - self.started - math.fsum(found.values())
        found[rest] = found.get(rest, 0.0) + between
        return found


def events_of(ran: Ran, thread: str) -> Iterator[Event]:
    """List the steps that a network's record is told of, in the order they ran."""
    worked = ran.worked if len(ran.worked) else [()] * len(ran.layers)
    for layer, times, threads in zip(ran.layers, ran.times, worked, strict=True):
        started, ended = map(float, times)
        step = Event(layer, ran.shape, ran.call, started, ended, tuple(ran.phases), thread)
        told = ((float(began), float(done)) for began, done in threads)
        # NaN would make an event differ from its equal.
        yield step._replace(worked=tuple(None if math.isnan(pair[0]) else pair for pair in told))


class Work(NamedTuple):
    """The work of a step."""

    macs: int
    bytes: dict[str, int]  # by phase
    weights: int  # bytes


def work_of(event: Event, layers: Sequence[Layer], precision: str, backend: str) -> Work:
    """Count a step's multiplications, and the bytes that each phase reads and writes."""
    layer, shape = event.layer, event.shape
    rows = summarize(layers, shape[2], shape[3], shape[0])
    shapes = {row.name: row.output_shape for row in rows}
    size = ACTIVATION_BYTES[precision]
    if backend == "numpy" and precision in ("bf16", "fp16"):
        size = 4  # NumPy keeps rounded values as float32
    y = math.prod(shapes[layer.name])
    inputs = [shapes[name] for name in layer.inputs]
    x = math.prod(inputs[0]) if inputs else math.prod(shape)
    residual = y * (len(inputs) - 1) if inputs else 0
    macs = layer.macs(shapes[layer.name])
    columns = macs // layer.out_c
    w = layer.kernel**2 * layer.in_c * layer.out_c
    acc = 4 * y
    read = min(x, columns) if macs else x  # a 1x1 kernel with a stride skips pixels
    y_size = 4 if layer.op == "linear" else size  # logits are float32
    x_size = size if inputs else 4  # and so are the pixels
    moved = {
        FUSED: size * (read + w + residual) + y_size * y,
        "im2col": size * (read + columns),
        "gemm": size * (columns + w) + acc,
        EPILOGUE: acc + size * residual + y_size * y,
        "quantize": acc + size * y,
        layer.op: x_size * x + size * residual + y_size * y,
    }
    return Work(macs, moved, size * w if macs else 0)


class Row(NamedTuple):
    """A line of a profile: a phase, a step, or a group of them. Figures are sums over all calls.

    Examples
    --------
    >>> with minires.profile(model) as prof:
    ...     logits = model(x)
    >>> row = prof.rows("stage")[1]
    >>> row.name, row.calls, row.macs
    ('conv1', 1, 9633792)
    """

    name: str
    kind: str  # the operator, for a convolution with its kernel and stride
    calls: int
    seconds: float
    macs: int
    bytes: int  # counted, not measured: each operand read once, each result written once
    weights: int  # how many of the bytes are weights
    roofs: Roofs | None  # None if they are not measured yet on this machine

    @property
    def short(self) -> bool:
        """Whether a call takes too little time to tell a speed."""
        return self.seconds / self.calls < SHORT

    @property
    def gops(self) -> float:
        """10^9 multiplications and additions a second."""
        return 2 * self.macs / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0

    @property
    def share(self) -> float:
        """The share of the measured peak that it reaches."""
        return self.gops / self._measured_roofs().peak

    @property
    def least(self) -> dict[str, float]:
        """The seconds that computing, and moving its bytes, would take, each at its roof.

        These are the roofline's two times (Williams et al. 2009, section 3). A call's activations
        come from the level of the memory that holds them. Its weights come from the level that
        holds the weights of all layers, because all are read between two uses of the same ones.
        """
        roofs = self._measured_roofs()
        level = roofs.level((self.bytes - self.weights) / max(1, self.calls))
        home = roofs.level(roofs.weights)
        moving = {level.level: (self.bytes - self.weights) / (level.all * 1e9)}
        moving[home.level] = moving.get(home.level, 0.0) + self.weights / (home.all * 1e9)
        name = max(moving, key=lambda level: moving[level])
        return {"compute": 2 * self.macs / (roofs.peak * 1e9), name: sum(moving.values())}

    @property
    def bound(self) -> str:
        """The roof that limits it: compute, or the memory level that takes most of the time."""
        return max(self.least, key=lambda roof: self.least[roof])

    @property
    def of_roof(self) -> float:
        """The share of its roof that it reaches."""
        return max(self.least.values()) / self.seconds if self.seconds else 0.0

    def _measured_roofs(self) -> Roofs:
        if self.roofs is None:
            raise MiniresError(
                "this machine's roofs are not measured yet; minires.measure.measure_roofs "
                "measures them, and rows(roofs=...) takes them"
            )
        return self.roofs


def shares(row: Row, doubts: Sequence[str]) -> list[str]:
    """Say how much of its peak and of its roof a row reaches, and which roof that is."""
    if row.short:
        return ["", "", ""]
    of_peak = percent(row.share, doubts) if row.macs else ""
    return [of_peak, percent(row.of_roof, doubts), row.bound]
