"""Messages on stderr, which may be missing: a service may have closed it, or its disk is full."""

import contextlib
import functools
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from minires.errors import MiniresError


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


def progress_bar(items: Iterable[Any] | None, text: str, shown: bool = True, **options: Any) -> Any:
    """Make tqdm's bar for a terminal or a notebook; elsewhere one line says what takes a while.

    `options` are tqdm's. Where `shown` is false, there is neither.
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
    return tqdm(items, desc=text, disable=bar_hidden() or not shown, **options)
