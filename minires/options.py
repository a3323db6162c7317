"""Options that several commands share, and a parser that helps with typing errors."""

import argparse
import itertools
import os
import sys
from argparse import Namespace, _ActionsContainer
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from minires import download
from minires.errors import MiniresError, nearest
from minires.kernels.cpu import set_num_threads
from minires.layers import OPERATORS
from minires.preprocess import Preset
from minires.quantize.int8_file import is_int8_file

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
                self.error(f"there is no option {name}{nearest(name, options)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = nearest(str(value), map(str, action.choices or ()))
            if action.dest == "command" and os.path.exists(str(value)):
                hint = f"; to name what it shows: minires classify {value}"
            raise argparse.ArgumentError(action, error.message + hint) from error


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
    text = "names of your classes: a file with one on each line, or a folder with a folder for each"
    parser.add_argument("--categories", type=path, metavar="FILE|FOLDER", help=text)
    preset(parser)


def preset(parser: Parser) -> None:
    """Add --preset alone, for `own`: where no label is shown."""
    text = "prepare images as for the weights of this name"
    parser.add_argument("--preset", metavar="NAME", help=text)


def own(arguments: Namespace) -> dict[str, Any]:
    """Hand to `minires.resnet50` what --categories and --preset say."""
    return {name: getattr(arguments, name, None) for name in ("categories", "preset")}


def offline(parser: Parser) -> None:
    """Add --offline, which counts while the command runs."""
    text = (
        "download nothing, as with MINIRES_OFFLINE=1; where no weights are named and "
        f"{download.DEFAULT} is not here, {download.FALLBACK} answers"
    )
    parser.add_argument("--offline", action="store_true", help=text)


def precision(parser: Parser) -> None:
    """Add --precision, for `chosen_precision`."""
    text = "what to compute in. Default: int8 if the weights are in INT8, else fp32"
    parser.add_argument("--precision", choices=PRECISIONS, help=text)


def precisions(parser: Parser, *default: str, others: str = "") -> None:
    """Add --precisions, for commands that measure several of them."""
    text = f"what to measure. Default: {', '.join(default)}{others}"
    parser.set_defaults(usual_precisions=default)
    parser.add_argument("--precisions", nargs="+", choices=MEASURED, help=text)


def threads(parser: Parser) -> None:
    """Add --threads, for `use_threads`."""
    text = "number of threads. Default: OMP_NUM_THREADS, else one a core, or fewer under a quota"
    parser.add_argument("--threads", type=at_least(1), metavar="N", help=text)


def number(
    parser: _ActionsContainer, name: str, default: int, text: str, metavar: str = "N"
) -> None:
    """Add an option that takes a whole number of at least 1."""
    text = f"{text}. Default: {default}"
    parser.add_argument(name, type=at_least(1), default=default, metavar=metavar, help=text)


def input_size(parser: Parser) -> None:
    """Add --size, for `chosen_size`, and --batch."""
    text = "pixels. Default: the size of the network's own images, such as 224 224"
    metavar = ("HEIGHT", "WIDTH")
    parser.add_argument("--size", nargs=2, type=at_least(32), metavar=metavar, help=text)
    number(parser, "--batch", 1, "how many images")


def plot(parser: Parser) -> None:
    """Add --plot and --dark."""
    parser.add_argument("--plot", metavar="FILE", help="draw it too: a .png, .svg or .pdf file")
    parser.add_argument("--dark", action="store_true", help="draw on black")


def json_answer(parser: _ActionsContainer) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")


def chosen_weights(arguments: Namespace) -> str | download.Weights:
    """Choose the weights once, if several networks are to be made of them."""
    given: str | None = arguments.weights
    return download.default_weights() if given is None else given


def check_size(arguments: Namespace, precisions: Iterable[str]) -> None:
    """Refuse --preset beside --size, unless floats are still to be calibrated by its images."""
    calibrates = "int8" in precisions and not _in_int8(arguments)
    if arguments.preset and arguments.size and not calibrates:
        raise MiniresError("--size chooses the images' size, as --preset does; give one of them")


def chosen_size(arguments: Namespace, preset: Preset) -> tuple[int, int]:
    """Choose the images' height and width: as asked, or as the network's preset makes them."""
    height, width = arguments.size or (preset.side, preset.side)
    return height, width


def chosen_precision(arguments: Namespace) -> str:
    """Choose the precision: the one asked for, or that of the weights."""
    given: str | None = arguments.precision
    return given or ("int8" if _in_int8(arguments) else "fp32")


def chosen_precisions(arguments: Namespace) -> list[str]:
    """Choose the precisions to measure: as asked, or those usual that the weights have."""
    usual = ["int8"] if _in_int8(arguments) else arguments.usual_precisions
    return list(dict.fromkeys(arguments.precisions or usual))


def _in_int8(arguments: Namespace) -> bool:
    given = getattr(arguments, "weights", None)
    return given is not None and os.path.isfile(given) and is_int8_file(Path(given))


def use_threads(arguments: Namespace) -> None:
    """Let as many threads compute as --threads says, where they are the CPU's kernels'."""
    count = getattr(arguments, "threads", None)
    backend = getattr(arguments, "backend", "numba")
    if count and backend != "numba":
        raise MiniresError(
            f"--threads counts the CPU's threads; leave it out with --backend {backend}"
        )
    if count:
        set_num_threads(count)
