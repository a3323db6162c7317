"""The command line: ``minires COMMAND``, or ``python -m minires COMMAND``.

A command is a function and the options it takes; both stand in `COMMANDS`. Answers go to stdout
and everything else to stderr. The exit status is 0 where all was answered, 1 where an image or
the weights could not be used, and 2 for a command line that makes no sense.
"""

import argparse
import io
import json
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# What else a command needs is imported where it runs: --help is quick that way.
from minires.errors import ImageError, MiniresError

if TYPE_CHECKING:
    from minires.api import Prediction
    from minires.layers import Array
    from minires.model import ResNet50

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


def classify(arguments: Namespace) -> int:
    """Name what photographs show."""
    from tqdm import tqdm

    from minires.api import resnet50

    model = resnet50(arguments.weights, arguments.precision, arguments.backend)
    files = _find_images(arguments.images)
    images: list[dict[str, Any]] = []
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
        inside = sorted(source.iterdir()) if source.is_dir() else []
        files += [path for path in inside if path.suffix.lower() in suffixes] or [source]
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
            if file.is_dir():
                raise ImageError(f"{file}: no image lies in this folder")
            images.append(preprocess(file, model.meta["preset"]))  # (1, 3, H, W)
        except ImageError as error:
            images.append(error)
    good = [image for image in images if not isinstance(image, ImageError)]
    predictions = iter(predict(model, np.concatenate(good), top) if good else [])
    return [image if isinstance(image, ImageError) else next(predictions) for image in images]


def summary(arguments: Namespace) -> int:
    """Print the network's layers: shapes, parameters and multiply-adds."""
    from minires import api, model
    from minires.summary import format_summary, summarize

    if arguments.weights:
        layers = api.resnet50(arguments.weights).layers
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
        for known in download.available_weights():
            print(f"{known:<16}{download.locate(known) or 'not here yet'}")
    elif arguments.action == "fetch":
        print(download.fetch(name))
    elif arguments.action == "verify":
        print(f"{download.verify(name)}: the checksum is right")
    else:
        path = download.locate(name)
        if path is None:
            raise MiniresError(f"{name} is not here yet; minires weights fetch {name} gets it")
        print(path)
    return 0


def _complain(error: Exception, debug: bool) -> None:
    """Say on stderr in one line what is wrong, under its traceback where that is wanted."""
    text = str(error)
    if not isinstance(error, MiniresError):
        text = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
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
    """What a command runs, and what it takes: names in `OPTIONS`, ``|`` between alternatives."""

    run: Callable[[Namespace], int]
    options: tuple[str, ...]


COMMANDS = {
    "classify": Command(
        classify,
        ("images", "--weights", "--precision", "--backend", "--top", "--batch-size", "--json"),
    ),
    "summary": Command(summary, ("--weights|--classes", "--size", "--batch")),
    "weights": Command(weights, ("action", "name")),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "images": {"nargs": "+", "type": Path, "metavar": "IMAGE|FOLDER"},
    "--weights": {"metavar": "NAME|PATH", "help": "a name that 'minires weights list' shows, or "
                  "a .pth or .safetensors file"},
    "--precision": {"default": "fp32", "choices": ("fp32", "int8", "int8-simulated")},
    "--backend": {"default": "numpy", "choices": ("numpy",)},
    "--top": _at_least(1, 5, "K", "how many labels an image gets: %(default)s unless given"),
    "--batch-size": _at_least(1, 8, "N", "how many images are computed, and held, at once: "
                              "%(default)s unless given"),
    "--json": {"action": "store_true", "help": "answer with one JSON document"},
    "--classes": _at_least(1, 1000, "N", "how many classes: %(default)s unless given"),
    "--size": _at_least(32, (224, 224), ("HEIGHT", "WIDTH"), "pixels: 224 224 unless given",
                        nargs=2),
    "--batch": _at_least(1, 1, "N", "how many images: %(default)s unless given"),
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
                group.add_argument(alternative, **OPTIONS[alternative])
    return parser
