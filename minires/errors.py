"""The errors that a user can cause, each told in one sentence.

They are ``ValueError``s, so that code which knows nothing of minires can catch them. The command
line prints their text and exits with status 1, without a traceback.
"""

import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 3  # names in a message


class MiniresError(ValueError):
    """Something given to minires cannot be used. The text tells what, and what to do.

    Examples
    --------
    >>> model(x.astype(np.float64))
    Traceback (most recent call last):
        ...
    minires.errors.MiniresError: x is a float64 array; wanted a float32 array, ...
    """


class ImageError(MiniresError):
    """A file or an array that is not a usable image.

    Examples
    --------
    >>> minires.load_image(b"text")
    Traceback (most recent call last):
        ...
    minires.errors.ImageError: the bytes given: empty, or not an image of a kind that is read: ...
    """


class WeightsError(MiniresError):
    """Weights that cannot be read, or that do not belong to a ResNet-50.

    Examples
    --------
    >>> minires.resnet50("IMAGENET1K")
    Traceback (most recent call last):
        ...
    minires.errors.WeightsError: IMAGENET1K: no such file, and no weights are called ...
    """


class DownloadError(WeightsError):
    """Weights that could not be fetched, or that arrived with the wrong checksum.

    Examples
    --------
    >>> minires.resnet50("IMAGENET1K_V1")  # without a network
    Traceback (most recent call last):
        ...
    minires.errors.DownloadError: IMAGENET1K_V1 is not on this machine and ...
    """


class NoLayerError(MiniresError, KeyError):
    """A name that no layer of a network has."""

    __str__ = Exception.__str__  # KeyError's would put the sentence in quotes


def short(value: object) -> str:
    """Write a value from outside, for an error: on one line, in at most 120 characters."""
    if isinstance(value, str) and value.isprintable():
        return f"{value:.120}"
    writer = reprlib.Repr()
    writer.maxlevel, writer.maxstring = 2, 120
    return f"{' '.join(writer.repr(value).split()):.120}"


def some(names: Sequence[object], most: int = SHOWN) -> str:
    """Write names for a message: the first few, and how many more there are."""
    more = len(names) - most
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {more} more" if more > 0 else shown


def check_choice(what: str, chosen: object, known: Iterable[str]) -> None:
    """Raise `MiniresError` for a choice, such as a precision, that is not among the known ones."""
    known = tuple(known)
    if not isinstance(chosen, str) or chosen not in known:
        raise MiniresError(f"there is no {what} {short(repr(chosen))}; there is {', '.join(known)}")


def check_whole(what: str, given: object, least: int = 1) -> int:
    """Return a whole number, which may be NumPy's; for anything else raise `MiniresError`."""
    try:
        # Python counts True as 1.
        number = operator.index(given) if given is not True else least - 1  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise MiniresError(f"{what} is {short(given)}; wanted a whole number of at least {least}")
    return number


def check_is(what: str, given: object, kind: Any, wanted: str) -> None:
    """Raise `MiniresError` for what is not of the type, or the types, that are wanted."""
    if not isinstance(given, kind):
        raise MiniresError(f"{what} is {short(given)}; wanted {wanted}")
