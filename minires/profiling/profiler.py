"""Where the time of a network goes: step by step, and phase by phase where phases are apart."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minires import plots
from minires import reference as ref
from minires.errors import MiniresError
from minires.hooks import Record
from minires.kernels.peak import Bandwidth
from minires.layers import Array, Layer, Shape
from minires.model import ResNet50
from minires.profiling.machine import Roofs, describe_machine, measure_roofs
from minires.profiling.text import format_columns
from minires.summary import summarize

# A NumPy convolution's phases are calls of these definitions, as layers.py makes them. What
# remains of it, the additions and the ReLU, is its epilogue.
PHASES = {
    "im2col_ref": "im2col",
    "gemm_f32_ref": "gemm",
    "gemm_u8s8_ref": "gemm",
    "requantize_ref": "requantize",
    "quantize_ref": "quantize",
    "fake_quantize_ref": "quantize",
    "round_bf16_ref": "round",
}
FUSED, EPILOGUE = "fused", "epilogue"  # a compiled step's one phase; what remains of a NumPy one
BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int8-simulated": 4}  # of an activation or a weight


class Event(NamedTuple):
    """A step that has run."""

    layer: Layer
    shape: Shape  # of the images that the network was given, NCHW
    started: float  # seconds, as time.perf_counter counts them
    ended: float
    phases: tuple[tuple[str, float, float], ...]  # name, start and end of those that were timed

    @property
    def seconds(self) -> dict[str, float]:
        """The time of each phase, the remaining one included; they add up to the step's."""
        found: dict[str, float] = {}
        for name, started, ended in self.phases:
            found[name] = found.get(name, 0.0) + ended - started
        gemm = self.layer.op in ("conv", "linear")
        rest = EPILOGUE if self.phases else FUSED if gemm else self.layer.op
        return found | {rest: self.ended - self.started - math.fsum(found.values())}


class Row(NamedTuple):
    """A line of a profile: a phase, a step, or a group of them."""

    name: str
    kind: str  # the operator; of a convolution its kernel and stride
    calls: int
    seconds: float  # of all calls, as are the next two
    macs: int
    bytes: int  # each operand read once, each result written once
    roofs: Roofs

    @property
    def gops(self) -> float:
        """10^9 multiplications and additions a second."""
        return 2 * self.macs / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0

    @property
    def share(self) -> float:
        """Of the measured peak."""
        return self.gops / self.roofs.peak

    @property
    def roof(self) -> float:
        """What the roofline allows, in 10^9 operations a second (Williams et al. 2009, section 3).

        The peak, or what the level of the memory that holds a call's bytes can feed.
        """
        return min(self.roofs.peak, self.intensity * self._level.all)

    @property
    def bound(self) -> str:
        """What stands in the way: compute, or that level of the memory."""
        return "compute" if self.roof == self.roofs.peak else self._level.level

    @property
    def _level(self) -> Bandwidth:
        return self.roofs.level(self.bytes / max(1, self.calls))


GROUPS: dict[str, Callable[[Layer, str], str]] = {
    "phase": lambda layer, phase: f"{layer.name} {'' if phase == layer.op else phase}".rstrip(),
    "step": lambda layer, _: layer.name,
    "operator": lambda layer, _: kind_of(layer),
    "block": lambda layer, _: ".".join(layer.name.split(".")[: 2 if "layer" in layer.name else 1]),
    "stage": lambda layer, _: layer.name.split(".")[0],
}
SORTS: dict[str, Callable[[Row], Any]] = {
    "order": lambda row: 0,  # as they run
    "time": lambda row: -row.seconds,
    "calls": lambda row: -row.calls,
    "macs": lambda row: -row.macs,
    "bytes": lambda row: -row.bytes,
    "gops": lambda row: -row.gops,
    "intensity": lambda row: -row.intensity,
    "name": lambda row: row.name,
}


def kind_of(layer: Layer) -> str:
    """Name an operator; of a convolution also its kernel, its stride and whether it adds."""
    if layer.op != "conv":
        return layer.op
    stride = f"/{layer.stride}" if layer.stride > 1 else ""
    return f"conv {layer.kernel}x{layer.kernel}{stride}{' + add' if layer.inputs[1:] else ''}"


class Profile:
    """What `profile` returns. It listens while its with statement lasts, and tells afterwards.

    Attributes
    ----------
    events : list of Event
        All steps, in the order they ran.
    """

    def __init__(self, model: ResNet50, callback: Callable[[Event], None] | None = None) -> None:
        self.model, self.callback = model, callback
        self.precision, self.backend = model.precision, model.backend
        self.events: list[Event] = []
        self._before: Record | None = None
        self._phases: list[tuple[str, float, float]] = []
        self._definitions: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> "Profile":
        self._before, self.model.record = self.model.record, self._record
        for name, phase in PHASES.items() if self.backend == "numpy" else ():
            self._definitions[name] = getattr(ref, name)
            setattr(ref, name, self._timed(getattr(ref, name), phase))
        return self

    def __exit__(self, *_: object) -> None:
        self.model.record = self._before
        while self._definitions:
            setattr(ref, *self._definitions.popitem())

    def _timed(self, definition: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            result = definition(*arguments, **more)
            self._phases.append((phase, started, time.perf_counter()))
            return result

        return run

    def _record(self, layer: Layer, shape: Shape, started: float, ended: float) -> None:
        if self._before:
            self._before(layer, shape, started, ended)
        # A definition that a user calls between two steps is no part of the second.
        inside = layer.op in ("conv", "linear")
        phases = tuple(phase for phase in self._phases if inside and phase[1] >= started)
        self._phases.clear()
        self.events.append(Event(layer, shape, started, ended, phases))
        if self.callback:
            self.callback(self.events[-1])

    @property
    def seconds(self) -> float:
        """The time of all steps."""
        return math.fsum(event.ended - event.started for event in self.events)

    def rows(self, group: str = "step", sort: str = "order") -> list[Row]:
        """Add the steps up.

        Parameters
        ----------
        group : str
            phase, step, operator, block or stage: what makes a row.
        sort : str
            What comes first: that which ran first, by order; else the most time, calls, macs,
            bytes, gops or intensity; or by name.

        Returns
        -------
        list of Row
            Their times add up to `seconds`.
        """
        choices: list[tuple[str, str, Mapping[str, Any]]]
        choices = [("group", group, GROUPS), ("sort", sort, SORTS)]
        for what, value, known in choices:
            if value not in known:
                raise MiniresError(f"{what} is {value!r}; wanted one of {', '.join(known)}")
        roofs = measure_roofs(self.precision)
        found: dict[str, Row] = {}
        work: dict[tuple[Layer, Shape], Work] = {}
        for event in self.events:
            key = event.layer, event.shape
            work[key] = done = work.get(key) or self._work(*key)
            for i, (phase, seconds) in enumerate(event.seconds.items()):
                name, kind = GROUPS[group](event.layer, phase), kind_of(event.layer)
                row = found.get(name, Row(name, kind, 0, 0.0, 0, 0, roofs))
                found[name] = row._replace(
                    kind=row.kind if row.kind == kind else "",
                    calls=row.calls + (i == 0 or group == "phase"),
                    seconds=row.seconds + seconds,
                    macs=row.macs + (done.macs if phase in (FUSED, "gemm") else 0),
                    bytes=row.bytes + done.bytes[phase],
                )
        return sorted(found.values(), key=SORTS[sort])

    def _work(self, layer: Layer, shape: Shape) -> "Work":
        """Count what a step computes, and what each phase of it reads and writes."""
        layers = self.model.layers if layer in self.model.layers else self.model.apart
        rows = summarize(layers, shape[2], shape[3], shape[0])
        shapes = {row.name: row.output_shape for row in rows}
        size = BYTES[self.precision]
        if self.backend == "numpy" and self.precision == "bf16":
            size = 4  # rounded, but kept as float32
        y, inputs = math.prod(shapes[layer.name]), [shapes[name] for name in layer.inputs]
        x = math.prod(inputs[0]) if inputs else math.prod(shape)
        residual = y * (len(inputs) - 1) if inputs else 0
        K, macs = layer.kernel**2 * layer.in_c, layer.macs(shapes[layer.name])
        columns, w, acc = macs // layer.out_c, K * layer.out_c, 4 * y  # columns: M * K
        y_size = 4 if layer.op == "linear" else size  # logits are float32
        x_size = size if inputs else 4  # and so are the pixels
        moved = {
            FUSED: size * (x + w + residual) + y_size * y,
            "im2col": size * (x + columns),
            "gemm": size * (columns + w) + acc,
            EPILOGUE: 2 * acc + size * residual,
            "requantize": acc + y_size * y,
            "quantize": 2 * acc,
            "round": 2 * acc,
            layer.op: x_size * x + size * residual + y_size * y,
        }
        return Work(macs, moved)

    def table(self, group: str = "step", sort: str = "order") -> str:
        """Lay the rows out as text, their sum at the end.

        Parameters
        ----------
        group, sort : str
            As for `rows`.

        Returns
        -------
        str
            Times and shares of the time are of all calls; MMAC and MB are those of one.
        """
        rows, whole = self.rows(group, sort), self.seconds or math.inf
        head = ["name", "operator", "calls", "ms", "of time", "MMAC", "MB", "GOP/s", "of peak",
                "op/byte", "bound by"]  # fmt: skip
        cells = [
            [r.name, r.kind, str(r.calls), f"{1e3 * r.seconds:.3f}", f"{r.seconds / whole:.1%}",
             f"{r.macs / r.calls / 1e6:.1f}", f"{r.bytes / r.calls / 1e6:.2f}", f"{r.gops:.1f}",
             f"{r.share:.0%}", f"{r.intensity:.1f}", r.bound]
            for r in rows
        ]  # fmt: skip
        runs = sum(event.layer.op == "input" for event in self.events)
        total = f"{1e3 * self.seconds:.3f} ms in {runs} run{'s' if runs != 1 else ''}"
        return f"{self.title}\n{format_columns(head, cells)}\n{total}"

    @property
    def title(self) -> str:
        """What was measured, on what."""
        shapes = {" x ".join(map(str, event.shape)) for event in self.events}
        return (
            f"{self.precision}, {self.backend}, input {' and '.join(sorted(shapes))}, on "
            f"{describe_machine()}"
        )

    def to_json(self) -> str:
        """Write what `rows` of phases tell as JSON, with what it was measured on.

        Returns
        -------
        str
            An object with ``title``, ``precision``, ``backend``, ``seconds``, ``peak_gops`` and
            ``rows``.
        """
        rows = self.rows("phase")
        found = [
            {
                **{key: value for key, value in row._asdict().items() if key != "roofs"},
                **{key: getattr(row, key) for key in ("gops", "share", "intensity", "bound")},
            }
            for row in rows
        ]
        document = {key: getattr(self, key) for key in ("title", "precision", "backend", "seconds")}
        document["peak_gops"] = measure_roofs(self.precision).peak
        return json.dumps(document | {"rows": found}, indent=2)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a file that Perfetto and chrome://tracing open: see `write_chrome_trace`.

        Parameters
        ----------
        path : path-like
            Where to.
        """
        write_chrome_trace(path, [self])

    def plot(self, path: str | os.PathLike[str], group: str = "step") -> None:
        """Draw the rows' times as bars; needs matplotlib.

        Parameters
        ----------
        path : path-like
            The picture's file: its suffix chooses the format.
        group : str
            As for `rows`.
        """
        rows, runs = self.rows(group), sum(e.layer.op == "input" for e in self.events) or 1
        with plots.figure(path, self.title, height=1 + 0.18 * len(rows)) as axes:
            kinds = list(dict.fromkeys(row.kind or "several" for row in rows))
            for kind in kinds:
                mine = [row for row in rows if (row.kind or "several") == kind]
                times = [1e3 * row.seconds / runs for row in mine]
                axes.barh([row.name for row in mine], times, label=kind)
            axes.set_yticks([row.name for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_xlabel("milliseconds a run")
            axes.legend(loc="lower right")


class Work(NamedTuple):
    """What a step takes."""

    macs: int
    bytes: dict[str, int]  # by phase


def profile(model: ResNet50, callback: Callable[[Event], None] | None = None) -> Profile:
    """Watch a network while a with statement lasts: ``with profile(model) as prof: model(x)``.

    Parameters
    ----------
    model : ResNet50
        Any precision, either backend; from fused=False come the parts of the steps. Hooks on its
        layers have a compiled network copy each activation in and out, which counts as the step's.
    callback : callable, optional
        Called as ``callback(event)`` after each step, whose time it does not change.

    Returns
    -------
    Profile
        Its table, to_json, export_chrome_trace and plot tell where the time went.
    """
    return Profile(model, callback)


def profile_in_turns(
    models: Mapping[str, ResNet50], x: Array, runs: int = 10
) -> dict[str, Profile]:
    """Run networks in turns, each several times, and profile all runs but the first.

    Parameters
    ----------
    models : mapping
        Networks, by precision.
    x : ndarray
        What they are run on.
    runs : int
        How often each is measured; before that it runs once, which lays out its buffers.

    Returns
    -------
    dict
        A profile of each.
    """
    for model in models.values():
        model(x)
    found = {precision: profile(model) for precision, model in models.items()}
    for _ in range(runs):
        for precision, model in models.items():
            with found[precision]:
                model(x)
    return found


def write_chrome_trace(path: str | os.PathLike[str], profiles: Sequence[Profile]) -> None:
    """Write what ran when as JSON in the Trace Event Format, which Perfetto opens.

    Parameters
    ----------
    path : path-like
        Where to.
    profiles : sequence of Profile
        A process each: steps, and beneath them their phases where these are apart.
    """
    spans: list[dict[str, Any]] = []
    start = min((prof.events[0].started for prof in profiles if prof.events), default=0.0)
    for pid, prof in enumerate(profiles, start=1):
        spans.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": prof.title}})
        for event in prof.events:
            work = prof._work(event.layer, event.shape)
            moved = sum(work.bytes[phase] for phase in event.seconds)
            step = (event.layer.name, event.started, event.ended)
            for name, started, ended in [step, *event.phases]:
                span = {"name": name, "cat": kind_of(event.layer), "ph": "X", "pid": pid, "tid": 1}
                span |= {"ts": 1e6 * (started - start), "dur": 1e6 * (ended - started)}
                spans.append(span)
            spans[-1 - len(event.phases)]["args"] = {"macs": work.macs, "bytes": moved}
    document = json.dumps({"traceEvents": spans, "displayTimeUnit": "ms"})
    Path(path).write_text(document, encoding="utf-8")
