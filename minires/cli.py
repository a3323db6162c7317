"""The command line: ``minires COMMAND``, or ``python -m minires COMMAND``.

A command is a function and the options it takes; both stand in `COMMANDS`. Answers go to stdout
and everything else to stderr. The exit status is 0 where all was answered, 1 where an image or
the weights could not be used, and 2 for a command line that makes no sense.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# What else a command needs is imported where it runs: --help is quick that way.
from minires.errors import ImageError, MiniresError

if TYPE_CHECKING:
    from minires.api import Prediction
    from minires.download import Weights
    from minires.kernels.peak import Peak
    from minires.layers import Array
    from minires.model import ResNet50

CALIBRATION_IMAGES = 128
PRECISIONS = ("fp32", "bf16", "int8", "int8-simulated")
CTRL_C, CLOSED_PIPE = 130, 141  # 128 and the signal's number, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``minires``; those of this process unless given.

    Returns
    -------
    int
        The exit status.
    """
    arguments = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what stdout cannot
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings(), _environment(arguments):
            warnings.showwarning = lambda message, *_: print(f"minires: {message}", file=sys.stderr)
            status = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return CTRL_C
    except BrokenPipeError:  # whoever read the answers has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        _complain(error, arguments.debug)
        return 1
    return status


@contextlib.contextmanager
def _environment(arguments: Namespace) -> Iterator[None]:
    """Let --offline be MINIRES_OFFLINE=1, for as long as the command runs."""
    before = os.environ.get("MINIRES_OFFLINE")
    if getattr(arguments, "offline", False):
        os.environ["MINIRES_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MINIRES_OFFLINE", None)
        else:
            os.environ["MINIRES_OFFLINE"] = before


def classify(arguments: Namespace) -> int:
    """Name what photographs show."""
    from tqdm import tqdm

    from minires.api import resnet50

    files = _find_images(arguments.images)
    if not any(map(os.path.exists, files)):  # told before 100 MB are fetched in vain
        raise ImageError(f"{', '.join(map(str, files))}: no such file or folder")
    model = resnet50(arguments.weights, arguments.precision, arguments.backend)
    images: list[dict[str, Any]] = []
    try:
        # A short run shows no bar, nor does one whose stderr is not a terminal.
        with tqdm(total=len(files), delay=2, leave=False, disable=None) as bar:
            for start in range(0, len(files), arguments.batch_size):  # one batch is held at once
                batch = files[start : start + arguments.batch_size]
                answers = _answer(model, batch, arguments.top)
                bar.clear()
                for file, answer in zip(batch, answers, strict=True):
                    if isinstance(answer, ImageError):
                        _complain(answer, arguments.debug)
                        images.append({"file": str(file), "error": str(answer)})
                        continue
                    images.append({"file": str(file), "predictions": [p._asdict() for p in answer]})
                    if not arguments.json:
                        lines = [f"  {p.probability:7.2%}  {p.label}" for p in answer]
                        print(file, *lines, sep="\n", flush=True)
                bar.update(len(batch))
    finally:  # Ctrl-C loses nothing that was answered
        if arguments.json:
            used = {"name": model.meta["name"]}
            used |= {key: getattr(arguments, key) for key in ("precision", "backend")}
            print(json.dumps({"model": used, "images": images}, indent=2))
    return int(any("error" in image for image in images))


def _find_images(sources: Sequence[Path]) -> list[Path]:
    """Put a folder's images in its place, by name; a folder without any stays."""
    from PIL import Image

    suffixes = {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for source in sources:
        inside: list[Path] = []
        with contextlib.suppress(OSError):  # what cannot be looked into is told of when opened
            inside = sorted(source.iterdir())
        files += [
            path
            for path in inside
            if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file()
        ] or [source]
    return files


def _answer(
    model: "ResNet50", files: list[Path], top: int
) -> "list[list[Prediction] | ImageError]":
    """Classify files in one go; a bad one gets its error in place of predictions."""
    import numpy as np

    from minires.api import predict
    from minires.preprocess import preprocess

    images: list[Array | ImageError] = []
    for file in files:
        try:
            if os.path.isdir(file):
                raise ImageError(f"{file}: no image lies in this folder")
            images.append(preprocess(file, model.meta["preset"]))  # (1, 3, H, W)
        except ImageError as error:
            images.append(error)
    good = [image for image in images if not isinstance(image, ImageError)]
    predictions = iter(predict(model, np.concatenate(good), top) if good else [])
    return [image if isinstance(image, ImageError) else next(predictions) for image in images]


def quantize(arguments: Namespace) -> int:
    """Turn float32 weights into an INT8 file, and report what that cost."""
    from tqdm import tqdm

    from minires.api import resnet50
    from minires.preprocess import preprocess
    from minires.quantize import calibrate, quantize_model, save_int8
    from minires.quantize.default import OBSERVER, default_batches, stored_calibration
    from minires.quantize.report import format_report, report

    if arguments.images and not arguments.calibrate:
        raise MiniresError("--images counts those of a folder; give --calibrate FOLDER with it")
    if not arguments.output.absolute().parent.is_dir():
        raise MiniresError(f"{arguments.output}: its folder is not there; make it first")
    files: list[Path] = []
    if arguments.calibrate:
        files = _find_images([arguments.calibrate])
        if files == [arguments.calibrate] and not files[0].is_file():
            raise MiniresError(f"{arguments.calibrate}: not a folder with an image in it")
        count = min(len(files), arguments.images or CALIBRATION_IMAGES)
        # Evenly spread, because folders are often sorted.
        files = [files[i * len(files) // count] for i in range(count)]
    fp32 = resnet50(arguments.weights)
    preset = fp32.meta["preset"]
    bad: list[Path] = []

    def batches() -> Iterator["Array"]:
        for file in files:
            if file not in bad:
                try:
                    yield preprocess(file, preset)  # (1, 3, H, W)
                except ImageError as error:
                    bad.append(file)
                    _complain(error, arguments.debug)

    source = batches if arguments.calibrate else functools.partial(default_batches, preset)

    def shown(text: str) -> Iterator["Array"]:
        with tqdm(source(), text, len(files) or None, leave=False, disable=None) as bar:
            yield from bar

    as_classify = not (arguments.calibrate or arguments.observer)
    calibration = stored_calibration(fp32) if as_classify else None
    observer = arguments.observer or OBSERVER
    calibration = calibration or calibrate(fp32, shown("calibrating"), observer)
    int8 = quantize_model(fp32, calibration)
    save_int8(int8, arguments.output)
    print(format_report(report(fp32, int8, shown("comparing with FP32"))))
    size = arguments.output.stat().st_size / 1e6
    print(
        f"{arguments.output}: {int8.meta['name']}, {size:.1f} MB, calibrated on "
        f"{calibration.images} images or crops"
    )
    return int(bool(bad))


def evaluate(arguments: Namespace) -> int:
    """Measure accuracy on labelled photographs, and compare two precisions."""
    import numpy as np
    from tqdm import tqdm

    from minires.api import resnet50
    from minires.evaluate import accuracy, compare, logits_of, read_labels
    from minires.quantize.int8_file import is_int8_file

    rows = read_labels(arguments.labels)
    against = arguments.against
    if against is None:  # fp32, unless the weights are in INT8 alone
        given = arguments.weights
        alone = given and not arguments.against_weights and os.path.isfile(given)
        against = "none" if alone and is_int8_file(given) else "fp32"
    weights = _weights(arguments)
    asked = [(arguments.precision, weights)]
    other = (against, arguments.against_weights or weights)
    if against != "none" and other not in asked:
        asked.append(other)
    models = [resnet50(of_model, precision) for precision, of_model in asked]
    counted = [(model.meta["name"], model.layers[-1].out_c) for model in models]
    (name, classes), (other_name, other_classes) = counted[0], counted[-1]
    if classes != other_classes:
        raise MiniresError(
            f"{name} has {classes} classes and {other_name} has {other_classes}; give two networks "
            "of the same classes, as --weights and --against-weights"
        )
    for file, label in rows:
        if not 0 <= label < classes:
            raise MiniresError(
                f"{arguments.labels}: {file} has the label {label}; {name} knows 0 to {classes - 1}"
            )
    labels: list[int] = []
    logits: list[list[Array]] = []  # an image's, from each model
    for file, label in tqdm(rows, "evaluating", leave=False, disable=None):
        try:
            logits += logits_of(models, arguments.folder, [file])
            labels.append(label)
        except ImageError as error:
            _complain(error, arguments.debug)
    if not labels:
        raise MiniresError(f"{arguments.labels} names no usable image in {arguments.folder}")
    truth = np.array(labels)
    answers = [np.concatenate(of_model) for of_model in zip(*logits, strict=True)]
    result: dict[str, Any] = {"images": len(labels), "unusable": len(rows) - len(labels)}
    result["models"] = [
        {"name": model.meta["name"], "precision": precision, **accuracy(y, truth)._asdict()}
        for model, (precision, _), y in zip(models, asked, answers, strict=True)
    ]
    if len(answers) == 2:
        result["comparison"] = compare(answers[0], answers[1], truth)._asdict()
    print(json.dumps(result, indent=2) if arguments.json else _tell_accuracy(result))
    return int(result["unusable"] > 0)


def _tell_accuracy(result: dict[str, Any]) -> str:
    lines = [f"{result['images']} images"]
    for m in result["models"]:
        lines.append(
            f"  {m['precision']:<16}top-1 {m['top1']:7.2%}   top-5 {m['top5']:7.2%}   {m['name']}"
        )
    if "comparison" in result:
        c = result["comparison"]
        points, low, high = (f"{100 * c[key]:+.2f}" for key in ("difference", "low", "high"))
        lines += [
            f"the same label first on {c['agreement']:.2%}, right or wrong",
            f"top-1 differs by {points} points (95%: {low} to {high})",
            f"a logit differs by at most {c['largest_logit_difference']:.3g}",
        ]
    return "\n".join(lines)


def summary(arguments: Namespace) -> int:
    """Print the network's layers: shapes, parameters and multiply-adds."""
    from minires import api, model
    from minires.summary import format_summary, summarize

    if arguments.weights:
        layers = list(api.resnet50(arguments.weights, arguments.precision).layers)
    else:
        layers = model.resnet50_layers(arguments.classes)
    height, width = arguments.size
    print(format_summary(summarize(layers, height, width, arguments.batch)))
    return 0


def weights(arguments: Namespace) -> int:
    """List the weights known by name, or find, fetch or verify some."""
    from minires import download

    name = arguments.name or download.DEFAULT
    if arguments.action == "list":
        if arguments.name:
            raise MiniresError(f"minires weights list takes no name, but {name!r} was given")
        for known in download.available_weights():
            print(f"{known:<16}{download.locate(known) or 'not here yet'}")
    elif arguments.action == "fetch":
        print(download.fetch(name))
    elif arguments.action == "verify":
        print(f"{download.verify(name)}: the checksum is right")
    else:
        path = download.locate(name)
        if path is None:
            raise MiniresError(f"{name} is not here yet; {download.get_weights(name).remedy}")
        print(path)
    return 0


def ladder(arguments: Namespace) -> int:
    """Climb from a convolution's definition to the engine: check each rung, then time it."""
    from minires import plots
    from minires.kernels import ladder as rungs
    from minires.profiling.text import around

    if arguments.plot:
        plots.check(arguments.plot)
    if arguments.update:  # told before the minute that measuring takes
        around(arguments.update, "ladder")
    results = {p: list(rungs.climb(p)) for p in arguments.precisions or ("fp32", "int8")}
    table = rungs.format_table(results)
    if arguments.update:
        before, after = around(arguments.update, "ladder")  # it may have been edited meanwhile
        arguments.update.write_text(f"{before}\n{table}\n\n{after}", encoding="utf-8")
    if arguments.plot:
        rungs.plot(results, arguments.plot)
    print(table)
    return 0


def peak(arguments: Namespace) -> int:
    """Measure this machine: each multiplying instruction, one core and all, and the memory."""
    from minires.profiling import machine
    from minires.profiling.text import to_json

    peaks, memory = machine.measure_machine()
    _warn(peaks)
    if arguments.json:
        measured = {"machine": machine.describe_machine(), "peaks": peaks, "memory": memory}
        print(to_json(measured))
    else:
        print(machine.format_machine(peaks, memory))
    return 0


def roofline(arguments: Namespace) -> int:
    """Put every layer on this machine's roofline; or judge what is claimed of other machines."""
    import numpy as np

    from minires import plots
    from minires.api import resnet50
    from minires.kernels.peak import peak
    from minires.profiling import machine
    from minires.profiling import roofline as roofs

    if arguments.plot:
        plots.check(arguments.plot)
    if arguments.machine:
        known = roofs.read_machines()
        name = arguments.machine.lower()
        asked = [m for m in known if name in ("all", m.name.lower())]
        if not asked and not os.path.exists(arguments.machine):
            names = ", ".join(m.name for m in known)
            raise MiniresError(f"--machine {arguments.machine}: no such file; known are {names}")
        asked = asked or roofs.read_machines(arguments.machine)
        print(roofs.format_machines(asked))
        if arguments.plot:
            roofs.plot_machines(asked, arguments.plot)
        return 0
    shape = (arguments.batch, 3, *arguments.size)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)  # speed asks for no picture
    weights = _weights(arguments)
    models = {p: resnet50(weights, p) for p in arguments.precisions or ("fp32", "int8")}
    layers = roofs.measure_layers(models, x)
    _warn([peak(p) for p in models])
    name = next(iter(models.values())).meta["name"]
    title = f"{name}, {' x '.join(map(str, shape))}, on {machine.describe_machine()}"
    print(roofs.format_layers(layers, title))
    if arguments.plot:
        roofs.plot_layers(layers, arguments.plot, title)
    return 0


def profile(arguments: Namespace) -> int:
    """Tell where an image's time goes, and where the 4x of INT8 goes."""
    from minires import plots
    from minires.api import resnet50
    from minires.kernels.peak import peak
    from minires.preprocess import load_image, preprocess
    from minires.profiling import latency, profiler, waterfall
    from minires.profiling.text import to_json

    if arguments.plot:
        plots.check(arguments.plot)
    if arguments.trace and not arguments.trace.absolute().parent.is_dir():
        raise MiniresError(f"{arguments.trace}: its folder is not there; make it first")
    if arguments.latency and arguments.trace:
        raise MiniresError("--trace is of steps, and --latency of the whole way; give one of them")
    try:
        data = arguments.image.read_bytes()
    except OSError as error:
        raise ImageError(f"{arguments.image}: cannot be opened ({error.strerror})") from error
    load_image(data)  # told before weights are looked for
    weights = _weights(arguments)
    precisions = arguments.precisions or ("fp32", "bf16", "int8")
    models = {p: resnet50(weights, p) for p in precisions}
    if arguments.latency:
        found = latency.measure_latency(models, data, arguments.runs or 200)
        _warn([peak(p) for p in models])
        text = to_json(found) if arguments.json else "\n\n".join(map(latency.format_latency, found))
        print(text)
        if arguments.plot:
            latency.plot_latency(found, arguments.plot)
        return 0
    x = preprocess(data, next(iter(models.values())).meta["preset"])  # (1, 3, H, W)
    runs = arguments.runs or 30
    profiles = profiler.profile_in_turns(models, x, runs)
    _warn([peak(p) for p in models])
    fall = None
    if {"fp32", "int8"} <= models.keys():
        fall = waterfall.measure_waterfall(models, data, arguments.group, runs)
    if arguments.trace:
        profiler.write_chrome_trace(arguments.trace, list(profiles.values()))
    if arguments.plot:
        if fall:
            waterfall.plot_waterfall(fall, arguments.plot)
        else:
            next(iter(profiles.values())).plot(arguments.plot, arguments.group)
    if arguments.json:
        rows = [prof.to_json() for prof in profiles.values()]
        print(to_json({"profiles": [json.loads(text) for text in rows], "waterfall": fall}))
        return 0
    print("\n\n".join(p.table(arguments.group, arguments.sort) for p in profiles.values()))
    if fall:
        print(f"\n{waterfall.format_waterfall(fall)}")
    return 0


def _weights(arguments: Namespace) -> "str | Weights":
    """Choose the weights once where several networks are made of them."""
    from minires.download import default_weights

    return default_weights() if arguments.weights is None else arguments.weights


def _warn(peaks: "list[Peak]") -> None:
    """Say on stderr what makes figures of this machine doubtful."""
    from minires.profiling.machine import warnings_about

    for text in warnings_about(peaks):
        print(f"minires: {text}", file=sys.stderr)


def _complain(error: Exception, debug: bool) -> None:
    """Say on stderr in one line what is wrong, under its traceback where that is wanted."""
    text = str(error)
    if not isinstance(error, MiniresError):
        text = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    if isinstance(error, OSError) and error.filename and error.strerror:  # a full disk, say
        text = f"{error.filename}: {error.strerror}"
    if debug:
        traceback.print_exception(error)
    print(f"minires: {' '.join(text.split())}", file=sys.stderr)


class _Version(argparse.Action):
    """Look the version up only where it is asked for: a checkout on the path has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"minires {metadata.version('minires')}")
        parser.exit()


def _at_least(minimum: int, default: Any, names: Any, text: str, **more: Any) -> dict[str, Any]:
    """Describe an option that takes a whole number."""

    def number(word: str) -> int:
        if int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word} is less than {minimum}")
        return int(word)

    return {"type": number, "default": default, "metavar": names, "help": text, **more}


class Command(NamedTuple):
    """What a command runs, and what it takes: keys of `OPTIONS`, ``|`` between alternatives."""

    run: Callable[[Namespace], int]
    options: tuple[str, ...]


COMMANDS = {
    "classify": Command(classify, ("images", "--weights", "--offline", "--precision", "--backend",
                                   "--top", "--batch-size", "--json")),
    "quantize": Command(quantize, ("--weights", "--offline", "--calibrate", "--observer",
                                   "--images", "-o, --output")),
    "evaluate": Command(evaluate, ("folder", "--labels", "--weights", "--offline", "--precision",
                                   "--against", "--against-weights", "--json")),
    "summary": Command(summary, ("--weights|--classes", "--offline", "--precision", "--size",
                                 "--batch")),
    "ladder": Command(ladder, ("--precisions", "--plot", "--update")),
    "profile": Command(profile, ("image", "--weights", "--offline", "--precisions", "--group",
                                 "--sort", "--runs", "--latency", "--plot", "--trace", "--json")),
    "peak": Command(peak, ("--json",)),
    "roofline": Command(roofline, ("--weights|--machine", "--offline", "--precisions", "--size",
                                   "--batch", "--plot")),
    "weights": Command(weights, ("action", "name")),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "images": {"nargs": "+", "type": Path, "metavar": "IMAGE|FOLDER",
               "help": "photographs, or folders of them"},
    "--weights": {"metavar": "NAME|PATH", "help": "a name that 'minires weights list' shows, or "
                  "a .pth or .safetensors file"},
    "--offline": {"action": "store_true", "help": "download nothing, as with MINIRES_OFFLINE=1; "
                  "where none are named and IMAGENET1K_V2 is not here, CIFAR10 answers"},
    "--precision": {"default": "fp32", "choices": PRECISIONS, "help": "%(default)s unless given"},
    "--backend": {"default": "numba", "choices": ("numba", "numpy"),
                  "help": "compiled kernels or NumPy's definitions: %(default)s unless given"},
    "--top": _at_least(1, 5, "K", "how many labels an image gets: %(default)s unless given"),
    "--batch-size": _at_least(1, 8, "N", "how many images are computed, and held, at once: "
                              "%(default)s unless given"),
    "--json": {"action": "store_true", "help": "answer with one JSON document"},
    "folder": {"type": Path, "help": "where the photographs lie"},
    "--labels": {"type": Path, "required": True, "metavar": "CSV",
                 "help": "with the columns file and label, labels being class numbers"},
    "--against": {"choices": (*PRECISIONS, "none"), "help": "the precision to compare with: fp32 "
                  "unless given, or none for a file that is in INT8"},
    "--against-weights": {"metavar": "NAME|PATH", "help": "those of --weights unless given"},
    "--calibrate": {"type": Path, "metavar": "FOLDER", "help": "photographs like those to come; "
                    "what comes with the weights or the package unless given"},
    "--observer": {"choices": ("minmax", "percentile", "entropy", "mse"),
                   "help": "how a range is chosen: as classify does it unless given"},
    "--images": _at_least(1, None, "N", "how many of the folder, evenly spread over it: "
                          f"{CALIBRATION_IMAGES} unless given"),
    "-o, --output": {"type": Path, "required": True, "metavar": "FILE",
                     "help": "the .safetensors file to write"},
    "--classes": _at_least(1, 1000, "N", "how many classes: %(default)s unless given"),
    "--size": _at_least(32, (224, 224), ("HEIGHT", "WIDTH"), "pixels: 224 224 unless given",
                        nargs=2),
    "--batch": _at_least(1, 1, "N", "how many images: %(default)s unless given"),
    "--precisions": {"nargs": "+", "choices": ("fp32", "bf16", "int8"),
                     "help": "unless given fp32 and int8; profile takes bf16 as well"},
    "image": {"type": Path, "help": "a photograph"},
    "--group": {"choices": ("phase", "step", "operator", "block", "stage"), "default": "stage",
                "help": "what makes a row: %(default)s unless given"},
    "--sort": {"choices": ("order", "time", "calls", "macs", "bytes", "gops", "intensity", "name"),
               "default": "order", "help": "%(default)s, that of running, unless given"},
    "--runs": _at_least(1, None, "N", "how many runs are measured: 30, or 200 images with "
                        "--latency, unless given"),
    "--latency": {"action": "store_true", "help": "time the whole way instead, from the file's "
                  "bytes to the label, and throughput by batch"},
    "--trace": {"type": Path, "metavar": "FILE", "help": "write a .json that Perfetto opens"},
    "--machine": {"metavar": "NAME|all|FILE", "help": "judge this one by its papers: a name that "
                  "is known, all of these, or a .toml file of your own"},
    "--plot": {"metavar": "FILE", "help": "draw it too: a .png, .svg or .pdf file"},
    "--update": {"type": Path, "metavar": "FILE", "help": "put the table between the marks <!-- "
                 "ladder --> and <!-- /ladder --> of a Markdown file"},
    "action": {"choices": ("list", "path", "fetch", "verify")},
    "name": {"nargs": "?", "help": "the default weights unless given"},
    "--debug": {"action": "store_true", "help": "show the traceback of an error"},
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Put `COMMANDS` and `OPTIONS` together."""
    parser = argparse.ArgumentParser(prog="minires", description="ResNet-50 inference.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = command.run.__doc__
        subparser = commands.add_parser(name, help=text, description=text)
        for option in (*command.options, "--debug"):
            names = option.split("|")
            group = subparser.add_mutually_exclusive_group() if len(names) > 1 else subparser
            for alternative in names:
                group.add_argument(*alternative.split(", "), **OPTIONS[alternative])
    return parser
