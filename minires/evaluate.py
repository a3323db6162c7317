"""Accuracy on labelled photographs, and the honest difference between two networks."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minires.errors import MiniresError
from minires.layers import Array
from minires.model import ResNet50
from minires.preprocess import preprocess


class Accuracy(NamedTuple):
    """How often the right label is first, and among the first five."""

    images: int
    top1: float
    top5: float


class Comparison(NamedTuple):
    """Two networks on the same images; shares, not percent."""

    agreement: float  # the same label first, right or wrong
    difference: float  # top-1 of the one less top-1 of the other
    low: float  # the difference's 95% interval
    high: float
    largest_logit_difference: float


def read_labels(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Read a CSV of file names and class indices, with the columns ``file`` and ``label``.

    Parameters
    ----------
    path : path-like
        The CSV file; its first line names the columns.

    Returns
    -------
    list of (str, int)
        In the file's order.

    Raises
    ------
    MiniresError
        For a missing file or column, or a label that is not a whole number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel writes a mark
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise ValueError("a column is missing")
            return [(os.fspath(row["file"]), int(row["label"])) for row in reader]
    except OSError as error:
        raise MiniresError(f"{path}: cannot be read ({error.strerror})") from error
    except (TypeError, ValueError, csv.Error) as error:
        raise MiniresError(
            f"{path}: wanted a CSV with the columns file and label, labels being class indices"
        ) from error


def logits_of(
    models: Sequence[ResNet50],
    folder: str | os.PathLike[str],
    files: Iterable[str],
    batch_size: int = 8,
) -> Iterator[list[Array]]:
    """Run several networks over the same photographs.

    Parameters
    ----------
    models : sequence of ResNet50
        All with the first one's preprocessing.
    folder : path-like
        Where the photographs lie.
    files : iterable of str
        Their names.
    batch_size : int
        How many are held at once.

    Yields
    ------
    list of ndarray
        For each batch the logits of each model, (batch_size or fewer, num_classes) float32.
    """
    paths = [Path(folder) / name for name in files]
    for start in range(0, len(paths), batch_size):
        x = preprocess(paths[start : start + batch_size], models[0].meta["preset"])
        yield [model(x) for model in models]


def accuracy(logits: Array, labels: Array) -> Accuracy:
    """Compare logits with the right labels.

    Parameters
    ----------
    logits : ndarray
        (N, num_classes) float32.
    labels : ndarray
        (N,) class indices.

    Returns
    -------
    Accuracy
        Of two equal logits the lower class index counts as first.
    """
    five = np.argsort(-logits, axis=1, kind="stable")[:, :5]  # (N, 5)
    hits = five == labels[:, np.newaxis]
    return Accuracy(len(labels), float(hits[:, 0].mean()), float(hits.any(axis=1).mean()))


def compare(logits: Array, other: Array, labels: Array) -> Comparison:
    """Compare two networks' answers to the same images.

    Parameters
    ----------
    logits, other : ndarray
        (N, num_classes) float32.
    labels : ndarray
        (N,) class indices.

    Returns
    -------
    Comparison
        The interval is Agresti and Min's for matched pairs ("Simple improved confidence
        intervals for comparing matched proportions", Statistics in Medicine 24, 2005): half a
        count is added to each of the four outcomes, then it is the normal one. Pairing leaves
        only the images on which the two differ to chance, so it is much narrower than what two
        separate samples would give.
    """
    first, second = logits.argmax(axis=1), other.argmax(axis=1)
    wins = int(np.sum((first == labels) & (second != labels)))
    losses = int(np.sum((first != labels) & (second == labels)))
    n = len(labels) + 2
    centre = (wins - losses) / n
    half = 1.96 * np.sqrt((wins + losses + 1) - (wins - losses) ** 2 / n) / n
    return Comparison(
        agreement=float(np.mean(first == second)),
        difference=(wins - losses) / len(labels),
        low=float(centre - half),
        high=float(centre + half),
        largest_logit_difference=float(np.abs(logits - other).max()),
    )
