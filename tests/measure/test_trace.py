"""The trace is what Perfetto's importer takes: named rows, and spans that nest by their times."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minires.kernels.cpu import get_num_threads
from minires.measure.profiler import Profile, profile
from minires.measure.trace import write_chrome_trace
from minires.model import ResNet50
from tests.seeded_weights import seeded_input

X = seeded_input((2, 3, 32, 32))
OUTER = {"stage": "run", "step": "stage", "phase": "step"}
INNER = {"work", "wait"}  # of one thread in a step


def read(path: Path, *profiles: Profile) -> list[dict[str, Any]]:
    write_chrome_trace(path, profiles)
    document = json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)
    assert document["displayTimeUnit"] == "ms"
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


def check_format(events: list[dict[str, Any]]) -> None:
    """Hold it to the Trace Event Format, and each span to the last outer one before it."""
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    open_spans: dict[tuple[int, int, str], dict[str, Any]] = {}
    for event in events:
        assert event["ph"] in "MX"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["args"]["name"]
            continue
        row = event["pid"], event["tid"]
        assert row in named
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        if outer := OUTER.get(event["cat"]):
            around = open_spans[*row, outer]
            assert around["ts"] <= event["ts"]
            # In thousandths of a microsecond, to which the times are rounded.
            end = around["ts"] + around["dur"]
            assert round(1000 * (event["ts"] + event["dur"])) <= round(1000 * end)
        before = open_spans.get((*row, event["cat"]))
        assert before is None or event["ts"] >= round(before["ts"] + before["dur"], 3)
        open_spans[*row, event["cat"]] = event


def names(events: list[dict[str, Any]], what: str) -> list[str]:
    return [event["name"] for event in events if event.get("cat") == what]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_spans_are_runs_stages_steps_and_phases(
    backend: str, models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    model = models["int8"]
    model.backend = backend
    with profile(model) as prof:
        for _ in range(2):
            model(X)
    model.backend = "numba"
    events = read(tmp_path / "trace.json", prof)
    check_format(events)
    assert names(events, "run") == ["run 1", "run 2"]
    layers = [layer.name for layer in model.layers]
    assert names(events, "step") == 2 * layers
    stages = names(events, "stage")
    assert stages[: len(stages) // 2] == list(dict.fromkeys(n.split(".")[0] for n in layers))
    assert ("gemm" in names(events, "phase")) == (backend == "numpy")
    (first, *_) = (event for event in events if event.get("cat") == "run")
    assert first["args"] == {"images": 2}
    stem = next(event for event in events if event["name"] == "conv1" and event["cat"] == "step")
    assert stem["args"]["macs"] == 2 * 16 * 16 * 147 * 64
    assert stem["args"]["operator"] == "conv 7x7/2"


def test_each_calling_thread_has_a_row_of_its_name(
    models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    model = models["fp32"]
    with profile(model) as prof:
        for name in ("request 1", "request 2"):
            thread = threading.Thread(target=model, args=(X,), name=name)
            thread.start()
            thread.join()
    events = read(tmp_path / "trace.json", prof)
    check_format(events)
    rows = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert rows.pop("request 1") == 1
    assert rows.pop("request 2") == 2
    assert all(name.startswith("minires ") for name in rows), "the kernels' threads come last"
    assert names(events, "run") == ["run 1", "run 1"]


@pytest.mark.usefixtures("two_threads")
def test_the_kernels_threads_have_rows_with_their_work_and_their_waits(
    models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    model = models["int8"]
    with profile(model) as prof:
        model(X)
        model(X)
    events = read(tmp_path / "trace.json", prof)
    check_format(events)
    rows = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    others = [f"minires {number}" for number in range(1, get_num_threads())]
    assert rows == [threading.current_thread().name, *others]
    assert len(rows) > 1
    assert {e["cat"] for e in events if e["tid"] > 1 and "cat" in e} <= INNER
    steps = [event for event in events if event.get("cat") == "step"]
    parts = [event for event in events if event.get("cat") in INNER]
    for step in steps:
        first, last = step["ts"], round(step["ts"] + step["dur"], 3)
        inside = [e for e in parts if first <= e["ts"] and round(e["ts"] + e["dur"], 3) <= last]
        assert step["name"] in [event["name"] for event in inside if event["cat"] == "work"]
        # Whoever is done with its work waits until the step ends.
        ends = [round(e["ts"] + e["dur"], 3) for e in inside if e["cat"] == "wait"]
        assert ends == [last] * len(ends)
    assert len(parts) == 2 * len(names(events, "work"))


def test_no_thread_notes_its_work_where_nobody_asks(
    models: Mapping[str, ResNet50], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = models["int8"], []
    model(X)
    engine: Any = model._engine
    execute = engine.execute

    def spy(*arguments: Any) -> None:
        execute(*arguments)
        told.append(arguments[-1])

    monkeypatch.setattr(engine, "execute", spy)
    model(X)
    assert all(worked.size == 0 for worked in told)
    told.clear()
    with profile(model):
        model(X)
    assert all(worked.any() for worked in told)
    assert told


def test_a_thread_that_comes_late_has_no_work(
    models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    model, late = models["int8"], None
    with profile(model) as prof:
        model(X)
    for i, event in enumerate(prof.events):
        middle = (event.started + event.ended) / 2
        prof.events[i] = event._replace(worked=((event.started, middle), late))
    events = read(tmp_path / "trace.json", prof)
    rows = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    layers = [layer.name for layer in model.layers]
    assert names([e for e in events if e["tid"] == 1], "work") == layers
    assert [e for e in events if e["tid"] == rows["minires 1"] and e["ph"] == "X"] == []


def test_each_profile_is_a_process_of_its_title(
    models: Mapping[str, ResNet50], tmp_path: Path
) -> None:
    with profile(models["fp32"]) as prof:
        models["fp32"](X)
    events = read(tmp_path / "trace.json", prof, prof)
    check_format(events)
    titles = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert titles == {1: prof.title, 2: prof.title}


def test_nothing_is_a_trace_too(models: Mapping[str, ResNet50], tmp_path: Path) -> None:
    (event,) = read(tmp_path / "trace.json", profile(models["fp32"]))
    assert event["name"] == "process_name"
