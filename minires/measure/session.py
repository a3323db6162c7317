"""How a command measures: whether it is in a hurry, and whether it tells what it is doing.

Functions that measure ask here, so that the wish need not be handed down through all of them. In
Python they take their time and say nothing.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from minires.notice import tell

_quick: ContextVar[bool | None] = ContextVar("quick", default=None)  # None where nobody listens


@contextlib.contextmanager
def session(quick: bool) -> Iterator[None]:
    """Measure aloud, and quickly if you like, while the with statement lasts."""
    token = _quick.set(quick)
    try:
        yield
    finally:
        _quick.reset(token)


def rounds(usual: int, quick: int) -> int:
    """Choose how often something is measured."""
    return min(usual, quick) if in_a_hurry() else usual


def in_a_hurry() -> bool:
    """Tell whether figures are to come quickly, though they are less certain then."""
    return bool(_quick.get())


def say(text: str) -> None:
    """Tell on stderr what has just been measured, or comes next."""
    if _quick.get() is not None:
        tell(f"minires: {text}")
