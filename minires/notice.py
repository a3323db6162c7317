"""Messages on stderr, which may be missing: a service may have closed it, or its disk is full."""

import contextlib
import functools
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from minires.errors import MiniresError

PATIENCE = 60.0  # seconds until a reader of a log wants to know how far it is


def tell(text: str) -> None:
    """Print a line on stderr; if that fails, go on, because no answer may be lost for it."""
    if sys.stderr is not None:  # print would take None for stdout
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


@functools.cache
def tell_once(text: str) -> None:
    """Print a line on stderr, though it is asked for again: two precisions have one file."""
    tell(text)


def complain(error: Exception, debug: bool) -> None:
    """Tell an error on stderr in one line, and with --debug its traceback first."""
    text = str(error)
    if not isinstance(error, MiniresError):
        text = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    if isinstance(error, OSError) and error.filename and error.strerror:  # such as a full disk
        text = f"{error.filename}: {error.strerror}"
    if debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    tell(f"minires: {' '.join(text.split())}")


def in_notebook() -> bool:
    """Tell whether a notebook shows what this process prints."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def bar_hidden() -> bool:
    """Tell tqdm to hide its bar, because nobody would see it: stderr is a pipe, or missing."""
    try:
        return not (sys.stderr.isatty() or in_notebook())
    except (AttributeError, ValueError):  # stderr is None, or closed
        return True


class _Lines:
    """Takes what tqdm writes, and tells each state of its bar in a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            tell(f"minires: {text.strip()}")

    def flush(self) -> None:
        pass  # a line is told at once


def progress_bar(items: Iterable[Any] | None, text: str, shown: bool = True, **options: Any) -> Any:
    """Make tqdm's bar for a terminal or a notebook; elsewhere a line says what takes a while.

    There it tells in another line, once a minute, how far it is. `options` are tqdm's. Where
    `shown` is false, there is neither bar nor line.
    """
    from tqdm import TqdmWarning  # here, because it takes long and is seldom needed

    if in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets the bar is text
            from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    if shown and bar_hidden():
        tell(f"minires: {text} ...")
        apart = {"delay": PATIENCE, "mininterval": PATIENCE, "maxinterval": PATIENCE}
        form = "{desc}: {n_fmt} of {total_fmt}, after {elapsed}"
        options |= {"file": _Lines(), "bar_format": form, "miniters": 1, "leave": False, **apart}
    return tqdm(items, desc=text, disable=not shown, **options)
