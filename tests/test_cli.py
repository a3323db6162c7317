import importlib.util
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from minires import api
from minires.cli import build_parser, main
from minires.kernels.cpu import get_num_threads
from minires.measure import latency, machine, plots, trust
from minires.model import resnet50_layers
from minires.preprocess import Preset
from minires.quantize import calibrate, quantize_model, save_int8
from minires.quantize.sensitivity import Gain
from tests.making_files import BAD_IMAGES, save_once, save_photograph
from tests.seeded_weights import seeded_state_dict

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seeded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_once(tmp_path_factory, "seeded.safetensors", seeded_state_dict)


@pytest.fixture(scope="module")
def model(seeded_file: Path) -> api.ResNet50:
    return api.resnet50(seeded_file)


@pytest.fixture
def loaded(model: api.ResNet50, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the tests that are not about weights the reading of 100 MB each."""
    monkeypatch.setattr(api, "resnet50", lambda *_, **__: model)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of three photographs, and a file that is none."""
    for seed, name in enumerate(["b.png", "a.JPG", "c.bmp"]):
        save_photograph(tmp_path / name, seed)
    (tmp_path / "labels.csv").write_text("file,label\n")
    return tmp_path


def complaint(capture: Capture) -> str:
    """Return the one line on stderr, with nothing on stdout."""
    out, err = capture.readouterr()
    assert out == ""
    assert err.startswith("minires: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.usefixtures("loaded")
def test_a_photograph_gets_five_labels(photographs: Path, capsys: Capture) -> None:
    file = str(photographs / "b.png")
    assert main(["classify", file]) == 0
    out, err = capsys.readouterr()
    name, *answers = out.splitlines()
    assert name == file
    assert len(answers) == 5
    shares = [float(answer.split("%")[0]) for answer in answers]
    assert shares == sorted(shares, reverse=True)
    assert len({answer.index("%") for answer in answers}) == 1
    assert err == ""


@pytest.mark.usefixtures("loaded")
def test_json_says_what_answered_and_what_it_answered(photographs: Path, capsys: Capture) -> None:
    broken = photographs / "broken.png"
    broken.write_bytes(b"no image")
    good = str(photographs / "b.png")
    assert main(["classify", "--json", "--top", "1000", good, str(broken)]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["model"] == {
        "name": "seeded.safetensors",
        "precision": "fp32",
        "backend": "numba",
    }
    answered, failed = document["images"]
    assert answered.keys() == {"file", "predictions"}
    assert answered["file"] == good
    probabilities = [p["probability"] for p in answered["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert abs(sum(probabilities) - 1) <= 1e-5
    assert sorted(p["index"] for p in answered["predictions"]) == list(range(1000))
    assert all(isinstance(p["label"], str) for p in answered["predictions"])
    assert failed == {"file": str(broken), "error": err.removeprefix("minires: ").rstrip("\n")}


@pytest.mark.usefixtures("loaded")
def test_a_folder_is_its_images_by_name(photographs: Path, capsys: Capture) -> None:
    (photographs / "folder.png").mkdir()
    save_photograph(photographs / "folder.png" / "inside.png", 9)
    single = str(photographs / "c.bmp")
    assert main(["classify", "--top", "1", single, str(photographs)]) == 0
    files = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert files == [single, *(str(photographs / name) for name in ["a.JPG", "b.png", "c.bmp"])]


@pytest.mark.usefixtures("loaded")
def test_batches_and_bad_files_change_no_answer(photographs: Path, capsys: Capture) -> None:
    assert main(["classify", str(photographs), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["images"]
    BAD_IMAGES["truncated"](photographs / "aa.png")
    for batch_size in "1", "3":
        assert main(["classify", str(photographs), "--json", "--batch-size", batch_size]) == 1
        out, err = capsys.readouterr()
        images = json.loads(out)["images"]
        assert [image["file"] for image in images if "error" in image] == [f"{photographs}/aa.png"]
        assert "aa.png" in err
        for image, expected in zip([i for i in images if "error" not in i], alone, strict=True):
            assert image["file"] == expected["file"]
            for ours, theirs in zip(image["predictions"], expected["predictions"], strict=True):
                assert ours["label"] == theirs["label"]
                assert abs(ours["probability"] - theirs["probability"]) <= 1e-5


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("kind", [*BAD_IMAGES, "missing"])
def test_a_bad_image_is_named(kind: str, tmp_path: Path, capsys: Capture) -> None:
    if kind != "missing":
        BAD_IMAGES[kind](tmp_path / "bad.png")
    assert main(["classify", str(tmp_path / "bad.png")]) == 1
    assert "bad.png" in complaint(capsys)


@pytest.mark.usefixtures("loaded")
def test_good_images_are_answered_beside_all_the_bad_ones(
    photographs: Path, capsys: Capture
) -> None:
    for name, make in BAD_IMAGES.items():
        make(photographs / f"bad {name}.png")
    assert main(["classify", str(photographs), str(photographs / "not there.png")]) == 1
    out, err = capsys.readouterr()
    assert sum(not line.startswith(" ") for line in out.splitlines()) == 3
    assert "Traceback" not in err
    for line, name in zip(err.splitlines(), [*sorted(BAD_IMAGES), "not there"], strict=True):
        assert line.startswith("minires: ")
        assert name in line


def test_an_empty_folder_is_an_error_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(api, "resnet50", lambda *_, **__: pytest.fail("loaded"))
    for more in [], [str(tmp_path / "none.jpg")]:
        assert main(["classify", str(tmp_path), *more]) == 1
        assert f"{tmp_path}: no image lies in this folder" in complaint(capsys)


@pytest.mark.parametrize("words", ["classify", "evaluate --labels a.csv", "profile",
                                   "quantize -o a --calibrate", "quantize -o"])  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(words: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words.split(), ""])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("a name is empty; . is the current folder")


@pytest.mark.usefixtures("loaded")
def test_jsonl_is_a_line_for_each_image_as_soon_as_it_is_there(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (photographs / "broken.png").write_bytes(b"")
    asked: list[str] = []  # what stood on stdout when a batch was computed
    real = api.predict

    def predict(*arguments: Any) -> list[list[api.Prediction]]:
        asked.append(capsys.readouterr().out)
        return real(*arguments)

    monkeypatch.setattr(api, "predict", predict)
    words = ["classify", str(photographs), "--jsonl", "--top", "2", "--batch-size", "2"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in (*asked[1].splitlines(), *out.splitlines())]
    assert [Path(line["file"]).name for line in lines] == ["a.JPG", "b.png", "broken.png", "c.bmp"]
    assert [len(line.get("predictions", [])) for line in lines] == [2, 2, 0, 2]
    assert "not an image" in lines[2]["error"]
    assert asked[1].count("\n") == 2
    assert err.count("\n") == 1


@pytest.mark.usefixtures("loaded")
def test_many_missing_files_are_one_line(photographs: Path, capsys: Capture) -> None:
    missing = [f"{i}.png" for i in range(480)]
    assert main(["classify", *missing]) == 1
    assert (
        complaint(capsys) == "minires: 0.png, 1.png, 2.png and 477 more: no such file or folder\n"
    )
    assert main(["classify", "--json", *missing, str(photographs / "b.png")]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert sum("error" in image for image in json.loads(out)["images"]) == 480


@pytest.mark.usefixtures("loaded")
def test_photographs_come_from_standard_input_and_from_folders_of_folders(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    data = (photographs / "b.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["classify", "-", str(photographs / "b.png"), "--json"]) == 0
    piped, named = json.loads(capsys.readouterr().out)["images"]
    assert (piped["file"], piped["predictions"]) == ("-", named["predictions"])
    (photographs / "outer").mkdir()
    for file in photographs.glob("*.*"):
        file.rename(photographs / "outer" / file.name)
    assert main(["classify", str(photographs)]) == 1
    assert "in its folders outer; --recursive" in complaint(capsys)
    assert main(["classify", "--recursive", str(photographs), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3


@pytest.mark.usefixtures("loaded")
def test_the_time_is_told_on_stderr(photographs: Path, capsys: Capture) -> None:
    assert main(["classify", str(photographs), "--time"]) == 0
    out, err = capsys.readouterr()
    assert out.count("%") == 15
    whole, network, rest = (float(s) for s in re.findall(r"([\d.]+) s[,;:]?", err)[:3])
    assert err.startswith("minires: 3 images in ")
    assert network > 0
    assert whole == pytest.approx(network + rest, abs=0.02)


@pytest.mark.usefixtures("loaded")
def test_threads_are_those_asked_for(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("minires.kernels.cpu._chosen", None)
    assert main(["classify", str(photographs), "--threads", "1"]) == 0
    assert get_num_threads() == 1
    capsys.readouterr()
    assert main(["classify", str(photographs), "--threads", "1", "--backend", "numpy"]) == 1
    assert "leave it out with --backend numpy" in complaint(capsys)


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("stderr", ["none", "closed", "full"])
def test_answers_come_where_nothing_can_be_said_beside_them(
    stderr: str, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (photographs / "broken.png").write_bytes(b"")
    closed = io.StringIO()
    closed.close()
    full = SimpleNamespace(write=no_space, flush=no_space, isatty=lambda: False)
    monkeypatch.setattr(sys, "stderr", {"none": None, "closed": closed, "full": full}[stderr])
    for words in (["--json"], ["--json", "--debug"]):
        assert main(["classify", str(photographs), *words]) == 1
        answered = json.loads(capsys.readouterr().out)["images"]
        assert ["predictions" in image for image in answered] == [True, True, False, True]
    (photographs / "labels.csv").write_text("file,label\nb.png,3\nbroken.png,3\n")
    words = ["evaluate", str(photographs), "--labels", str(photographs / "labels.csv")]
    assert main(words) == 1
    assert capsys.readouterr().out.startswith("1 image, ")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert main(["classify", str(photographs / "b.png")]) == 0


@pytest.mark.skipif(os.name != "posix", reason="descriptors are closed in a shell of POSIX")
def test_a_process_without_stderr_answers(photographs: Path, seeded_file: Path) -> None:
    command = [sys.executable, "-m", "minires", "classify", str(photographs), "--weights"]
    closing = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command, str(seeded_file)]
    process = subprocess.run(closing, text=True, stdout=subprocess.PIPE, check=False)
    assert process.returncode == 0
    assert process.stdout.count("%") == 15


def test_a_process_that_may_not_compile_says_so(photographs: Path, seeded_file: Path) -> None:
    process = run("classify", str(photographs), "--weights", str(seeded_file), capture_output=True,
                  env=os.environ | {"NUMBA_DISABLE_JIT": "1"})  # fmt: skip
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("minires: NUMBA_DISABLE_JIT keeps")


def other_network(path: Path) -> None:
    save_file({"fc.weight": np.zeros((10, 4), np.float32)}, path)


def truncated_weights(path: Path) -> None:
    other_network(path)
    path.write_bytes(path.read_bytes()[:-8])


def no_weights(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [other_network, truncated_weights, no_weights, lambda _: None])
def test_unusable_weights_are_named(
    make: Callable[[Path], None], photographs: Path, tmp_path: Path, capsys: Capture
) -> None:
    weights = tmp_path / "weights.safetensors"
    make(weights)
    command = ["classify", str(photographs / "b.png"), "--weights", str(weights)]
    assert main([*command, "--json"]) == 1
    assert "weights.safetensors" in complaint(capsys)
    assert main([*command, "--debug"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("minires: ")


@pytest.mark.usefixtures("loaded")
def test_debug_shows_the_traceback_and_goes_on(photographs: Path, capsys: Capture) -> None:
    command = ["classify", "--debug", str(photographs / "nothing.png"), str(photographs / "b.png")]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "b.png" in out


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("a\nb"), 1, "minires: unexpected ZeroDivisionError: a b (--debug"),
    ],
)
def test_other_ends(
    error: BaseException,
    status: int,
    text: str,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "resnet50", fail)
    assert main(["classify", str(photographs)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(text)
    assert err.count("\n") == bool(text)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "clasify cat.jpg",
        "classify",
        "classify cat.jpg --top 0",
        "classify cat.jpg --top many",
        "classify cat.jpg --batch-size -1",
        "classify cat.jpg --precision fp8",
        "classify cat.jpg --backend abacus",
        "summary --classes 10 --weights a.pth",
        "summary --size 31 64",
        "weights",
        "weights lose",
    ],
)
def test_a_command_line_without_sense_is_a_usage_error(words: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: minires" in err


def test_summary_counts_the_network(capsys: Capture) -> None:
    assert main(["summary"]) == 0
    total = capsys.readouterr().out.splitlines()[-1]
    assert "25,557,032" in total
    assert "4,089" in total
    assert main(["summary", "--classes", "10", "--size", "64", "32", "--batch", "2"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "2 x 32 x 16 x 64" in rows[2]
    assert "2 x 10" in rows[-2]


def test_summary_of_weights_has_the_size_of_their_images(capsys: Capture) -> None:
    assert main(["summary", "--weights", "CIFAR10"]) == 0
    assert capsys.readouterr().out == f"{api.resnet50('CIFAR10')}\n"
    assert main(["summary", "--weights", "CIFAR10", "--preset", "IMAGENET1K_V1"]) == 0
    assert "1 x 224 x 224 x 3" in capsys.readouterr().out
    assert main(["summary", "--weights", "CIFAR10", "--size", "32", "96"]) == 0
    assert "1 x 32 x 96 x 3" in capsys.readouterr().out
    for command in "summary", "roofline --precisions fp32":
        words = f"{command} --weights CIFAR10 --size 32 96 --preset IMAGENET1K_V1"
        assert main(words.split()) == 1
        assert "as --preset does" in complaint(capsys)
    for option in ["--precision", "int8"], ["--preset", "CIFAR10"]:
        assert main(["summary", *option]) == 1
        assert "give --weights with it" in complaint(capsys)


def test_weights_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for variable in "MINIRES_CACHE", "TORCH_HOME":
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(api.download.available_weights())
    assert [line.split()[0] for line in lines if "not here" not in line] == ["CIFAR10"]
    assert main(["weights", "path", "IMAGENET1K_V1"]) == 1
    assert "minires weights fetch IMAGENET1K_V1" in complaint(capsys)
    assert main(["weights", "verify"]) == 1
    assert api.download.DEFAULT in complaint(capsys)
    assert main(["weights", "path", "IMAGENET22K"]) == 1
    assert "IMAGENET22K" in complaint(capsys)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_shows_only_on_a_terminal_and_only_where_it_takes_long(
    terminal: bool, slow: bool, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    if slow:
        monkeypatch.setattr("tqdm.std.time", itertools.count(step=3).__next__)
    assert main(["classify", str(photographs / "b.png")]) == 0
    assert ("1/1" in stderr.getvalue()) == (terminal and slow)


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minires", *words]
    return subprocess.run(command, text=True, check=False, **more)  # type: ignore[call-overload, no-any-return]


def test_a_process_of_its_own_says_the_same(
    photographs: Path, seeded_file: Path, capsys: Capture
) -> None:
    words = ["classify", str(photographs), "--weights", str(seeded_file)]
    assert main(words) == 0
    process = run(*words, capture_output=True)
    assert process.returncode == 0
    assert process.stdout == capsys.readouterr().out
    assert process.stderr == ""


def test_a_reader_who_leaves_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = run("summary", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.parametrize(
    ("error", "status"),
    [(BrokenPipeError(32, ""), 141), (OSError(22, ""), 141), (OSError(22, "", "a?b"), 1)],
)
def test_on_windows_a_reader_may_leave_with_another_error(
    error: OSError, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A wrong name of a file has the same number, but the name stands beside it."""

    def write(*_: object) -> None:
        raise error

    with open(tmp_path / "stdout", "w", encoding="utf-8") as file:
        stdout = SimpleNamespace(write=write, flush=lambda: None, fileno=file.fileno)
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "platform", "win32")
        assert main(["summary"]) == status
    assert ("a?b" in capsys.readouterr().err) == (status == 1)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_answers_can_be_told_in_any_encoding(
    encoding: str, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As terminals on Windows have, with a folder's name that is not in it."""
    folder = photographs / "ein Ordner für 猫"
    folder.mkdir()
    save_photograph(folder / "katze ü.png", 0)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["classify", str(folder)]) == main(["summary"]) == 0
    stdout.seek(0)
    assert "\\u732b" in stdout.read()


@pytest.mark.usefixtures("loaded")
def test_names_that_stdout_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_photograph(tmp_path / "katze ü.png", 0)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["classify", str(tmp_path)]) == 0
    stdout.seek(0)
    assert "katze \\xfc.png" in stdout.read()


# Where no weights are named


def one_complaint(capture: Capture) -> str:
    """Return what stands on stdout; on stderr is one line, on the network that answers.

    Beside it may stand the line that tells of what takes long, because stderr is no terminal here.
    """
    out, err = capture.readouterr()
    err = err.replace("minires: evaluating ...\n", "")
    assert re.fullmatch("minires: IMAGENET1K_V2 is not .*; CIFAR10 answers, with 10 .*\n", err)
    return out


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what would go to the network fails the test."""
    for variable in "MINIRES_CACHE", "TORCH_HOME":
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.delenv("MINIRES_OFFLINE")
    monkeypatch.setattr(api.download, "download", lambda *_, **__: pytest.fail("asked a server"))


@pytest.mark.usefixtures("nothing_cached")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_offline_the_packages_network_answers_and_says_so(
    precision: str, photographs: Path, capsys: Capture
) -> None:
    words = ["classify", str(photographs), "--offline", "--json", "--precision", precision]
    assert main(words) == 0
    answer = json.loads(one_complaint(capsys))
    assert answer["model"] == {"name": "CIFAR10", "precision": precision, "backend": "numba"}
    assert len(answer["images"]) == 3
    assert "MINIRES_OFFLINE" not in os.environ


@pytest.mark.usefixtures("nothing_cached")
def test_both_sides_of_a_comparison_are_the_same_network(
    photographs: Path, capsys: Capture
) -> None:
    (photographs / "labels.csv").write_text("file,label\nb.png,3\n")
    words = ["evaluate", str(photographs), "--labels", str(photographs / "labels.csv")]
    assert main([*words, "--offline", "--precision", "int8"]) == 0
    assert one_complaint(capsys).count("CIFAR10") == 2


@pytest.mark.usefixtures("nothing_cached")
def test_weights_asked_for_by_name_are_not_replaced(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    words = ["classify", str(photographs), "--weights", "IMAGENET1K_V2"]
    assert main([*words, "--offline"]) == 1
    assert "--weights PATH" in complaint(capsys)
    monkeypatch.setenv("MINIRES_OFFLINE", "0")
    main([*words, "--offline"])
    assert os.environ["MINIRES_OFFLINE"] == "0"


def test_quantize_takes_the_calibration_of_the_weights(tmp_path: Path, capsys: Capture) -> None:
    words = ["quantize", "--weights", "CIFAR10", "-o", str(tmp_path / "int8.safetensors")]
    assert main(words) == 0
    assert "calibrated on 512 images" in capsys.readouterr().out
    assert main([*words, "--observer", "minmax", "--rounding", "nearest"]) == 0
    assert "calibrated on 32 images" in capsys.readouterr().out


# quantize and evaluate

# To round by moments takes seconds in a layer with 4608 weights a channel.
QUICKLY = ["--rounding", "nearest", "--correction", "on"]


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks see 32x32 pixels: what these tests are about does not need more."""
    monkeypatch.setattr(
        "minires.api.IMAGENET_V1", Preset(32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )


@pytest.mark.usefixtures("small_images")
def test_quantize_writes_a_file_that_the_other_commands_take(
    photographs: Path, seeded_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "int8.safetensors"
    words = ["quantize", "--weights", str(seeded_file), "--calibrate", str(photographs)]
    assert (
        main([*words, "--observer", "percentile", *QUICKLY, "--images", "2", "-o", str(output)])
        == 0
    )
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["input", "conv1", "maxpool"]
    assert all(float(line.split()[1]) > 3 for line in lines[1:-2])  # SQNR in dB
    assert "of 2 images" in lines[-2]
    assert lines[-1] == f"{output}: {seeded_file.name}, 25.8 MB, calibrated on 2 images or crops"
    parts = ("calibrating", "rounding", "comparing with FP32")  # there is no bar in a pipe
    assert err == "".join(f"minires: {part} ...\n" for part in parts)
    assert api.resnet50(output, "int8").meta["calibration"] == {
        "observer": "percentile",
        "images": 2,
        "rounding": "nearest",
        "correction": "on",
    }
    words = ["--weights", str(output), "--precision", "int8"]
    labels = tmp_path / "alone.csv"
    labels.write_text("file,label\nb.png,3\n")
    assert main(["evaluate", str(photographs), "--labels", str(labels), *words]) == 0
    assert "differs" not in capsys.readouterr().out  # a file in INT8 has nothing to compare with
    assert main(["classify", str(photographs / "b.png"), *words]) == 0
    (photographs / "labels.csv").write_text("file,label\nb.png,3\na.JPG,999\n")
    capsys.readouterr()
    words += ["--labels", str(photographs / "labels.csv"), "--against-weights", str(seeded_file)]
    assert main(["evaluate", str(photographs), *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["images"], answer["unusable"]) == (2, 0)
    assert [model["precision"] for model in answer["models"]] == ["int8", "fp32"]
    assert 0 < answer["comparison"]["largest_logit_difference"] < np.inf


@pytest.mark.usefixtures("small_images")
def test_quantize_draws_what_each_layer_costs(
    photographs: Path,
    seeded_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = [Gain("conv1", 0.5), Gain("fc", 0.25)]
    monkeypatch.setattr("minires.quantize.commands.sensitivity", lambda *_: found)
    plot, output = tmp_path / "gains.svg", tmp_path / "int8.safetensors"
    words = ["--weights", str(seeded_file), "--calibrate", str(photographs), "-o", str(output)]
    words += [*QUICKLY, "--images", "1", "--sensitivity", "--plot", str(plot), "--dark"]
    assert main(["quantize", *words]) == 0
    assert "fc                          0.25" in capsys.readouterr().out
    assert plots.PAPER in plot.read_text(encoding="utf-8")


@pytest.mark.usefixtures("small_images")
def test_quantize_names_a_bad_image_once_and_does_without_it(
    photographs: Path, seeded_file: Path, capsys: Capture
) -> None:
    (photographs / "aa.png").write_bytes(b"")
    output = photographs / "int8.safetensors"
    words = ["quantize", "--weights", str(seeded_file), "--calibrate", str(photographs)]
    assert main([*words, *QUICKLY, "--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert err.count("aa.png") == 1
    assert "calibrated on 3 images" in out
    assert output.exists()


@pytest.mark.parametrize("kind", ["empty folder", "no folder", "bad images", "no output folder"])
def test_quantize_without_usable_images_writes_nothing(
    kind: str, seeded_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, output = tmp_path / "images", tmp_path / "int8.safetensors"
    if kind != "no folder":
        folder.mkdir()
    if kind == "bad images":
        (folder / "a.png").write_bytes(b"")
    if kind == "no output folder":
        output = tmp_path / "nowhere" / "int8.safetensors"
    words = ["quantize", "--weights", str(seeded_file), "--calibrate", str(folder)]
    assert main([*words, "-o", str(output)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("minires: ") for line in err.splitlines())
    assert "nowhere" in err if kind == "no output folder" else "images" in err
    assert not output.exists()


PRESET: dict[str, Any] = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
TOLD = {"categories": ["cat", "dog"], "preset": PRESET}
UNBELIEVABLE: dict[str, dict[str, Any]] = {
    "wanted at most": {"preset": {**PRESET, "enlarge": 20_000}},
    "a whole number": {"preset": {**PRESET, "resize": "224"}},
    "32 or more": {"preset": {**PRESET, "crop": 31}},
    "preset is": {"preset": [1, 2]},
    "no categories": {"categories": None},
    "nested": {"categories": "[" * 10**5},
    "a name": {"categories": ["cat", "\x1b[2Jdog"]},
    "0 categories": {"categories": []},
}


@pytest.mark.parametrize("word", UNBELIEVABLE)
def test_what_a_file_says_of_itself_is_not_believed(
    word: str, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    network = SimpleNamespace(layers=resnet50_layers(2), meta={})
    monkeypatch.setattr(api.ResNet50, "from_state_dict", lambda _: network)
    path = photographs / "told.safetensors"
    told = {**TOLD, **UNBELIEVABLE[word]}
    metadata = {
        k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items() if v is not None
    }
    small = {"fc.bias": np.zeros(2, np.float32)}
    save_file(small, path, {"format": api.FORMAT, **metadata})
    assert main(["classify", str(photographs / "b.png"), "--weights", str(path)]) == 1
    text = complaint(capsys)
    assert f"{path}: " in text
    assert word in text
    assert len(text) < len(str(path)) + 400


SPOILED_OUTPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a device": (lambda path: path.symlink_to(os.devnull), "a device"),
    "a folder": (Path.mkdir, "a folder"),
    "a loop": (lambda path: path.symlink_to(path), "cannot be written"),
}


@pytest.mark.parametrize("kind", SPOILED_OUTPUTS)
def test_a_place_that_cannot_be_written_to_is_told_before_weights_are_looked_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(api, "resnet50", lambda *_: pytest.fail("weights were looked for"))
    make, word = SPOILED_OUTPUTS[kind]
    make(tmp_path / "int8.safetensors")
    assert main(["quantize", "-o", str(tmp_path / "int8.safetensors")]) == 1
    text = complaint(capsys)
    assert f"{tmp_path / 'int8.safetensors'}: " in text
    assert word in text


def test_a_full_disk_is_told_before_calibration(
    seeded_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    resource = pytest.importorskip("resource")  # Unix has it
    monkeypatch.setattr("minires.quantize.commands.calibrate", lambda *_: pytest.fail("calibrated"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = tmp_path / "int8.safetensors"
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        assert main(["quantize", "--weights", str(seeded_file), "-o", str(output)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{output}: cannot be written (File too large)" in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_not_overwritten_by_what_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(api, "resnet50", lambda *_: pytest.fail("weights were read"))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"precious")
    (tmp_path / "hard").hardlink_to(weights)
    for output in weights, tmp_path / "hard", tmp_path / "." / "weights.safetensors":
        assert main(["quantize", "--weights", str(weights), "-o", str(output)]) == 1
        assert f"{output}: holds the weights to quantize" in complaint(capsys)
    assert weights.read_bytes() == b"precious"


@pytest.mark.usefixtures("loaded")
def test_evaluate_counts_what_it_can(photographs: Path, capsys: Capture) -> None:
    labels = photographs / "labels.csv"
    words = ["evaluate", str(photographs), "--labels", str(labels)]
    labels.write_text("file,label\nb.png,3\ngone.png,4\n")
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.startswith("1 image, and the 95% interval of each share\n  fp32")
    assert "agree" not in out  # there is nothing to compare fp32 with
    assert "gone.png" in err
    assert "minires: evaluating ...\n" in err  # there is no bar in a pipe
    for text, word in [("file,label\nb.png,1000\n", "1000"), ("file,label\ngone.png,1\n", "usable"),
                       ("name\nb.png\n", "columns")]:  # fmt: skip
        labels.write_text(text)
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert word in err.splitlines()[-1]


@pytest.mark.usefixtures("loaded")
def test_folders_of_classes_need_no_labels(
    photographs: Path, model: api.ResNet50, capsys: Capture
) -> None:
    (photographs / model.meta["categories"][7]).mkdir()
    save_photograph(photographs / model.meta["categories"][7] / "a.png", 0)
    words = ["--weights", "seeded.safetensors"]
    assert main(["evaluate", str(photographs), *words]) == 0
    assert capsys.readouterr().out.startswith("1 image, ")
    assert main(["evaluate", str(photographs / model.meta["categories"][7]), *words]) == 1
    assert "no folders of classes" in complaint(capsys)
    assert main(["evaluate", str(photographs), "--against", "none", "--against-weights", "x"]) == 1
    assert "leave out --against none" in complaint(capsys)


def test_int8_weights_are_not_asked_for_fp32(
    photographs: Path, tmp_path: Path, seeded_file: Path, capsys: Capture
) -> None:
    model = api.resnet50(seeded_file)
    output = tmp_path / "int8.safetensors"
    x = np.random.RandomState(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    save_int8(quantize_model(model, calibrate(model, [x])), output)
    words = ["classify", str(photographs), "--weights", str(output)]
    assert main([*words, "--precision", "fp32"]) == 1
    assert "ask for precision int8" in complaint(capsys)
    assert main([*words, "--json"]) == 0  # unless one asks, the weights' own precision
    assert json.loads(capsys.readouterr().out)["model"]["precision"] == "int8"
    assert main(["summary", "--weights", str(output)]) == 0
    assert "zero point" in capsys.readouterr().out


@pytest.mark.usefixtures("loaded")
def test_odd_arguments_do_not_keep_good_ones_from_an_answer(
    photographs: Path, capsys: Capture
) -> None:
    (photographs / "folder.jpg").mkdir()
    (photographs / "._a.jpg").write_bytes(b"what macOS leaves beside a file")
    assert main(["classify", str(photographs)]) == 0
    capsys.readouterr()
    assert main(["classify", str(photographs / "b.png"), "x" * 300 + ".jpg"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(str(photographs / "b.png"))
    assert "File name too long" in err


def test_a_mistyped_name_is_told_before_weights_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(api, "resnet50", lambda *_: pytest.fail("weights were looked for"))
    assert main(["classify", str(tmp_path / "kat.jpg")]) == 1
    assert "kat.jpg: no such file" in complaint(capsys)


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line(
    photographs: Path, seeded_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("MINIRES_CACHE", str(photographs / "b.png"))  # a file, not a folder
    monkeypatch.setattr("minires.quantize.default.calibration_photographs",
                        lambda: [photographs / "b.png"])  # fmt: skip
    monkeypatch.setattr("minires.quantize.default.RECIPE", ("mse", "nearest", "off"))
    words = ["--weights", str(seeded_file), "--precision", "int8"]
    status, err = main(["classify", str(photographs / "a.JPG"), *words]), capsys.readouterr().err
    assert status == 0, err
    calibrating, warning = err.splitlines()
    assert calibrating == "minires: calibrating for INT8, once ..."
    assert warning.startswith("minires: the INT8 network is not cached")


def test_a_name_that_would_be_ignored_is_refused(capsys: Capture) -> None:
    assert main(["weights", "list", "IMAGENET1K_V1"]) == 1
    assert "takes no name" in complaint(capsys)


def test_a_number_of_images_without_a_folder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main(["quantize", "--images", "9", "-o", str(tmp_path / "x.safetensors")]) == 1
    assert "--calibrate" in complaint(capsys)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--plot a.svg", "--sensitivity"),
        ("--dark", "--plot FILE"),
        ("--sensitivity --plot a.txt", ".svg"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused_first(
    words: str, wanted: str, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    output = tmp_path / "int8.safetensors"
    assert main(["quantize", "--weights", "no file", *words.split(), "-o", str(output)]) == 1
    assert wanted in complaint(capsys)


@pytest.mark.usefixtures("loaded")
def test_an_interrupted_run_keeps_the_answers_it_has(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    real = api.predict
    batches = iter([real, real])

    def predict(*arguments: Any) -> list[list[api.Prediction]]:
        for answer in batches:
            return answer(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "predict", predict)
    assert main(["classify", str(photographs), "--json", "--batch-size", "1"]) == 130
    answered = json.loads(capsys.readouterr().out)["images"]
    assert [Path(image["file"]).name for image in answered] == ["a.JPG", "b.png"]


@pytest.mark.usefixtures("small_images")
def test_networks_of_different_classes_are_not_compared(
    photographs: Path, seeded_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    save_file(seeded_state_dict(num_classes=10), tmp_path / "ten.safetensors")
    (photographs / "labels.csv").write_text("file,label\nb.png,3\n")
    words = ["evaluate", str(photographs), "--labels", str(photographs / "labels.csv")]
    words += ["--weights", str(tmp_path / "ten.safetensors"), "--against-weights", str(seeded_file)]
    words += ["--preset", "IMAGENET1K_V1"]
    assert main(words) == 1
    assert "ten.safetensors has 10 classes and seeded.safetensors has 1000" in complaint(capsys)


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("classfy cat.jpg", "classify"),
        ("lader", "ladder"),
        ("--verison", "--version"),
        ("classify cat.jpg --weigths a.pth", "--weights"),
        ("classify --weigths=a.pth", "--weights"),  # told before the missing image
        ("quantize --outptu int8.safetensors", "--output"),
        ("profile cat.jpg --precisoins fp32", "--precisions"),
        ("profile cat.jpg --precisions fp23", "fp32"),
        ("profile cat.jpg --group stages", "stage"),
        ("quantize --observer minimax -o x.safetensors", "minmax"),
        ("weights fecth", "fetch"),
    ],
)
def test_a_mistyped_word_is_told_with_the_nearest_right_one(
    words: str, nearest: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("minires")
    assert last.endswith(f"; did you mean {nearest}?")


@pytest.mark.parametrize("words", ["classify cat.jpg --xyz", "classify --precision abacus x", "xyz",
                                   "--precision int8 classify cat.jpg"])  # fmt: skip
def test_where_no_word_is_near_none_is_told(words: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_photograph_in_a_commands_place_is_told_what_to_type(
    tmp_path: Path, capsys: Capture
) -> None:
    photo = tmp_path / "cat.jpg"
    photo.touch()
    with pytest.raises(SystemExit):
        main([str(photo)])
    assert capsys.readouterr().err.endswith(f"; to name what it shows: minires classify {photo}\n")


def test_right_words_are_left_alone() -> None:
    parse = build_parser().parse_args
    assert parse(["classify", "--prec", "int8", "cat.jpg"]).precision == "int8"
    assert parse(["classify", "--weights=a.pth", "cat.jpg"]).weights == "a.pth"
    assert parse(["classify", "--", "--weigths"]).images == [Path("--weigths")]
    assert parse(["quantize", "-o", "int8.safetensors"]).output == Path("int8.safetensors")


def test_help_does_not_wait_for_numba() -> None:
    """Nor for matplotlib; and the choices are those of the registries."""
    script = """
import sys
from minires.cli import main
try:
    main(sys.argv[1:])
finally:
    assert not {"numba", "llvmlite", "matplotlib"} & sys.modules.keys()
"""
    for words, choices in [
        (["--help"], ["classify", "quantize", "roofline"]),
        (
            ["profile", "--help"],
            ["{phase,step,operator,block,stage}", "{fp32,bf16,fp16,tf32,int8}"],
        ),
        (["quantize", "--help"], ["{minmax,percentile,entropy,mse}"]),
    ]:
        process = subprocess.run([sys.executable, "-c", script, *words], env=os.environ | {
            "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False)  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert all(text in process.stdout for text in choices)


def test_a_pixel_is_explained(tmp_path: Path, capsys: Capture) -> None:
    save_photograph(tmp_path / "a.png", 0)
    words = ["explain", "conv1", str(tmp_path / "a.png"), "--weights", "CIFAR10"]
    assert main([*words, "--pixel", "1", "2", "3"]) == 0
    out = capsys.readouterr().out
    assert "row 1, column 2, channel 3 of its output" in out
    assert "the network has the same" in out
    assert main(["explain", "conv1", str(tmp_path / "none.png")]) == 1
    assert "none.png: cannot be opened" in complaint(capsys)


# What is measured: that it is told, not how fast it is


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("profile none.jpg", "none.jpg: cannot be opened"),
        ("profile labels.csv", "not an image"),
        ("profile b.png --plot plot.txt", ".png, .svg or .pdf"),
        ("profile b.png --plot none/plot.png", "folder"),
        ("profile b.png --latency --trace trace.json", "one of them"),
        ("profile b.png --trace none/trace.json", "folder"),
        ("roofline --plot plot.gif", ".png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_measured_is_told_before(
    words: str, named: str, photographs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--plot" in words:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.chdir(photographs)
    assert main(words.split()) == 1
    assert named in complaint(capsys)


@pytest.mark.usefixtures("loaded")
def test_a_profile_is_tables_and_a_trace(
    photographs: Path, model: api.ResNet50, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.backend = "numba"
    monkeypatch.setattr(trust, "TRIES", 1)
    monkeypatch.setattr(latency, "_throughput", lambda *_: (1.0, 0.0))  # batches of 32 take long
    trace = photographs / "trace.json"
    image = str(photographs / "b.png")
    assert main(["profile", image, "--precisions", "fp32", "--runs", "1", "--trace", str(trace),
                 "--group", "operator", "--sort", "macs"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert out.splitlines()[3].split()[0] == "conv"
    assert "conv 7x7/2" in out
    assert json.loads(trace.read_text("utf-8"))["traceEvents"]
    assert main(["profile", image, "--precisions", "fp32", "--runs", "1", "--json"]) == 0
    (of_fp32,) = json.loads(capsys.readouterr().out)["profiles"]
    assert of_fp32["precision"] == "fp32"
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert main(["profile", image, "--precisions", "fp32", "--runs", "2", "--latency"]) == 0
    told = capsys.readouterr()
    assert "p99" in told.out
    assert "quota allows 0.5" in told.err


def test_the_peak_is_told(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "TRIES", 1)
    assert main(["peak"]) == 0
    out = capsys.readouterr().out
    assert "arithmetic" in out
    assert "memory" in out
    assert main(["peak", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peaks"][0]["gops"] > 0


def test_numpys_whole_numbers_count_labels(model: api.ResNet50) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    assert len(api.classify(image, np.int64(3), model)) == 3  # type: ignore[arg-type]
    for top in (np.float32(3), np.int8(0), "3", None):
        with pytest.raises(api.MiniresError, match="wanted a whole number of at least 1"):
            api.classify(image, top, model)  # type: ignore[arg-type]


def test_a_profile_of_a_gpu_wants_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Without one, or without its compiler, that is said in a sentence; and so is a precision."""
    cat = "examples/images/cat.jpg"
    base = ["profile", cat, "--weights", "CIFAR10"]
    assert main([*base, "--precisions", "tf32"]) == 1
    assert "backend numba runs fp32, bf16, int8, int8-simulated, and not tf32" in (
        capsys.readouterr().err
    )
    assert main([*base, "--backend", "cuda", "--latency"]) == 1
    assert "leave --backend out" in capsys.readouterr().err
    if importlib.util.find_spec("numba_cuda") is None:
        assert main([*base, "--backend", "cuda"]) == 1
        assert 'pip install "numba-cuda' in capsys.readouterr().err
        assert main(["roofline", "--weights", "CIFAR10", "--backend", "cuda"]) == 1
        assert "no NVIDIA GPU can be used here" in capsys.readouterr().err
