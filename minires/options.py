"""Options that several commands share, and a parser that helps with typing errors."""

import argparse
import difflib
import itertools
import os
import sys
from argparse import Namespace, _ActionsContainer
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from minires import download
from minires.errors import MiniresError
from minires.layers import OPERATORS

PRECISIONS = tuple(OPERATORS)
# int8-simulated shows INT8's numbers, not its speed: it computes in float32.
MEASURED = tuple(precision for precision in PRECISIONS if precision != "int8-simulated")


class Parser(argparse.ArgumentParser):
    """argparse's parser, except that it proposes the nearest right word for a wrong one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Look for wrong options first, because argparse would first complain of missing ones."""
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers:  # what follows the command is for the command's own parser
            words = words[:1]
        options = list(self._option_string_actions)
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            known = any(option.startswith(name) for option in options)  # --prec is --precision
            if name.startswith("--") and not known:
                self.error(f"there is no option {name}{_nearest(name, options)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            nearest = _nearest(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, error.message + nearest) from error


def _nearest(word: str, known: Iterable[str]) -> str:
    # 0.75 finds words with swapped or missing letters, but not words that only end alike.
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


class Version(argparse.Action):
    """Look the version up only when asked, because a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version and end."""
        print(f"minires {metadata.version('minires')}")
        parser.exit()


def at_least(minimum: int) -> Callable[[str], int]:
    """Make the type of an option that takes a whole number, at least the minimum."""

    def number(word: str) -> int:
        if int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word} is less than {minimum}")
        return int(word)

    return number


def path(word: str) -> Path:
    """Make a path of an option; refuse an empty word, as from a shell variable that is not set."""
    if not word:
        raise argparse.ArgumentTypeError("a name is empty; . is the current folder")
    return Path(word)


# Each of these adds options that several commands take.


def weights(parser: _ActionsContainer) -> None:
    """Add --weights, for `chosen_weights` or `minires.resnet50`."""
    text = "a name that 'minires weights list' shows, or a .pth or .safetensors file"
    parser.add_argument("--weights", metavar="NAME|PATH", help=text)


def own_network(parser: Parser) -> None:
    """Add --categories and --preset, for `own`."""
    text = "names of a network of your own: a line each, or a folder with a folder for each class"
    parser.add_argument("--categories", type=path, metavar="FILE|FOLDER", help=text)
    text = "how it wants its images: as the weights of this name do, IMAGENET1K_V1 unless given"
    parser.add_argument("--preset", metavar="NAME", help=text)


def own(arguments: Namespace) -> dict[str, Any]:
    """Hand to `minires.resnet50` what --categories and --preset say."""
    return {"categories": arguments.categories, "preset": arguments.preset}


def offline(parser: Parser) -> None:
    """Add --offline, which counts while the command runs."""
    text = (
        "download nothing, as with MINIRES_OFFLINE=1; where no weights are named and "
        f"{download.DEFAULT} is not here, {download.FALLBACK} answers"
    )
    parser.add_argument("--offline", action="store_true", help=text)


def precision(parser: Parser) -> None:
    """Add --precision."""
    text = "%(default)s unless given"
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help=text)


def precisions(parser: Parser, *default: str) -> None:
    """Add --precisions, for commands that measure several of them."""
    text = f"{', '.join(default)} unless given"
    parser.add_argument("--precisions", nargs="+", default=default, choices=MEASURED, help=text)


def number(
    parser: _ActionsContainer, name: str, default: int, text: str, metavar: str = "N"
) -> None:
    """Add an option that takes a whole number of at least 1."""
    text = f"{text}: {default} unless given"
    parser.add_argument(name, type=at_least(1), default=default, metavar=metavar, help=text)


def input_size(parser: Parser) -> None:
    """Add --size and --batch."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=at_least(32),
        default=(224, 224),
        metavar=("HEIGHT", "WIDTH"),
        help="pixels: 224 224 unless given",
    )
    number(parser, "--batch", 1, "how many images")


def plot(parser: Parser) -> None:
    """Add --plot."""
    parser.add_argument("--plot", metavar="FILE", help="draw it too: a .png, .svg or .pdf file")


def json_answer(parser: Parser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")


def chosen_weights(arguments: Namespace) -> str | download.Weights:
    """Choose the weights once, if several networks are to be made of them."""
    given: str | None = arguments.weights
    return download.default_weights() if given is None else given


def check_folder(path: Path) -> None:
    """Raise `MiniresError` if a path's folder is missing: call it before long work."""
    if not os.path.isdir(path.absolute().parent):
        raise MiniresError(f"{path}: its folder is not there; make it first")
