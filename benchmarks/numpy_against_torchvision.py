"""Time and peak memory of one image in FP32: minires in plain NumPy against torchvision.

    python benchmarks/numpy_against_torchvision.py --weights resnet50.safetensors

Needs torch and torchvision. Each engine has a process of its own, with the same weights, input
and number of threads. The two take turns, so that whatever else the machine does hits both
alike, and the ratio is taken turn by turn. Outputs are compared before anything is timed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = ("minires", "torchvision")
ASKED_RATIO, ASKED_MIB, TOLERANCE = 2, 600, 1e-3
WARM_UP = 3


def load_minires(weights: Path) -> Callable[[Any], Any]:
    """Return what turns the input, (1, 3, 224, 224) float32, into logits."""
    import minires

    return minires.resnet50(weights)


def load_torchvision(weights: Path) -> Callable[[Any], Any]:
    """Do the same with torchvision's eager model."""
    import torch
    from safetensors.torch import load_file

    # torchvision's wheel misses two operators beside a CPU torch; ResNet-50 does not use them.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from torchvision.models import resnet50

    model = resnet50()
    load = load_file if weights.suffix == ".safetensors" else torch.load
    model.load_state_dict(load(weights), strict=True)
    model.eval()

    def run(x: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return run


def serve(engine: str, weights: Path, folder: Path) -> None:
    """Be one engine: leave the logits in the folder, then time one run for each line that comes.

    Prints seconds and, at the end of input, the peak memory in MiB.
    """
    run = {"minires": load_minires, "torchvision": load_torchvision}[engine](weights)
    x = np.load(folder / "x.npy")
    for _ in range(WARM_UP):
        logits = run(x)
    np.save(folder / f"{engine}.npy", logits)
    print("ready", flush=True)
    for _ in sys.stdin:
        run(x)  # the other engine had the caches, and the threads have gone to sleep
        start = time.perf_counter()
        run(x)
        print(time.perf_counter() - start, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    print(peak / (2**20 if sys.platform == "darwin" else 2**10))


def measure(weights: Path, rounds: int, threads: int, folder: Path) -> tuple[Any, list[float]]:
    """Let the engines take turns.

    Returns
    -------
    tuple
        Seconds, (rounds, 2) float64, and the two peaks in MiB, in the order of `ENGINES`.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = []
    for engine in ENGINES:
        command = [sys.executable, __file__, "--engine", engine, "--folder", str(folder)]
        command += ["--weights", str(weights)]
        process = subprocess.Popen(command, env=environment, **pipes)
        if process.stdout.readline() != "ready\n":  # one loads after the other
            sys.exit(f"{engine} did not start; its own message is above")
        processes.append(process)
    ours, theirs = (np.load(folder / f"{engine}.npy") for engine in ENGINES)
    difference = float(np.abs(ours - theirs).max())
    print(f"largest difference of the logits {difference:.1e}, allowed {TOLERANCE:g}")
    if not difference <= TOLERANCE:  # so that NaN fails too
        sys.exit("the engines compute different things: nothing was timed")

    def turn(process: Any) -> float:
        process.stdin.write("again\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    seconds = np.array([[turn(process) for process in processes] for _ in range(rounds)])
    return seconds, [float(process.communicate()[0]) for process in processes]


def median_interval(values: Any) -> tuple[float, float, float]:
    """Return the median and its 95% interval, by the bootstrap's percentiles."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


def main() -> None:
    """Measure, and print the ratio beside what was asked for."""
    photograph = Path(__file__).parents[1] / "examples" / "images" / "cat.jpg"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help=".pth or .safetensors")
    parser.add_argument("--image", type=Path, default=photograph)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        serve(arguments.engine, arguments.weights, arguments.folder)
        return

    from minires.preprocess import IMAGENET_V2, preprocess

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", preprocess(arguments.image, IMAGENET_V2))
        seconds, peaks = measure(arguments.weights, arguments.rounds, arguments.threads, folder)
    print(f"{arguments.threads} threads, {arguments.rounds} rounds")
    print(f"{'engine':<14}{'median (ms)':>12}{'quartiles (ms)':>18}{'peak memory (MiB)':>20}")
    quartiles = np.percentile(seconds * 1000, (25, 50, 75), axis=0).T
    for engine, (low, median, high), peak in zip(ENGINES, quartiles, peaks, strict=True):
        print(f"{engine:<14}{median:>12.1f}{f'{low:.1f} to {high:.1f}':>18}{peak:>20.0f}")
    ratio, low, high = median_interval(seconds[:, 0] / seconds[:, 1])
    print(f"minires takes {ratio:.2f} times as long (95%: {low:.2f} to {high:.2f}); ", end="")
    print(f"asked for: at most {ASKED_RATIO}")
    print(f"minires needs {peaks[0]:.0f} MiB; asked for: under {ASKED_MIB}")


if __name__ == "__main__":
    main()
