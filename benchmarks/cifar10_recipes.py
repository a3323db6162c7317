"""What the bundled network's logits would gain from another recipe for INT8.

    python benchmarks/cifar10_recipes.py cifar10.tar.xz

Calibrates on the 512 training images that the file's own ranges come from, and answers others.
Without an archive, the one in the folder that MINIRES_TEST_DATA names is read. Prints a table of
weights/README.md.
"""

import argparse
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from cifar10_accuracy import logits_of
from PIL import Image

import minires
from minires.model import ResNet50
from minires.quantize import CORRECTIONS, ROUNDINGS, calibrate, quantize_model
from minires.quantize.report import logit_noise

FOR_CALIBRATION = range(0, 512 * 97, 97)  # as weights/train_cifar10.py chooses them
ANSWERED = sorted(set(range(48, 50_000, 50)) - set(FOR_CALIBRATION))


def read_training_images(archive: Path) -> list[bytes]:
    """Read all training images, as JPEG, sorted by class and name."""
    images = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)  # train/CLASS/NNNN.jpg
            if path.suffix == ".jpg" and path.parts[-3] == "train":
                content = tar.extractfile(member)
                assert content is not None  # it is a file
                images[path.parts[-2:]] = content.read()
    return [images[name] for name in sorted(images)]


def decode(images: list[bytes], chosen: Iterable[int]) -> Any:
    """Decode some of the images: (N, 32, 32, 3) uint8."""
    return np.stack([np.asarray(Image.open(io.BytesIO(images[i]))) for i in chosen])


def networks(fp32: ResNet50, batches: list[Any]) -> Iterator[tuple[str, ResNet50]]:
    """List every rounding and correction, and then half of INT8: the activations alone."""
    seen = calibrate(fp32, batches, "mse", moments=True)
    for rounding in ROUNDINGS:
        for correction in CORRECTIONS:
            int8 = quantize_model(fp32, seen, rounding, correction)
            yield f"mse, {rounding}, {correction}", int8
    params = {**int8.params, **fp32.params}
    yield "activations alone in INT8", ResNet50(int8.layers, params, "int8-simulated", int8.meta)


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("MINIRES_TEST_DATA", "."), "cifar10", "cifar10.tar.xz")
    parser.add_argument("archive", type=Path, nargs="?", default=default)
    arguments = parser.parse_args()

    fp32 = minires.resnet50("CIFAR10")
    images = read_training_images(arguments.archive)
    parts = np.split(decode(images, FOR_CALIBRATION), 16)
    batches = [minires.preprocess(list(part), fp32.meta["preset"]) for part in parts]
    answered = decode(images, ANSWERED)
    base = logits_of(fp32, answered)
    print(f"{len(answered)} training images\n\n| recipe | SQNR (dB) | KL | FP32's label |")
    print("| --- | --- | --- | --- |")
    for name, network in networks(fp32, batches):
        network.backend = "numba"
        logits = logits_of(network, answered)
        noise, same = logit_noise(logits, base), np.mean(logits.argmax(1) == base.argmax(1))
        print(f"| {name} | {noise.sqnr_db:.2f} | {noise.kl:.5f} | {same:.1%} |", flush=True)


if __name__ == "__main__":
    main()
