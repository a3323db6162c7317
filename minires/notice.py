"""Messages on stderr, which may be missing: a service may have closed it, or its disk is full."""

import contextlib
import sys


def tell(text: str) -> None:
    """Print a line on stderr; if that fails, go on, because no answer may be lost for it."""
    if sys.stderr is not None:  # print would take None for stdout
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def bar_hidden() -> bool:
    """Tell tqdm to hide its bar, because stderr is not a terminal or is missing."""
    try:
        return not sys.stderr.isatty()
    except (AttributeError, ValueError):  # stderr is None, or closed
        return True
