"""Profiles: they lose no time, change no result, and count what they say they count."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import minires
from minires import reference
from minires.backends import Ran
from minires.errors import MiniresError
from minires.kernels.engine import Engine
from minires.kernels.plan import Division
from minires.measure import profiler, trust
from minires.measure.groups import GROUPS, SORTS, kind_of
from minires.measure.profiler import Profile, profile, profile_in_turns
from minires.measure.rows import Event, events_of
from minires.model import ResNet50, resnet50_layers
from minires.summary import summarize
from minires.unfuse import unfuse
from tests.comparing import assert_same
from tests.measure.conftest import ROOFS
from tests.seeded_weights import seeded_input, seeded_state_dict

X = seeded_input((1, 3, 64, 64))


@pytest.fixture(params=["numba", "numpy"])
def backend(request: pytest.FixtureRequest, models: Mapping[str, ResNet50]) -> Iterator[str]:
    """Each backend, for both networks."""
    for model in models.values():
        model.backend = request.param
    yield request.param
    for model in models.values():
        model.backend = "numba"


def test_it_is_a_public_name() -> None:
    assert minires.profile is profile
    with pytest.raises(AttributeError, match="no attribute 'profil'"):
        _ = minires.profil


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_rows_are_the_whole(
    precision: str, backend: str, models: Mapping[str, ResNet50]
) -> None:
    """Within 2%, against a clock outside: the best of some, because others use the machine."""
    # Large enough that what is fixed, some microseconds a step, stays well below that anywhere.
    shape = (2, 3, 448, 448) if backend == "numba" else (1, 3, 224, 224)
    model, x = models[precision], seeded_input(shape)
    model(x)
    missing = []
    while len(missing) < 20 and min(missing, default=1.0) >= 0.02:
        started = time.perf_counter()
        with profile(model) as prof:
            model(x)
        whole = time.perf_counter() - started
        assert 0 < prof.seconds < whole
        missing.append(1 - prof.seconds / whole)
    assert min(missing) < 0.02
    for group in GROUPS:
        assert sum(row.seconds for row in prof.rows(group)) == pytest.approx(prof.seconds)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_watching_changes_nothing(
    precision: str, backend: str, models: Mapping[str, ResNet50]
) -> None:
    model = models[precision]
    expected = model(X)
    with profile(model) as prof:
        y = model(X)
    assert_same(y, expected)
    assert model.record is None
    with pytest.raises(ZeroDivisionError), profile(model):
        _ = 1 / 0
    assert model.record is None
    steps = len(prof.events)
    model(X)
    assert len(prof.events) == steps == len(model.layers)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_counts_work(precision: str, backend: str, models: Mapping[str, ResNet50]) -> None:
    """The stem, 7x7 on 64 x 64 pixels: the bytes counted by hand."""
    model = models[precision]
    with profile(model) as prof:
        model(X)
    size = {"fp32": 4, "int8": 1}[precision]
    x, y, w, columns = 64 * 64 * 3, 32 * 32 * 64, 64 * 147, 32 * 32 * 147
    rows = {row.name: row for row in prof.rows("phase")}
    if backend == "numba":
        stem = rows["conv1 fused"]
        assert stem.bytes == size * (x + y + w)
        # 16 x 16 pixels: 64 channels in, 256 out, and as many of the residual.
        assert rows["layer1.0.conv3 fused"].bytes == size * (256 * (64 + 2 * 256) + 64 * 256)
        # Of 16 x 16 pixels a 1x1 kernel with a stride of 2 reads a quarter.
        assert (
            rows["layer2.0.downsample.0 fused"].bytes == size * 64 * (256 + 512) + size * 256 * 512
        )
    else:
        stem = rows["conv1 gemm"]
        assert stem.bytes == size * (columns + w) + 4 * y
        assert rows["conv1 im2col"].bytes == size * (x + columns)
        assert rows["conv1 im2col"].macs == rows["conv1 epilogue"].macs == 0
        assert rows["conv1 epilogue"].bytes == (4 + size) * y  # sums read, activations written
        assert ("input quantize" in rows) == (precision == "int8")
    assert stem.macs == columns * 64
    assert stem.kind == "conv 7x7/2"
    assert stem.calls == 1
    assert stem.gops == pytest.approx(2 * stem.macs / stem.seconds / 1e9)
    assert stem.share == pytest.approx(stem.gops / 100)
    assert stem.intensity == 2 * stem.macs / stem.bytes
    whole = summarize(model.layers, 64, 64)
    for group in GROUPS:
        assert sum(row.macs for row in prof.rows(group)) == sum(row.macs for row in whole)


def test_a_profile_adds_runs_up(models: Mapping[str, ResNet50]) -> None:
    prof = profile_in_turns({"fp32": models["fp32"]}, X, 3)["fp32"]
    assert {row.calls for row in prof.rows()} == {3}
    (stage,) = (row for row in prof.rows("stage") if row.name == "layer1")
    assert stage.calls == 30  # ten convolutions
    assert stage.kind == ""
    assert prof.runs == 3
    table = prof.table("stage")
    assert "the mean of 3 runs" in table
    (line,) = (line.split() for line in table.splitlines() if line.startswith("layer1"))
    assert line[1] == "10"  # in one run
    assert float(line[2].rstrip("?")) == pytest.approx(1e3 * stage.seconds / 3, abs=0.0006)


def test_parts_of_steps_are_rows_of_their_own() -> None:
    unfused = unfuse(seeded_state_dict())
    with profile(unfused) as prof:
        unfused(X)
    names = [row.name for row in prof.rows()]
    assert names[1:5] == ["conv1", "bn1", "relu1", "maxpool"]
    assert "layer4.2.add" in names
    assert "conv1 im2col" in [row.name for row in prof.rows("phase")]  # NumPy computes these


def test_a_batch_in_several_calls_is_one_run(
    models: Mapping[str, ResNet50], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["int8"]
    monkeypatch.setattr(Engine, "_divide", lambda *_: Division(30, 1, 2))
    with profile(model) as prof:
        model(seeded_input((3, 3, 64, 64)))
    assert prof.runs == 1
    assert "input 3 x 3 x 64 x 64" in prof.title
    assert [row.calls for row in prof.rows()] == [3] * 30 + [2] * (len(model.layers) - 30)
    assert sum(row.macs for row in prof.rows()) == sum(
        row.macs for row in summarize(model.layers, 64, 64, 3)
    )


def test_a_profile_is_on_once(models: Mapping[str, ResNet50]) -> None:
    with profile(models["fp32"]) as prof, pytest.raises(MiniresError, match="on already"):
        prof.__enter__()
    assert models["fp32"].record is None


def test_others_definitions_are_not_timed(models: Mapping[str, ResNet50]) -> None:
    """What another thread computes in the meantime is no phase of this one's steps."""
    model = models["fp32"]
    model.backend = "numpy"
    one = np.ones((64, 64), np.float32)
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            reference.gemm_f32_ref(one, one)

    thread = threading.Thread(target=others)
    with profile(model) as prof:
        thread.start()
        model(X)
        done.set()
        thread.join()
    model.backend = "numba"
    assert all(min(event.seconds.values()) >= 0 for event in prof.events)
    assert sum(name == "gemm" for event in prof.events for name, *_ in event.phases) == 54


def test_each_step_is_called_back(backend: str, models: Mapping[str, ResNet50]) -> None:
    seen: list[Event] = []
    with profile(models["int8"], seen.append) as prof:
        models["int8"](X)
    assert seen == prof.events
    assert [event.layer for event in seen] == list(models["int8"].layers)
    assert all(event.started < event.ended for event in seen)


def test_a_thread_that_comes_late_leaves_an_event_equal_to_itself() -> None:
    layer, worked = resnet50_layers()[0], np.array([[[0.1, 0.2], [np.nan, np.nan]]])
    ran = Ran([layer], (1, 3, 64, 64), 0, [(0.0, 1.0)], (), worked)
    (one,), (other,) = events_of(ran, "a thread"), events_of(ran, "a thread")
    assert one == other
    assert one.worked == ((0.1, 0.2), None)


def test_profiles_of_one_network_nest(backend: str, models: Mapping[str, ResNet50]) -> None:
    with profile(models["fp32"]) as outer, profile(models["fp32"]) as inner:
        models["fp32"](X)
    assert outer.events == inner.events


def test_definitions_called_in_between_are_no_part_of_a_step(
    models: Mapping[str, ResNet50],
) -> None:
    model = models["fp32"]
    model.backend = "numpy"
    with profile(model) as prof:
        for step in model.steps(X):
            reference.gemm_f32_ref(
                step.output.reshape(1, -1)[:, :4], step.output.reshape(-1, 1)[:4]
            )
    model.backend = "numba"
    for event in prof.events:
        assert all(event.started <= start < end <= event.ended for _, start, end in event.phases)
        gemms = sum(name == "gemm" for name, *_ in event.phases)
        assert gemms == (event.layer.op in ("conv", "linear"))
        assert min(event.seconds.values()) >= 0


def test_definitions_called_by_a_callback_are_no_part_of_a_step(
    models: Mapping[str, ResNet50], backend: str
) -> None:
    model, a = models["fp32"], np.ones((4, 4), np.float32)
    with profile(model, lambda _: reference.gemm_f32_ref(a, a)) as prof:
        model(X)
    for event in prof.events:
        gemms = sum(name == "gemm" for name, *_ in event.phases)
        assert gemms == (backend == "numpy" and event.layer.op in ("conv", "linear"))
        assert min(event.seconds.values()) >= 0


@pytest.mark.parametrize("sort", SORTS)
def test_rows_are_sorted(sort: str, models: Mapping[str, ResNet50]) -> None:
    with profile(models["fp32"]) as prof:
        models["fp32"](X)
    rows = prof.rows("operator", sort)
    assert [SORTS[sort](row) for row in rows] == sorted(SORTS[sort](row) for row in rows)
    assert {row.name for row in rows} == {kind_of(layer) for layer in models["fp32"].layers}


@pytest.mark.parametrize("words", [{"group": "layer"}, {"sort": "size"}])
def test_what_there_is_not_is_named(words: dict[str, str], models: Mapping[str, ResNet50]) -> None:
    with pytest.raises(MiniresError, match=r"there is no (group|sort) .+; there is "):
        profile(models["fp32"]).rows(**words)


def test_a_profile_without_a_run_says_so(models: Mapping[str, ResNet50]) -> None:
    """Somebody forgot the with: an empty table would say that the network takes no time."""
    prof = profile(models["fp32"])
    models["fp32"](X)
    for tell in (prof.table, prof.plot, prof.to_json, prof.rows):
        with pytest.raises(
            MiniresError, match="no network ran in this profile; call one in its with"
        ):
            tell()
    assert repr(prof) == f"Profile({models['fp32']!r}, 0 runs)"
    assert prof._repr_html_() is None


def test_a_printed_profile_is_its_table(models: Mapping[str, ResNet50]) -> None:
    with profile(models["fp32"]) as prof:
        models["fp32"](X)
    assert str(prof) == prof.table()
    assert "GOP/s: a multiply-add is two operations. short: " in str(prof)
    assert repr(prof) == f"Profile({models['fp32']!r}, 1 run)"


def test_the_table_names_every_step(backend: str, models: Mapping[str, ResNet50]) -> None:
    with profile(models["int8"]) as prof:
        models["int8"](X)
    lines = prof.table().splitlines()
    assert lines[0].startswith(f"seeded, int8, {backend}, input 1 x 3 x 64 x 64, on ")
    names = [layer.name for layer in models["int8"].layers]
    assert [line.split()[0] for line in lines[3 : 3 + len(names)]] == names


def test_without_roofs_there_are_no_shares_and_nothing_is_measured(
    models: Mapping[str, ResNet50], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "known_roofs", lambda _: None)
    for name in ("peak", "bandwidths"):  # these took 11 s
        monkeypatch.setattr(
            f"minires.measure.machine.{name}", lambda *_, **__: pytest.fail("measured")
        )
    with profile(models["fp32"]) as prof:
        models["fp32"](X)
    assert "of roof" not in prof.table()
    assert "NOT STEADY" not in prof.table()  # of one run nobody can tell
    document = json.loads(prof.to_json())
    assert document["peak_gops"] is None
    assert "share" not in document["rows"][0]
    row = prof.rows()[1]
    for name in ("share", "least", "bound", "of_roof"):
        with pytest.raises(MiniresError, match="not measured yet"):
            getattr(row, name)
    assert "of roof" in prof.table(roofs=ROOFS)
    assert json.loads(prof.to_json(ROOFS))["peak_gops"] == 100


def made_up(models: Mapping[str, ResNet50], seconds: float, runs: int = 1) -> Profile:
    """Make a profile of runs whose steps take as long as one wants."""
    model = models["fp32"]
    prof = profile(model)
    for run in range(runs):
        times = [(100.0 * run + i, 100.0 * run + i + seconds) for i in range(len(model.layers))]
        prof._record(Ran(model.layers, (1, 3, 64, 64), 0, times))
    return prof


def test_a_share_that_cannot_be_is_no_number(models: Mapping[str, ResNet50]) -> None:
    """As where the memory seemed to give 0.01 GB/s: "of roof 60854%"."""
    prof = made_up(models, 0.01)
    assert "?" not in prof.table()
    slow = ROOFS._replace(memory=[level._replace(all=1e-6) for level in ROOFS.memory])
    lines = prof.table(roofs=slow).splitlines()
    assert lines[-1].startswith("NOT STEADY: input seems faster than its limit (other doubts: ")
    assert all(line.split()[-2] == "?" for line in lines[3:-6])


def test_roofs_in_doubt_mark_all_shares(models: Mapping[str, ResNet50]) -> None:
    prof = made_up(models, 0.01)
    lines = prof.table(roofs=ROOFS._replace(doubts=("runs of fma differ by 50%",))).splitlines()
    assert lines[-1].startswith("NOT STEADY: runs of fma differ by 50%.")
    assert all(line.split()[-2].endswith("%?") for line in lines[3:-6])


def test_runs_that_shared_their_core_are_told(
    models: Mapping[str, ResNet50], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they agree: on a machine that is always busy all runs are as slow as each other."""
    monkeypatch.setattr(profiler, "doubt_spread", lambda *_: [])
    monkeypatch.setattr(trust, "TRIES", 1)
    clock = time.perf_counter
    for got, told in [(0.5, ["others had 50% of the cores' time during the network in fp32"]),
                      (0.9, [])]:  # fmt: skip
        monkeypatch.setattr(trust.time, "thread_time", lambda got=got: got * clock())
        prof = profile_in_turns({"fp32": models["fp32"]}, X, 3)["fp32"]
        assert prof.doubts == told
        assert ("?" in prof.table(roofs=ROOFS).splitlines()[3]) == bool(told)


def test_a_run_of_several_images_says_so(models: Mapping[str, ResNet50]) -> None:
    with profile(models["fp32"]) as prof:
        models["fp32"](seeded_input((2, 3, 32, 32)))
    assert " ms, the mean of 1 run of 2 images\n" in prof.table()


def test_runs_that_differ_are_told(models: Mapping[str, ResNet50]) -> None:
    prof = made_up(models, 0.01, 4)
    assert prof.doubts == []
    layers = models["fp32"].layers
    slow = [(500.0 + i, 500.03 + i) for i in range(len(layers))]
    for _ in range(4):
        prof._record(Ran(layers, (1, 3, 64, 64), 0, slow))
    assert prof.doubts == ["runs of the network in fp32 differ by 100%"]
    lines = prof.table().splitlines()
    assert lines[-1].startswith("NOT STEADY: runs of the network in fp32 differ by 100%.")
    assert "20.000?" in lines[3]
    conv1 = lines[4].split()  # what follows from a time is in doubt, too
    assert [cell.endswith("?") for cell in conv1[-9:]] == [1, 1, 0, 0, 0, 1, 1, 1, 0]


def test_json_holds_what_the_rows_tell(models: Mapping[str, ResNet50]) -> None:
    with profile(models["int8"]) as prof:
        models["int8"](X)
    document = json.loads(prof.to_json())
    assert document["peak_gops"] == 100
    assert document["seconds"] == pytest.approx(sum(row["seconds"] for row in document["rows"]))
    assert set(document["rows"][0]) >= {"name", "calls", "macs", "bytes", "gops", "bound"}


def test_the_plot_is_a_picture(models: Mapping[str, ResNet50], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with profile(models["fp32"]) as prof:
        models["fp32"](X)
    prof.plot(tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text("utf-8")
    assert text.count("layer3.5.conv3") >= 1
    with pytest.raises(MiniresError, match=r"\.png, \.svg or \.pdf"):
        prof.plot(tmp_path / "plot.txt")
    with pytest.raises(MiniresError, match="folder"):
        prof.plot(tmp_path / "none" / "plot.png")
