"""A profile as a trace: when each run, stage, step and phase began and ended, for Perfetto.

The format is the Trace Event Format of Chrome, whose description is at
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. A complete event
("ph": "X") is a span. Spans of one row nest by their times, so an outer one has to come first.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minires.measure.groups import GROUPS, kind_of
from minires.writing import write_whole

if TYPE_CHECKING:
    from minires.measure.profiler import Profile
    from minires.measure.rows import Event


def write_chrome_trace(path: str | os.PathLike[str], profiles: Sequence["Profile"]) -> None:
    """Write profiles as JSON in the Trace Event Format.

    Each profile is a process there. It has a row for each thread that called the network: in it a
    span for each run, beneath it the stages, the steps, and their phases if they have any. Each of
    the kernels' own threads has a row, too. A thread's part of a step is its work, named by the
    layer, and after it the wait for the threads that are slower.
    """
    written: list[dict[str, Any]] = []
    origin = min((prof.events[0].started for prof in profiles if prof.events), default=0.0)
    for pid, prof in enumerate(profiles, start=1):
        written.append(_name("process_name", pid, 0, prof.title))
        for tid, (thread, spans) in enumerate(_rows(prof), start=1):
            written.append(_name("thread_name", pid, tid, thread))
            for span in spans:
                started, ended = (round(1e6 * (at - origin), 3) for at in span.pop("times"))
                place = {"ph": "X", "pid": pid, "tid": tid}
                written.append(span | place | {"ts": started, "dur": round(ended - started, 3)})
    document = {"traceEvents": written, "displayTimeUnit": "ms"}
    write_whole(path, json.dumps(document).encode())


def _rows(prof: "Profile") -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Name each thread, and list its spans: first those that called, then the kernels' own."""
    for thread in dict.fromkeys(event.thread for event in prof.events):
        yield thread, _spans(prof, [event for event in prof.events if event.thread == thread])
    in_order = sorted(prof.events, key=lambda event: event.started)  # several may have called
    for number in range(1, max((len(event.worked) for event in in_order), default=0)):
        yield f"minires {number}", (span for e in in_order for span in _part_of(e, number))


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def _spans(prof: "Profile", events: Sequence["Event"]) -> Iterator[dict[str, Any]]:
    """List a thread's spans, each before those inside of it."""
    for number, run in enumerate(_parts(events, _begins_a_run), start=1):
        args = {"images": sum(event.shape[0] for event in run if event.layer.op == "input")}
        yield _span(f"run {number}", "run", run, args)
        for stage in _parts(run, lambda one, other: _stage_of(one) != _stage_of(other)):
            yield _span(_stage_of(stage[0]), "stage", stage, {})
            for event in stage:
                work = prof._work(event)
                moved = sum(work.bytes[phase] for phase in event.seconds)
                told = {"operator": kind_of(event.layer), "macs": work.macs, "bytes": moved}
                yield _span(event.layer.name, "step", [event], told)
                for name, started, ended in event.phases:
                    yield {"name": name, "cat": "phase", "times": (started, ended), "args": {}}
                yield from _part_of(event, 0)  # whoever calls is thread 0


def _part_of(event: "Event", number: int) -> Iterator[dict[str, Any]]:
    """List what one of the kernels' threads did in a step: its work, and its wait for others."""
    for part in event.worked[number : number + 1]:
        if part:  # else the others left it nothing to do
            yield {"name": event.layer.name, "cat": "work", "times": part, "args": {}}
            yield {"name": "wait", "cat": "wait", "times": (part[1], event.ended), "args": {}}


def _span(name: str, what: str, events: Sequence["Event"], args: dict[str, Any]) -> dict[str, Any]:
    times = events[0].started, events[-1].ended
    return {"name": name, "cat": what, "times": times, "args": args}


def _stage_of(event: "Event") -> str:
    return GROUPS["stage"](event.layer, "")


def _begins_a_run(_: "Event", event: "Event") -> bool:
    return event.layer.op == "input" and event.call == 0


def _parts(events: Sequence["Event"], divided: Any) -> Iterator[Sequence["Event"]]:
    """Cut a sequence of events between two neighbours that `divided` says are apart."""
    first = 0
    for at in range(1, len(events) + 1):
        if at == len(events) or divided(events[at - 1], events[at]):
            yield events[first:at]
            first = at
