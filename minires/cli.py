"""The command line: ``minires COMMAND``, or ``python -m minires COMMAND``.

A command is two functions: `add_classify` adds the options of ``minires classify``, and `classify`
runs it. A room's own commands are in the room: quantize/commands.py, measure/commands.py and
lab/command.py. Answers go to stdout, everything else to stderr. The exit status is 0 if everything
was answered, 1 if an image or the weights could not be used, and 2 for a command line that makes no
sense.
"""

import errno
import functools
import io
import json
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minires import api, download, options
from minires import evaluate as evaluating
from minires import explain as explaining
from minires.api import BACKENDS
from minires.backends import INT8
from minires.doctor import add_doctor, doctor
from minires.errors import SHOWN, ImageError, MiniresError, some
from minires.images import load_image
from minires.lab.command import add_lab, lab
from minires.measure import commands as measuring
from minires.measure.stopwatch import Stopwatch
from minires.model import resnet50_layers
from minires.notice import bar_hidden, complain, progress_bar, tell
from minires.options import Parser
from minires.preprocess import IMAGENET_V1
from minires.quantize import commands as quantizing
from minires.sources import STDIN, find_images, no_image_in, opened
from minires.summary import format_edges, format_summary, summarize

CTRL_C = 130  # 128 and the signal's number, as shells have it
CLOSED_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`, or in this process's own words, and return the exit status."""
    arguments = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # some files' names cannot be encoded for stdout
        sys.stdout.reconfigure(errors="backslashreplace")
    offline = download.offline(getattr(arguments, "offline", False))
    try:
        with warnings.catch_warnings(), offline:
            warnings.showwarning = lambda message, *_: tell(f"minires: {message}")
            options.use_threads(arguments)
            status: int = arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return CTRL_C
    except Exception as error:
        if _reader_left(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE
        complain(error, arguments.debug)
        return 1
    return status


def _reader_left(error: Exception) -> bool:
    """Tell whether the program that reads the answers has ended, such as head."""
    if isinstance(error, OSError) and sys.platform == "win32":  # a wrong file would be named
        return error.errno in (errno.EPIPE, errno.EINVAL) and error.filename is None
    return isinstance(error, BrokenPipeError)


def add_classify(parser: Parser) -> None:
    """Add the options of `classify`."""
    text = "photographs, folders of them, patterns such as 'shots/*.jpg', or - for standard input"
    parser.add_argument("images", nargs="+", type=options.path, metavar="IMAGE|FOLDER", help=text)
    text = "look into the folders of a folder, too"
    parser.add_argument("-r", "--recursive", action="store_true", help=text)
    options.weights(parser)
    options.own_network(parser)
    options.offline(parser)
    options.precision(parser)
    text = "numba: compiled; numpy: the definitions; cuda: an NVIDIA GPU. Default: %(default)s"
    parser.add_argument("--backend", default="numba", choices=BACKENDS, help=text)
    options.threads(parser)
    options.number(parser, "--top", 5, "how many labels an image gets", "K")
    options.number(parser, "--batch-size", 8, "how many images are computed, and held, at once")
    either = parser.add_mutually_exclusive_group()
    options.json_answer(either)
    text = "answer with one line of JSON for each image, as soon as it is computed"
    either.add_argument("--jsonl", action="store_true", help=text)
    parser.add_argument("--time", action="store_true", help="tell on stderr how long it took")


def classify(arguments: Namespace) -> int:
    """Name what photographs show."""
    files = find_images(arguments.images, arguments.recursive)
    missing = [file for file in files if file != STDIN and not os.path.exists(file)]
    empty = [file for file in files if os.path.isdir(file)]  # folders without an image
    if len(missing) == len(files):  # say so before 100 MB are downloaded in vain
        raise ImageError(f"{some(missing)}: no such file or folder")
    if len(missing) + len(empty) == len(files):
        raise no_image_in(empty[0])
    told_already: set[Path] = set()
    if len(missing) > SHOWN:  # one line tells all of them
        complain(ImageError(f"{some(missing)}: no such file or folder"), arguments.debug)
        told_already.update(missing)
    precision = options.chosen_precision(arguments)
    own = options.own(arguments)
    watch = Stopwatch()
    model = api.resnet50(arguments.weights, precision, arguments.backend, **own)
    answers = api.classify_files(model, files, arguments.top, arguments.batch_size)
    told: list[dict[str, Any]] = []
    if arguments.time:
        watch.network(model)
    try:
        # There is no bar in a run of less than 2 seconds, or if stderr is not a terminal.
        with tqdm(total=len(files), delay=2, leave=False, disable=bar_hidden()) as bar:
            for file, answer in answers:
                bar.clear()
                if isinstance(answer, ImageError) and file not in told_already:
                    complain(answer, arguments.debug)
                told.append(_tell_answer(file, answer, arguments))
                bar.update()
    finally:  # after Ctrl-C, the answers so far are still printed
        if arguments.json:
            used = {"name": model.meta["name"], "precision": precision}
            used["backend"] = arguments.backend
            print(json.dumps({"model": used, "images": told}, indent=2))
    if arguments.time:
        tell(f"minires: {watch.tell(len(told))}")
    return int(any("error" in image for image in told))


def _tell_answer(
    file: Path, answer: list[api.Prediction] | ImageError, arguments: Namespace
) -> dict[str, Any]:
    """Print one answer, and return it in the form for --json."""
    if isinstance(answer, ImageError):
        found: dict[str, Any] = {"file": str(file), "error": str(answer)}
    else:
        found = {"file": str(file), "predictions": [p._asdict() for p in answer]}
        if not (arguments.json or arguments.jsonl):
            lines = [f"  {p.probability:7.2%}  {p.label}" for p in answer]
            print(file, *lines, sep="\n", flush=True)
    if arguments.jsonl:
        print(json.dumps(found), flush=True)
    return found


def add_evaluate(parser: Parser) -> None:
    """Add the options of `evaluate`."""
    text = "where the photographs lie: in one folder for each class, unless --labels is given"
    parser.add_argument("folder", type=options.path, help=text)
    text = "a table with the columns file and label, where a label is a class's number"
    parser.add_argument("--labels", type=options.path, metavar="CSV", help=text)
    options.weights(parser)
    options.own_network(parser)
    options.offline(parser)
    options.precision(parser)
    options.threads(parser)
    text = "precision to compare with, or none. Default: fp32; for a file that is in INT8, none"
    parser.add_argument("--against", choices=(*options.PRECISIONS, "none"), help=text)
    text = "weights to compare with. Default: those of --weights"
    parser.add_argument("--against-weights", metavar="NAME|PATH", help=text)
    options.json_answer(parser)


def evaluate(arguments: Namespace) -> int:
    """Measure accuracy on labelled photographs, and compare two precisions."""
    rows = evaluating.read_labels(arguments.labels) if arguments.labels else []
    if arguments.against == "none" and arguments.against_weights:
        raise MiniresError("--against-weights is for a comparison; leave out --against none")
    weights = options.chosen_weights(arguments)
    precision = options.chosen_precision(arguments)
    against = arguments.against
    networks = evaluating.choose_networks(precision, weights, against, arguments.against_weights)
    own = options.own(arguments)
    models = [
        api.resnet50(of_model, precision, **(own if of_model is weights else {}))
        for precision, of_model in networks
    ]
    if not arguments.labels:
        categories = models[0].meta["categories"]
        rows = evaluating.label_folders(
            arguments.folder, categories, lambda text: tell(f"minires: {text}")
        )
    result = evaluating.evaluate_networks(
        models,
        arguments.folder,
        rows,
        tell=lambda error: complain(error, arguments.debug),
        progress=functools.partial(progress_bar, text="evaluating", leave=False),
    )
    print(json.dumps(result, indent=2) if arguments.json else evaluating.format_evaluation(result))
    return int(result["unusable"] > 0)


def add_explain(parser: Parser) -> None:
    """Add the options of `explain`."""
    parser.add_argument("layer", help="a layer's name, as minires summary lists them")
    parser.add_argument("image", type=options.path, help="a photograph, or - for standard input")
    text = "which value of the output. Default: the middle pixel, and its largest channel"
    metavar = ("Y", "X", "CHANNEL")
    parser.add_argument("--pixel", nargs=3, type=options.at_least(0), metavar=metavar, help=text)
    options.weights(parser)
    options.own_network(parser)
    options.offline(parser)


def explain(arguments: Namespace) -> int:
    """Show every product and sum behind one output value, in INT8 beside FP32."""
    image = load_image(opened(arguments.image))
    weights = options.chosen_weights(arguments)
    own = options.own(arguments)
    fp32, int8 = (api.resnet50(weights, precision, **own) for precision in ("fp32", "int8"))
    pixel = tuple(arguments.pixel) if arguments.pixel else None
    print(explaining.explain(fp32, int8, fp32.preprocess(image), arguments.layer, pixel))
    return 0


def add_summary(parser: Parser) -> None:
    """Add the options of `summary`."""
    either = parser.add_mutually_exclusive_group()
    options.weights(either)
    options.number(either, "--classes", 1000, "how many classes")
    options.preset(parser)
    options.offline(parser)
    options.precision(parser)
    options.input_size(parser)


def summary(arguments: Namespace) -> int:
    """Print the network's layers: shapes, parameters and multiply-adds."""
    for name in ("precision", "preset"):
        if getattr(arguments, name) and not arguments.weights:
            raise MiniresError(f"--{name} needs weights; give --weights with it")
    layers = resnet50_layers(arguments.classes)
    edges = ""
    preset = IMAGENET_V1
    if arguments.weights:
        precision = options.chosen_precision(arguments)
        options.check_size(arguments, [precision])
        model = api.resnet50(arguments.weights, precision, **options.own(arguments))
        layers = list(model.layers)
        preset = model.meta["preset"]
        if model.precision in INT8:
            edges = f"\n\n{format_edges(layers, model.meta.get('saturated', {}))}"
    height, width = options.chosen_size(arguments, preset)
    print(f"{format_summary(summarize(layers, height, width, arguments.batch))}{edges}")
    return 0


def add_weights(parser: Parser) -> None:
    """Add the options of `weights`."""
    text = "list what is known by name, tell a file's path, fetch it, or verify its checksum"
    parser.add_argument("action", choices=("list", "path", "fetch", "verify"), help=text)
    text = f"which weights. Default: {download.DEFAULT}"
    parser.add_argument("name", nargs="?", help=text)


def weights(arguments: Namespace) -> int:
    """List the weights known by name, or find, fetch or verify some."""
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


COMMANDS = [
    (classify, add_classify),
    (quantizing.quantize, quantizing.add_quantize),
    (evaluate, add_evaluate),
    (summary, add_summary),
    (explain, add_explain),
    (measuring.ladder, measuring.add_ladder),
    (measuring.profile, measuring.add_profile),
    (measuring.peak, measuring.add_peak),
    (measuring.roofline, measuring.add_roofline),
    (lab, add_lab),
    (weights, add_weights),
    (doctor, add_doctor),
]


def build_parser() -> Parser:
    """Put the commands together; each is named after the function that runs it."""
    parser = Parser(prog="minires", description="ResNet-50 inference.")
    parser.add_argument("--version", action=options.Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for run, add in COMMANDS:
        text = run.__doc__
        command = commands.add_parser(run.__name__, help=text, description=text)
        add(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run)
    return parser
