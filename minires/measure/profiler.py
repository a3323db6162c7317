"""Where a network's time goes: step by step, and phase by phase if a step has phases."""

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from minires.backends import Ran, Record
from minires.errors import MiniresError, check_choice, check_is
from minires.layers import Array, Layer, Shape
from minires.measure import plots, session
from minires.measure.groups import GROUPS, SORTS, kind_of
from minires.measure.machine import Roofs, describe_measurement, known_roofs
from minires.measure.rows import FUSED, Event, Row, Work, events_of, shares, work_of
from minires.measure.text import format_columns, to_json
from minires.measure.trace import write_chrome_trace
from minires.measure.trust import (
    Cores,
    doubt_others,
    doubt_share,
    doubt_spread,
    mark,
    measure_until_steady,
    spread_of,
    verdict,
)
from minires.model import ResNet50
from minires.summary import ACTIVATION_BYTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Profile:
    """A profile, made by `profile`. It records while its with statement lasts.

    Examples
    --------
    >>> with minires.profile(model) as prof:
    ...     logits = model(x)
    >>> [row.name for row in prof.rows("stage")]
    ['input', 'conv1', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4', 'avgpool', 'fc']
    """

    def __init__(self, model: ResNet50, callback: Callable[[Event], None] | None = None) -> None:
        check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
        self.model, self.callback = model, callback
        self.precision, self.backend = model.precision, model.backend
        self._events: list[Event] = []
        self._told: list[tuple[Ran, str]] = []  # not turned into events yet; with the thread's name
        self._counted: dict[tuple[Layer, Shape], Work] = {}
        self._before: Record | None = None
        self._on = False
        self._core = Cores()  # watched in some runs: see `profile_in_turns`

    def __enter__(self) -> "Profile":
        if self._on:
            raise MiniresError("this profile is on already; profile(model) makes another")
        self._on = True
        self._before = self.model.record
        self.model.record = self._record
        return self

    def __exit__(self, *_: object) -> None:
        self.model.record = self._before
        self._on = False

    def _record(self, ran: Ran) -> None:
        if self._before:
            self._before(ran)
        self._told.append((ran, threading.current_thread().name))
        if self.callback:
            for event in self.events[-len(ran.layers) :]:
                self.callback(event)

    @property
    def events(self) -> list[Event]:
        """All steps, in the order they ran. They are made when you ask, not during a run."""
        for ran, thread in self._told:
            self._events.extend(events_of(ran, thread))
        self._told.clear()
        return self._events

    @property
    def runs(self) -> int:
        """How often the network was called."""
        return sum(event.layer.op == "input" and event.call == 0 for event in self.events)

    @property
    def seconds(self) -> float:
        """The time of all steps."""
        return math.fsum(event.ended - event.started for event in self.events)

    @property
    def doubts(self) -> list[str]:
        """The reasons to doubt the times: runs that differ too much, or that shared the cores."""
        times: list[float] = []
        for event in self.events:
            if event.layer.op == "input" and event.call == 0:  # a run begins
                times.append(0.0)
            times[-1] += event.ended - event.started
        name = f"the network in {self.precision}"
        differ = doubt_spread(name, spread_of(times)) if len(times) > 1 else []
        # Whoever waits for a GPU may rest meanwhile.
        others = self._core.others if self.backend == "numba" else 0.0
        return differ + doubt_others(name, others)

    def rows(
        self, group: str = "step", sort: str = "order", roofs: Roofs | None = None
    ) -> list[Row]:
        """Add the steps up.

        Parameters
        ----------
        group : str
            What makes a row: phase, step, operator, block or stage.
        sort : str
            By order, the row that ran first comes first. By time, calls, macs, bytes, gops or
            intensity, the largest comes first. You can also sort by name.
        roofs : Roofs, optional
            From `measure_roofs`. If you give none, those that it has kept on this machine, if any.

        Returns
        -------
        list of Row
            Their times add up to `seconds`.
        """
        check_choice("group", group, GROUPS)
        check_choice("sort", sort, SORTS)
        check_is("roofs", roofs, Roofs | None, "what minires.measure.measure_roofs returns")
        if not self.events:
            raise MiniresError("no network ran in this profile; call one in its with statement")
        weights = ACTIVATION_BYTES[self.precision] * sum(
            layer.parameters for layer in self.model.layers
        )
        if self.backend != "cuda":  # the roofs that are known are the CPU's
            roofs = roofs or known_roofs(self.precision)
        roofs = roofs._replace(weights=weights) if roofs else None
        found: dict[str, Row] = {}
        for event in self.events:
            done = self._work(event)
            for i, (phase, seconds) in enumerate(event.seconds.items()):
                name, kind = GROUPS[group](event.layer, phase), kind_of(event.layer)
                row = found.get(name, Row(name, kind, 0, 0.0, 0, 0, 0, roofs))
                multiplies = phase in (FUSED, "gemm")
                found[name] = row._replace(
                    kind=row.kind if row.kind == kind else "",
                    calls=row.calls + (i == 0 or group == "phase"),
                    seconds=row.seconds + seconds,
                    macs=row.macs + multiplies * done.macs,
                    bytes=row.bytes + done.bytes[phase],
                    weights=row.weights + multiplies * done.weights,
                )
        return sorted(found.values(), key=SORTS[sort])

    def _work(self, event: Event) -> Work:
        """Count a step's work, once for each shape of the images."""
        key = event.layer, event.shape
        if key not in self._counted:
            layers = self.model.layers
            self._counted[key] = work_of(event, layers, self.precision, self.backend)
        return self._counted[key]

    def table(self, group: str = "step", sort: str = "order", roofs: Roofs | None = None) -> str:
        """Lay the rows out as text, with their sum at the end; all figures are means of one run.

        Parameters
        ----------
        group, sort, roofs
            As for `rows`, where group is phase, step, operator, block or stage. Without roofs there
            are no columns of shares, and none are measured.

        Returns
        -------
        str
            A table, with an explanation of its columns beneath.
        """
        rows = self.rows(group, sort, roofs)
        of_roofs, doubts = rows[0].roofs, self.doubts
        head = ["name", "operator", "calls", "ms", "of time", "MMAC", "MB", "op/byte", "GOP/s"]
        cells = [self._cells(row, doubts) for row in rows]
        runs = self.runs or 1
        total = f"{1e3 * self.seconds / runs:.3f} ms, the mean of {runs} run{'s' * (runs != 1)}"
        images = sum(e.shape[0] for e in self.events if e.layer.op == "input") // runs
        total += f" of {images} images" * (images > 1)
        legend = (
            "MB: counted, each operand read once and each result written once.\n"
            "GOP/s: a multiply-add is two operations. short: takes too little time to tell a speed."
        )
        if of_roofs:
            head += ["of peak", "of roof", "roof"]
            doubts = [*doubts, *of_roofs.doubts]
            for row, of_row in zip(rows, cells, strict=True):
                of_row += shares(row, doubts)
            for row in rows:
                doubts += [] if row.short else doubt_share(row.name, row.of_roof)
            legend += (
                "\nof peak: of the instruction's, measured. roof: what takes longest at its "
                "measured best,\ncomputing or moving the MB."
            )
        lines = [self.title, format_columns(head, cells), total, legend]
        return "\n".join([*lines, verdict(doubts)] if doubts else lines)

    def _cells(self, row: Row, doubts: Sequence[str]) -> list[str]:
        """Write a row's cells, for one run, without its shares of the roofs."""
        runs = self.runs or 1
        speed = mark(f"{row.gops:.1f}", doubts) if row.macs else ""
        return [
            row.name,
            row.kind,
            f"{row.calls / runs:.0f}",
            mark(f"{1e3 * row.seconds / runs:.3f}", doubts),
            mark(f"{row.seconds / (self.seconds or math.inf):.1%}", doubts),
            f"{row.macs / runs / 1e6:.1f}",
            f"{row.bytes / runs / 1e6:.2f}",
            f"{row.intensity:.1f}",
            "short" if row.short else speed,
        ]

    @property
    def title(self) -> str:
        """The network, its input and the machine."""
        shapes = [event.shape for event in self.events if event.layer.op == "input"]
        batch = sum(shape[0] for shape in shapes) // (self.runs or 1)
        size = " x ".join(map(str, [batch, *shapes[0][1:]])) if shapes else "nothing"
        network = f"{self.model.meta.get('name', 'ResNet-50')}, {self.precision}, {self.backend}"
        machine = ""  # the CPU
        if self.backend == "cuda":
            from minires.kernels.cuda.driver import open_gpu  # only here: others have no numba-cuda

            machine = open_gpu().name
        return f"{network}, input {size}, on {describe_measurement(machine)}"

    def to_json(self, roofs: Roofs | None = None) -> str:
        """Write the `rows` of phases as JSON, with the network and the machine.

        Parameters
        ----------
        roofs : Roofs, optional
            As for `rows`; without them rows have no shares, and ``peak_gops`` is null.

        Returns
        -------
        str
            An object with ``title``, ``precision``, ``backend``, ``seconds``, ``runs``,
            ``doubts``, ``peak_gops`` and ``rows``, whose figures are sums over all runs.
            ``weights`` are counted in bytes; ``share`` and ``of_roof`` are shares of 1.
        """
        rows = self.rows("phase", roofs=roofs)
        of_roofs = rows[0].roofs
        told = [*Row._fields[:-1], "gops", "intensity"]  # the last field is the roofs
        if of_roofs:
            told += ["share", "of_roof", "bound"]
        found = [{key: getattr(row, key) for key in told} for row in rows]
        document = {key: getattr(self, key) for key in ("title", "precision", "backend", "seconds")}
        document["runs"] = self.runs
        document["doubts"] = [*self.doubts, *(of_roofs.doubts if of_roofs else ())]
        document["peak_gops"] = of_roofs.peak if of_roofs else None
        return to_json(document | {"rows": found})

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a file that https://ui.perfetto.dev and chrome://tracing open.

        In it each thread that called the network has a row, with spans for runs, stages, steps and
        phases. The kernels' own threads have a row each. A thread's work in a step is a span, and
        so is its wait for the threads that are slower.

        Parameters
        ----------
        path : path-like
            The file to write.
        """
        write_chrome_trace(path, [self])

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        group: str = "step",
        dark: bool = False,
    ) -> "Figure":
        """Draw the rows' times as bars; needs matplotlib.

        Parameters
        ----------
        path : path-like, optional
            The picture's file, whose suffix chooses the format: .png, .svg or .pdf. If you give
            none, nothing is written.
        group : str
            As for `rows`.
        dark : bool
            Whether to draw on black, for a dark page.

        Returns
        -------
        matplotlib.figure.Figure
            The drawing. A notebook shows it.
        """
        rows = self.rows(group)
        size = 10, 1.4 + 0.18 * len(rows), 1, dark
        with plots.drawing(path, self.title, *size, doubts=self.doubts) as (drawn, axes):
            plots.bars_by_kind(
                axes,
                [row.name for row in rows],
                [row.kind or "several" for row in rows],
                [1e3 * row.seconds / (self.runs or 1) for row in rows],
            )
            axes.set_xlabel("milliseconds a run")
            drawn.legend(loc="outside right upper")
        return drawn

    def __repr__(self) -> str:
        return f"Profile({self.model!r}, {self.runs} run{'s' * (self.runs != 1)})"

    __str__ = table

    def _repr_html_(self) -> str | None:
        """Show the profile in a notebook: stages as bars, and the table of steps to unfold."""
        return plots.page(lambda: self.plot(group="stage"), str(self)) if self.events else None


def profile(model: ResNet50, callback: Callable[[Event], None] | None = None) -> Profile:
    """Watch a network while a with statement lasts: ``with profile(model) as prof: model(x)``.

    Parameters
    ----------
    model : ResNet50
        Any precision, either backend; `unfuse` makes one whose steps are apart. Hooks on its layers
        have a compiled network copy each activation in and out, which counts as the step's.
    callback : callable, optional
        Called as ``callback(event)`` after each step, whose time it does not change; of a compiled
        network's steps when all have run. It must not run a compiled network: the one that runs
        holds all threads until it is done.

    Returns
    -------
    Profile
        Its table, to_json, export_chrome_trace and plot tell where the time went.

    Examples
    --------
    >>> with minires.profile(model) as prof:
    ...     logits = model(x)
    >>> len(prof.rows())
    57
    """
    return Profile(model, callback)


def profile_in_turns(
    models: Mapping[str, ResNet50], x: Array, runs: int = 10
) -> dict[str, Profile]:
    """Run networks, by precision, in turns, and profile all runs but the first of each.

    The first run lays out a network's buffers. Where the runs differ too much, all are measured
    again; doubts that remain are in the profiles' `doubts`.
    """
    for model in models.values():
        model(x)
    session.say(f"profiling {', '.join(models)}: {runs} run{'s' * (runs != 1)} of each")

    def measure() -> dict[str, Profile]:
        profiles = {precision: profile(model) for precision, model in models.items()}
        for _ in range(runs):
            for precision, model in models.items():
                model(x)  # brings its weights into the cache again
                prof = profiles[precision]
                with prof, prof._core:
                    model(x)
        return profiles

    found, _ = measure_until_steady(
        measure, lambda profiles: [doubt for prof in profiles.values() for doubt in prof.doubts]
    )
    return found
