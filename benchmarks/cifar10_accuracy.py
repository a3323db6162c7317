"""Top-1 of the bundled network on CIFAR-10's test images, by precision and by class.

    python benchmarks/cifar10_accuracy.py cifar10.tar.xz

Every image goes the way that a photograph goes in minires. Without an archive, the one in the
folder that MINIRES_TEST_DATA names is read. Prints the tables of weights/README.md.
"""

import argparse
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import minires
from minires.evaluate import accuracy, compare

PRECISIONS = ("fp32", "int8", "int8-simulated")
BATCH = 50


def read_test_images(archive: Path, categories: Sequence[str], per_class: int) -> tuple[Any, Any]:
    """Decode the first test images of each class, in the archive's order.

    Returns
    -------
    images : (N, 32, 32, 3) uint8
    labels : (N,) int64
    """
    images, labels = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)  # test/CLASS/NNNN.jpg
            if path.suffix != ".jpg" or path.parts[-3] != "test":
                continue
            label = categories.index(path.parts[-2])
            if labels.count(label) < per_class:
                content = tar.extractfile(member)
                assert content is not None  # it is a file
                with Image.open(io.BytesIO(content.read())) as image:
                    images.append(np.asarray(image))
                labels.append(label)
            if len(labels) == per_class * len(categories):
                break  # the training images need not be unpacked
    return np.stack(images), np.array(labels)


def logits_of(model: Any, images: Any) -> Any:
    """Answer all images, (N, 32, 32, 3) uint8, in batches."""
    bar = tqdm(range(0, len(images), BATCH), model.precision, leave=False, disable=None)
    batches = (list(images[start : start + BATCH]) for start in bar)
    preset = model.meta["preset"]
    return np.concatenate([model(minires.preprocess(batch, preset)) for batch in batches])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("MINIRES_TEST_DATA", "."), "cifar10", "cifar10.tar.xz")
    parser.add_argument("archive", type=Path, nargs="?", default=default)
    parser.add_argument("--per-class", type=int, default=1000, help="images (default: all 1000)")
    arguments = parser.parse_args()

    categories = minires.get_weights("CIFAR10").meta["categories"]
    images, labels = read_test_images(arguments.archive, categories, arguments.per_class)
    logits = {p: logits_of(minires.resnet50("CIFAR10", p), images) for p in PRECISIONS}
    print(f"{len(labels)} test images\n")
    print("| precision | top-1 | top-1 minus FP32's, points (95% interval) | FP32's label |")
    print("| --- | --- | --- | --- |")
    for precision, y in logits.items():
        c = compare(y, logits["fp32"], labels)
        difference, low, high = (f"{100 * share:+.2f}" for share in (c.difference, c.low, c.high))
        top1 = accuracy(y, labels).top1
        print(f"| {precision} | {top1:.2%} | {difference} ({low} to {high}) | {c.agreement:.2%} |")
    print(f"\n| class | {' | '.join(PRECISIONS)} |\n| --- |{' --- |' * len(PRECISIONS)}")
    for label, name in enumerate(categories):
        shares = [accuracy(y[labels == label], labels[labels == label]).top1
                  for y in logits.values()]  # fmt: skip
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |")


if __name__ == "__main__":
    main()
