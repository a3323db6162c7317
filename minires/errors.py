"""The errors that a user can cause, each told in one sentence.

They are ``ValueError``s, so that code which knows nothing of minires can catch them. The command
line prints their text and exits with status 1, without a traceback.
"""

import difflib
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


def given(value: object) -> str:
    """Write a wrong argument, as `short` does, but with quotes around a string: "5" is not 5."""
    return short(repr(value) if isinstance(value, str) else value)


def nearest(word: str, known: Iterable[str]) -> str:
    """Propose the known word that is most like a wrong one, to end an error's sentence with."""
    names = {name.lower(): name for name in known}
    wrong = word.lower()
    # 0.75 finds words with swapped or missing letters, but not words that only end alike.
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.75)
    close += [name for name in names if wrong and name.startswith(wrong)]  # layer1 is half a name
    return f"; did you mean {names[close[0]]}?" if close else ""


def no_layer(name: object, names: Iterable[str], lister: str) -> NoLayerError:
    """Make the error for a layer that a network has not; `lister` shows those that it has."""
    hint = nearest(short(name), names)
    return NoLayerError(f"no layer is called {short(repr(name))}; {lister} lists them{hint}")


def some(names: Sequence[object], most: int = SHOWN) -> str:
    """Write names for a message: the first few, and how many more there are."""
    more = len(names) - most
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {more} more" if more > 0 else shown


def check_choice(what: str, chosen: object, known: Iterable[str]) -> None:
    """Raise `MiniresError` for a choice, such as a precision, that is not among the known ones."""
    known = tuple(known)
    if not isinstance(chosen, str) or chosen not in known:
        hint = nearest(chosen, known) if isinstance(chosen, str) else ""
        raise MiniresError(
            f"there is no {what} {short(repr(chosen))}; there is {', '.join(known)}{hint}"
        )


def check_whole(what: str, value: object, least: int = 1) -> int:
    """Return a whole number, which may be NumPy's; for anything else raise `MiniresError`."""
    try:
        # Python counts True as 1.
        number = operator.index(value) if value is not True else least - 1  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise MiniresError(f"{what} is {given(value)}; wanted a whole number of at least {least}")
    return number


def check_is(what: str, value: object, kind: Any, wanted: str) -> None:
    """Raise `MiniresError` for what is not of the type, or the types, that are wanted."""
    if not isinstance(value, kind):
        raise MiniresError(f"{what} is {given(value)}; wanted {wanted}")
