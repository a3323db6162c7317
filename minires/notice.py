"""What is said on stderr, if there is one: a service may have closed it, or its disk be full."""

import contextlib
import sys


def tell(text: str) -> None:
    """Print a line on stderr; no answer is lost where that cannot be done."""
    if sys.stderr is not None:  # which print would take for stdout
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def bar_hidden() -> bool:
    """Tell whether a bar would not be seen: stderr is no terminal, or not there. It is for tqdm."""
    try:
        return not sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return True
