"""Accuracy on labelled photographs, and the honest difference between two networks."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.download import Weights
from minires.errors import ImageError, MiniresError, some
from minires.layers import Array
from minires.model import ResNet50
from minires.quantize.int8_file import is_int8_file
from minires.reading import read_photographs
from minires.sources import find_images, folders_in

AHEAD = 8  # photographs that are read while the networks compute, 600 KB each


class Accuracy(NamedTuple):
    """How often the right label is first, and among the first five."""

    images: int
    top1: float
    top5: float


class Comparison(NamedTuple):
    """Two networks on the same images, in shares, not percent."""

    agreement: float  # how often both have the same label first, right or wrong
    difference: float  # top-1 of the first network less top-1 of the other
    low: float  # the difference's 95% interval
    high: float
    largest_logit_difference: float


def read_labels(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Read a CSV's file names and class indices, from the columns ``file`` and ``label``.

    Its first line names the columns. A missing file or column, or a label that is not a whole
    number, raises `MiniresError`.
    """
    try:
        # Excel begins the file with a byte order mark, which utf-8-sig skips.
        with open(path, newline="", encoding="utf-8-sig") as file:
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


def label_folders(
    folder: str | os.PathLike[str], categories: Sequence[str], tell: Callable[[str], None]
) -> list[tuple[str, int]]:
    """Label photographs that lie in folders of classes, one for each class, as ImageFolder's do.

    A folder may be called as one of the network's categories. Otherwise there have to be as many
    folders as categories, and the first by name is class 0, as torchvision's ImageFolder counts
    them in training; `tell` gets a sentence that says so. You get files' names within `folder`,
    and class indices; for other folders it raises `MiniresError`.
    """
    top = Path(folder)
    try:
        names = [path.name for path in folders_in(top)]
    except OSError as error:
        raise MiniresError(f"{folder}: cannot be read ({error.strerror})") from error
    if not names:
        raise MiniresError(
            f"{folder}: has no folders of classes in it; give --labels CSV, or one folder a class"
        )
    spoken = [_plain(name) for name in categories]
    indices = [spoken.index(_plain(n)) if spoken.count(_plain(n)) == 1 else -1 for n in names]
    if min(indices) < 0:
        indices = _count_folders(top, names, categories)
        first, last = (f"{n} is {categories[i]}" for n, i in ((names[0], 0), (names[-1], -1)))
        tell(f"labels go by the folders' order, as in torchvision's ImageFolder: {first}, {last}")
    return [
        (os.fspath(file.relative_to(top)), index)
        for name, index in zip(names, indices, strict=True)
        for file in find_images([top / name], recursive=True)
        if file != top / name  # a class without a photograph
    ]


def _plain(name: str) -> str:
    """Write a class's name as people may write a folder's: tiger_cat is "tiger cat"."""
    return name.replace("_", " ").replace("-", " ").casefold()


def _count_folders(top: Path, names: list[str], categories: Sequence[str]) -> list[int]:
    """Give folders numbers in the order of their names, unless another order may be meant."""
    if len(names) != len(categories):
        raise MiniresError(
            f"{top}: has {len(names)} folders ({some(names)}), which are neither names of the "
            f"network's {len(categories)} classes ({some(categories)}) nor as many; give --labels "
            "CSV, or --categories FILE if there is one"
        )
    numbers = [int(name) for name in names if name.isdecimal()]
    if len(numbers) == len(names) and numbers != sorted(numbers):
        raise MiniresError(
            f"{top}: ImageFolder takes the folders {some(names)} in that order, by name and not by "
            "number; write 02 for 2, or give --labels CSV"
        )
    return list(range(len(names)))


def logits_of(
    models: Sequence[ResNet50], folder: str | os.PathLike[str], files: Sequence[str]
) -> Iterator[list[Array] | ImageError]:
    """Run several networks over the same photographs, with the first one's preprocessing.

    For each photograph you get the logits of each model, (1, num_classes) float32, or its error.
    """
    paths = [Path(folder) / name for name in files]
    for x in read_photographs(paths, models[0].meta["preset"], AHEAD):
        yield x if isinstance(x, ImageError) else [model(x) for model in models]


def accuracy(logits: Array, labels: Array) -> Accuracy:
    """Compare logits, (N, num_classes) float32, with the right class indices, (N,)."""
    # Stable: of two equal logits the lower class index counts as first.
    five = np.argsort(-logits, axis=1, kind="stable")[:, :5]  # (N, 5)
    hits = five == labels[:, np.newaxis]
    return Accuracy(len(labels), float(hits[:, 0].mean()), float(hits.any(axis=1).mean()))


def compare(logits: Array, other: Array, labels: Array) -> Comparison:
    """Compare two networks' logits, (N, num_classes), with each other and the labels, (N,)."""
    first = logits.argmax(axis=1)
    second = other.argmax(axis=1)
    wins = int(np.sum((first == labels) & (second != labels)))
    losses = int(np.sum((first != labels) & (second == labels)))
    # The interval is Agresti and Min's for matched pairs ("Simple improved confidence intervals for
    # comparing matched proportions", Statistics in Medicine 24, 2005): add half a count to each of
    # the four outcomes, then take the normal interval. Only the images on which the two differ are
    # left to chance, so it is much narrower than for two separate samples.
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


def wilson(share: float, images: int) -> tuple[float, float]:
    """Compute the 95% interval of a share: Wilson's (JASA 22, 1927), good for few images, too."""
    z = 1.96
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    deviation = np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    half = float(z / (1 + z**2 / images) * deviation)
    return max(0.0, centre - half), min(1.0, centre + half)  # but for the last bits


def choose_networks(
    precision: str,
    weights: str | Weights,
    against: str | None = None,  # the other network's precision, or "none"; fp32 unless given
    against_weights: str | None = None,  # the other network's; `weights` unless given
) -> list[tuple[str, str | Weights]]:
    """Choose the networks to evaluate: the one asked for, and the one to compare it with.

    You get one or two pairs of precision and weights.
    """
    if against is None:  # an INT8 file has no float32 network to compare with
        is_file = isinstance(weights, str) and os.path.isfile(weights)
        int8_alone = is_file and is_int8_file(Path(str(weights))) and not against_weights
        against = "none" if int8_alone else "fp32"
    asked = (precision, weights)
    other = (against, against_weights or weights)
    return [asked] if against == "none" or other == asked else [asked, other]


def evaluate_networks(
    models: Sequence[ResNet50],
    folder: str | os.PathLike[str],
    rows: Sequence[tuple[str, int]],  # from `read_labels`
    tell: Callable[[ImageError], None],  # gets the error of each photograph that is left out
    # Gets the rows and yields them again, for example to show a bar.
    progress: Callable[[Sequence[tuple[str, int]]], Iterable[tuple[str, int]]] = iter,
) -> dict[str, Any]:
    """Measure the accuracy of one network, or of two and how they differ.

    You get ``images``, ``unusable`` and ``models``, and with two models ``comparison``; all of it
    can be written as JSON. It raises `MiniresError` if the networks have different classes, if they
    do not know a label, or if no photograph can be used.
    """
    _check_classes(models, rows)
    labels: list[int] = []
    logits: list[list[Array]] = []  # of each photograph, from each model
    found = logits_of(models, folder, [file for file, _ in rows])
    for (_, label), of_models in zip(progress(rows), found, strict=False):
        if isinstance(of_models, ImageError):
            tell(of_models)
            continue
        logits.append(of_models)
        labels.append(label)
    if not labels:
        raise MiniresError(f"there is no usable image with a label in {folder}")
    truth = np.array(labels)
    answers = [np.concatenate(of_model) for of_model in zip(*logits, strict=True)]
    result: dict[str, Any] = {"images": len(labels), "unusable": len(rows) - len(labels)}
    result["models"] = [
        {"name": model.meta["name"], "precision": model.precision}
        | accuracy(of_model, truth)._asdict()
        for model, of_model in zip(models, answers, strict=True)
    ]
    if len(answers) == 2:
        result["comparison"] = compare(answers[0], answers[1], truth)._asdict()
    return result


def _check_classes(models: Sequence[ResNet50], rows: Sequence[tuple[str, int]]) -> None:
    counted = [(model.meta["name"], model.layers[-1].out_c) for model in models]
    name, classes = counted[0]
    for other_name, other_classes in counted[1:]:
        if classes != other_classes:
            raise MiniresError(
                f"{name} has {classes} classes and {other_name} has {other_classes}; give two "
                "networks of the same classes, as --weights and --against-weights"
            )
    for file, label in rows:
        if not 0 <= label < classes:
            raise MiniresError(
                f"{file} has the label {label}, but {name} knows only 0 to {classes - 1}"
            )


def format_evaluation(result: dict[str, Any]) -> str:
    """Lay out the answer of `evaluate_networks` as text: each network, and how two differ."""
    images = result["images"]
    lines = [f"{images} image{'s' * (images != 1)}, and the 95% interval of each share"]
    for m in result["models"]:
        top1, top5 = (_with_interval(m[key], images) for key in ("top1", "top5"))
        lines.append(f"  {m['precision']:<16}top-1 {top1:<24}   top-5 {top5:<24}   {m['name']}")
    if "comparison" in result:
        c = result["comparison"]
        points, low, high = (f"{100 * c[key]:+.2f}" for key in ("difference", "low", "high"))
        lines += [
            f"the same label first on {_with_interval(c['agreement'], images)}, right or wrong",
            f"top-1 differs by {points} points ({low} to {high})",
            f"a logit differs by at most {c['largest_logit_difference']:.3g}",
        ]
    return "\n".join(lines)


def _with_interval(share: float, images: int) -> str:
    low, high = wilson(share, images)
    return f"{share:.2%} ({low:.1%} to {high:.1%})"
