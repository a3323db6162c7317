"""What each recipe for INT8 costs: observers, roundings and corrections, side by side.

    python benchmarks/recipes.py FOLDER --labels CSV --weights resnet50.safetensors

Every third photograph of the folder may calibrate; the others are answered, none is both. Rows are
to be ranked by the noise of their logits: labels of a few hundred photographs cannot tell recipes
apart. `--only` takes the rows whose names have all of these words, such as "gptq off 128".

ONNX Runtime's three methods and NNCF's default are rows too, where they are installed. Their
networks run in float32 between the nodes that round. So a processor whose eight-bit products
saturate does not spoil them.
"""

import argparse
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from functools import cache, partial
from math import gcd
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from tqdm import tqdm

import minires
from minires.evaluate import accuracy, compare, read_labels, wilson
from minires.model import ResNet50
from minires.quantize import CORRECTIONS, OBSERVERS, ROUNDINGS, calibrate, quantize_model
from minires.quantize.default import default_batches
from minires.quantize.report import logit_noise

Batches = Callable[[], Iterable[Any]]  # each batch (N, 3, H, W) float32
Network = Callable[[Any], Any]  # of a batch: its logits, (N, classes)
Recipe = tuple[str, Callable[[], Network]]
HEADER = "| recipe | SQNR (dB) | KL | agreement | top-1 minus FP32's, points | CPU seconds |"


def own_recipes(fp32: ResNet50, photographs: dict[str, Batches]) -> Iterator[Recipe]:
    """List every observer, rounding and correction on each set of photographs."""
    calibrated = cache(  # it is taken once for all roundings, and only the last one is kept
        lambda source, observer: calibrate(fp32, photographs[source](), observer, moments=True)
    )

    def make(source: str, observer: str, rounding: str, correction: str) -> ResNet50:
        if calibrated.cache_info().currsize > 1:
            calibrated.cache_clear()
        return quantize_model(fp32, calibrated(source, observer), rounding, correction)

    for source in photographs:
        for observer in OBSERVERS:
            for rounding in ROUNDINGS:
                for correction in CORRECTIONS:
                    how = (source, observer, rounding, correction)
                    yield ", ".join((observer, rounding, correction, source)), partial(make, *how)


def lessons(fp32: ResNet50, batches: Batches) -> Iterator[Recipe]:
    """List what is not to be done, or not enough; all with nearest rounding and observer mse.

    These are simulated: the weights are real numbers on a grid.
    """

    def rounded(most: int, per_channel: bool) -> dict[str, Any]:
        params = {}
        for name, p in fp32.params.items():
            largest = np.abs(p.weight).max(axis=1 if per_channel else None, keepdims=True)
            scale = np.maximum(largest / most, np.finfo(np.float32).tiny)
            params[name] = p._replace(weight=np.rint(p.weight / scale) * scale)
        return params

    def simulated(params: Any) -> ResNet50:
        int8 = quantize_model(fp32, calibrate(fp32, batches(), "mse"))
        return ResNet50(int8.layers, {**int8.params, **params}, "int8-simulated", fp32.meta)

    yield "weights alone in INT8", lambda: ResNet50(fp32.layers, rounded(127, True), meta=fp32.meta)
    yield "activations alone in INT8", lambda: simulated(fp32.params)
    yield "weights of 7 bits", lambda: simulated(rounded(63, True))
    yield "one scale for a whole layer", lambda: simulated(rounded(127, False))


def installed(engine: str, *packages: str) -> bool:
    """Tell whether an engine's packages are there; if not, say that its rows are left out."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f"{engine} is left out: {', '.join(missing)} not installed", file=sys.stderr)
    return not missing


def one_by_one(batches: Batches) -> list[Any]:
    """Split batches into images, (1, 3, H, W) float32."""
    return [image[None] for batch in batches() for image in batch]


class Reader:
    """Hands images to ONNX Runtime, as its `CalibrationDataReader` says."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images
        self.rest = iter(images)

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Start again, with some of the images."""
        self.rest = iter(self.images[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image as the network's input, or None after the last one."""
        image = next(self.rest, None)
        return None if image is None else {"image": image}


def onnxruntime_recipes(fp32: ResNet50, photographs: dict[str, Batches]) -> Iterator[Recipe]:
    """List ONNX Runtime's methods, with u8 activations and a scale for each channel's weights."""
    if not installed("ONNX Runtime", "onnx", "onnxruntime"):
        return
    import onnx
    import onnxruntime
    from engines import onnx_model
    from onnxruntime import quantization as ort

    unfused = onnxruntime.SessionOptions()
    unfused.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def make(source: str, method: Any) -> Network:
        images = one_by_one(photographs[source])
        with tempfile.TemporaryDirectory() as folder:
            float_file, int8_file = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
            onnx.save(onnx_model(fp32), float_file)
            ort.quantize_static(
                float_file,
                int8_file,
                Reader(images),
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=method,
                extra_options={
                    # It keeps what all layers put out for so many images: 0.1 GB for each.
                    "CalibStridedMinMax": gcd(8, len(images)),
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],  # the logits, as in minires
                },
            )
            session = onnxruntime.InferenceSession(int8_file.read_bytes(), unfused)
        return lambda x: session.run(None, {"image": x})[0]

    for source in photographs:
        for name in "MinMax", "Entropy", "Percentile":
            method = getattr(ort.CalibrationMethod, name)
            yield f"ONNX Runtime, {name}, {source}", partial(make, source, method)


def nncf_recipes(fp32: ResNet50, photographs: dict[str, Batches]) -> Iterator[Recipe]:
    """List NNCF's default for OpenVINO, which corrects biases."""
    if not installed("NNCF", "onnx", "nncf", "openvino"):
        return
    import nncf
    import openvino
    from engines import onnx_model

    unfused = {"LP_TRANSFORMS_MODE": False, "INFERENCE_PRECISION_HINT": "f32"}

    def make(source: str) -> Network:
        images = one_by_one(photographs[source])
        core = openvino.Core()
        model = core.read_model(io.BytesIO(onnx_model(fp32).SerializeToString()))
        int8 = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
        compiled = core.compile_model(int8, "CPU", unfused)
        return lambda x: compiled(x)[0]

    for source in photographs:
        yield f"NNCF, {source}", partial(make, source)


def format_row(name: str, logits: Any, fp32: Any, labels: Any, seconds: float) -> str:
    """Lay out one row of the table."""
    noise, c = logit_noise(logits, fp32), compare(logits, fp32, labels)
    low, high = wilson(c.agreement, len(labels))
    points = "{:+.1f} ({:+.1f} to {:+.1f})".format(
        *(100 * s for s in (c.difference, c.low, c.high))
    )
    return (
        f"| {name} | {noise.sqnr_db:.2f} | {noise.kl:.4f} "
        f"| {c.agreement:.1%} ({100 * low:.1f} to {100 * high:.1f}) | {points} | {seconds:.0f} |"
    )


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="CSV: file, label")
    parser.add_argument("--weights", required=True, metavar="NAME|PATH")
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    arguments = parser.parse_args()

    fp32 = minires.resnet50(arguments.weights)
    preset = fp32.meta["preset"]
    rows = read_labels(arguments.labels)
    files = [arguments.folder / file for file, _ in rows]
    unseen, labels = zip(*((files[i], row[1]) for i, row in enumerate(rows) if i % 3), strict=True)
    images = np.concatenate([minires.preprocess(file, preset) for file in unseen])

    def read(count: int) -> Iterator[Any]:
        return (minires.preprocess(file, preset) for file in files[::3][:count])

    def answers(network: Network, name: str) -> Any:
        bar = tqdm(range(0, len(images), 8), name, leave=False, disable=None)
        return np.concatenate([network(images[start : start + 8]) for start in bar])

    photographs: dict[str, Batches] = {"package": lambda: default_batches(preset)}
    photographs |= {str(count): partial(read, count) for count in arguments.images}
    most = partial(read, max(arguments.images))
    recipes = [*own_recipes(fp32, photographs), *lessons(fp32, most)]
    recipes += [*onnxruntime_recipes(fp32, photographs), *nncf_recipes(fp32, photographs)]

    base, truth = answers(fp32, "fp32"), np.array(labels)
    top1, top5 = accuracy(base, truth)[1:]
    print(f"{len(truth)} photographs; FP32: top-1 {top1:.1%}, top-5 {top5:.1%}\n\n{HEADER}")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, make in recipes:
        if set(arguments.only) <= set(name.replace(",", "").split()):
            started = process_time()
            with redirect_stdout(sys.stderr):  # the others tell of their work where rows belong
                network = make()
            seconds = process_time() - started
            if isinstance(network, ResNet50):
                network.backend = "numba"
            print(format_row(name, answers(network, name), base, truth, seconds), flush=True)


if __name__ == "__main__":
    main()
