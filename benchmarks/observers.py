"""How well INT8 does by each observer and number of calibration images.

    python benchmarks/observers.py FOLDER --labels CSV --weights resnet50.safetensors

Every third photograph of the folder may calibrate; the others are answered, none is both. The last
row of each observer is calibrated on the photographs that come with the package.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minires
from minires.evaluate import accuracy, compare, logits_of, read_labels
from minires.quantize import OBSERVERS, calibrate, quantize_model
from minires.quantize.default import default_batches


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="CSV: file, label")
    parser.add_argument("--weights", required=True, metavar="NAME|PATH")
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--observers", nargs="+", default=list(OBSERVERS), choices=OBSERVERS)
    arguments = parser.parse_args()

    fp32 = minires.resnet50(arguments.weights)
    preset = fp32.meta["preset"]
    rows = read_labels(arguments.labels)
    for_calibration = [arguments.folder / file for file, _ in rows[::3]]
    unseen = [row for i, row in enumerate(rows) if i % 3]
    labels = np.array([label for _, label in unseen])

    def answers(model: Any, name: str) -> Any:
        answered = logits_of([model], arguments.folder, [file for file, _ in unseen], batch_size=1)
        bar = tqdm(answered, name, len(unseen), leave=False, disable=None)
        return np.concatenate([y for (y,) in bar])  # (photographs, classes)

    base = answers(fp32, "fp32")
    top1, top5 = accuracy(base, labels)[1:]
    print(f"{len(labels)} photographs; FP32: top-1 {top1:.1%}, top-5 {top5:.1%}")
    print("| observer | images | top-1 | top-5 | agreement | top-1 less FP32's, points (95%) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for observer in arguments.observers:
        sources: dict[str, Iterable[Any]] = {
            str(n): (minires.preprocess(path, preset) for path in for_calibration[:n])
            for n in arguments.images
        }
        sources["8 of the package"] = default_batches(preset)
        for name, batches in sources.items():
            int8 = quantize_model(fp32, calibrate(fp32, batches, observer))
            y = answers(int8, f"{observer} {name}")
            _, top1, top5 = accuracy(y, labels)
            c = compare(y, base, labels)
            difference, low, high = (100 * share for share in (c.difference, c.low, c.high))
            interval = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
            print(
                f"| {observer} | {name} | {top1:.1%} | {top5:.1%} | {c.agreement:.1%} "
                f"| {interval} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
