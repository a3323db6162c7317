"""How a command measures: whether it is in a hurry, and whether it tells what it is doing.

Functions that measure ask here, so that the wish need not be handed down through all of them. In
Python they take their time and say nothing.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from minires.notice import tell

_quick: ContextVar[bool] = ContextVar("quick", default=False)
_aloud: ContextVar[bool] = ContextVar("aloud", default=False)


@contextlib.contextmanager
def session(quick: bool | None = None, aloud: bool = True) -> Iterator[None]:
    """Measure quickly, or aloud, while the with statement lasts; None keeps the pace there was."""
    tokens = _quick.set(in_a_hurry() if quick is None else quick), _aloud.set(aloud)
    try:
        yield
    finally:
        _quick.reset(tokens[0])
        _aloud.reset(tokens[1])


def rounds(usual: int, quick: int) -> int:
    """Choose how often something is measured."""
    return min(usual, quick) if _quick.get() else usual


def in_a_hurry() -> bool:
    """Tell whether figures are to come quickly, though they are less certain then."""
    return _quick.get()


def say(text: str) -> None:
    """Tell on stderr what has just been measured, or comes next."""
    if _aloud.get():
        tell(f"minires: {text}")
