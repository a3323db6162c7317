"""The functions for users: from weights to a model, and from an image to labels."""

import contextlib
import functools
import importlib.util
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires import checkpoint, download, html
from minires.backends import Backend, Engine, check_backend
from minires.cache import noted_sha256
from minires.errors import ImageError, MiniresError, WeightsError, check_choice, short
from minires.images import ImageSource
from minires.layers import OPERATORS, Array, Layer
from minires.metadata import read_json, read_meta
from minires.model import ResNet50, resnet50_layers
from minires.preprocess import IMAGENET_V1, Preset, preprocess
from minires.quantize.calibrate import STORED_CALIBRATION
from minires.quantize.default import default_int8
from minires.quantize.int8_file import is_int8_file, load_int8
from minires.reference import softmax_ref
from minires.show import Meta

FORMAT = "minires-float"  # marks .safetensors files that tell categories, preset and calibration


class Prediction(NamedTuple):
    """One label for an image."""

    label: str
    probability: float  # softmax of the logits, 0 to 1
    index: int  # type: ignore[assignment]  # the class's number; it hides the method tuple.index


class Predictions(list[Prediction]):
    """The labels of one image, the likeliest first: a list that notebooks show with bars."""

    def _repr_html_(self) -> str:
        rows = [(p.label, f"{p.probability:.2%}", html.bar(p.probability)) for p in self]
        return html.table(["label", "probability", ""], rows)


def make_engine(layers: Sequence[Layer], params: Mapping[str, Any], precision: str) -> Engine:
    """Lay a network out for the compiled kernels; `ResNet50` calls this at its first run."""
    from minires.kernels import engine  # here, because Numba takes long to import

    return engine.Engine(list(layers), params, precision)


def make_cuda_engine(layers: Sequence[Layer], params: Mapping[str, Any], precision: str) -> Engine:
    """Lay a network out for an NVIDIA GPU."""
    if importlib.util.find_spec("numba_cuda") is None:
        raise MiniresError(
            'backend "cuda" needs numba-cuda, which is not installed: '
            'pip install "numba-cuda[cu13]" "numpy<2.5"'
        )
    from minires.kernels.cuda import engine

    return engine.Engine(list(layers), params, precision)


def instruction_set() -> str:
    """Name the instruction set that compiled kernels use, if there is one of the name wanted."""
    from minires.kernels.isa import choose_isa

    with contextlib.suppress(MiniresError):  # the first run says it
        return choose_isa().name
    return ""


ResNet50.backends |= {
    "numba": Backend(("fp32", "bf16", "int8", "int8-simulated"), make_engine, instruction_set),
    "cuda": Backend(("fp32", "tf32", "fp16", "bf16", "int8"), make_cuda_engine),
}
BACKENDS = tuple(ResNet50.backends)


def resnet50(
    weights: str | os.PathLike[str] | download.Weights | None = None,
    precision: str = "fp32",
    backend: str = "numba",
    *,
    progress: bool = True,
) -> ResNet50:
    """Load a ResNet-50 that is ready to run.

    Parameters
    ----------
    weights : str, path-like or Weights, optional
        A name that `minires.available_weights` lists, which is fetched and cached if needed; or
        the result of `minires.get_weights`; or the path of a .pth or .safetensors file. If you give
        none, IMAGENET1K_V2 is used, if it is here or can be fetched. Otherwise CIFAR10 is used,
        which comes with the package, and a line on stderr says so.
    precision : str
        "fp32", "bf16", "int8" or "int8-simulated" (INT8's numbers, computed in float32); a GPU
        also has "fp16" and "tf32". Float weights are calibrated once for INT8, on photographs that
        come with the package, unless their file has a calibration of its own.
    backend : str
        "numba" runs compiled kernels; "cuda" an NVIDIA GPU's; "numpy" runs the definitions.
    progress : bool
        Whether downloading and calibrating show a bar on stderr.

    Returns
    -------
    ResNet50
        Its ``meta`` has categories, preset, accuracy, source and licence, as far as known.

    Raises
    ------
    MiniresError
        For an unknown precision or backend.
    WeightsError
        For weights that cannot be found, fetched or read, or that belong to another network.
    """
    check_choice("precision", precision, OPERATORS)
    check_backend(ResNet50.backends, backend, precision)
    weights = download.default_weights(progress) if weights is None else weights
    path, entry = download.resolve(weights, progress)
    load_fp32 = functools.partial(_load_fp32, path, entry)
    if is_int8_file(path):
        model = load_int8(path)
        model.meta = Meta(_guess_meta(path, model.layers[-1].out_c) | model.meta)
        if precision not in ("int8", "int8-simulated"):
            raise WeightsError(
                f"{path} holds INT8 weights, which cannot run in {precision}; "
                "ask for precision int8 or int8-simulated"
            )
    elif precision not in ("int8", "int8-simulated"):
        model = load_fp32()
    else:
        with checkpoint.naming(path):
            key = entry.sha256 if entry else noted_sha256(path)
        model = default_int8(load_fp32, key, progress)
    model.precision, model.backend = precision, backend
    return model


def _load_fp32(path: Path, entry: download.Weights | None) -> ResNet50:
    if entry:
        download.check_at_rest(path, entry)
    state = checkpoint.read_checkpoint(path)
    classes = state["fc.bias"].shape[0] if state.get("fc.bias", np.array(0)).ndim == 1 else 1000
    shapes = checkpoint.state_dict_shapes(resnet50_layers(classes))
    with checkpoint.naming(path):
        state = checkpoint.check_state_dict(state, shapes)
    meta = entry.meta if entry else _guess_meta(path, classes)
    return ResNet50.from_state_dict(state, meta | _told_meta(path, classes))


def _guess_meta(path: Path, classes: int) -> dict[str, Any]:
    """Assume V1's preset for an unknown file, and ImageNet's names if the number of them fits."""
    names = download.imagenet_categories()
    return {
        "name": short(path.name),
        "categories": names if classes == len(names) else [f"class {i}" for i in range(classes)],
        "preset": IMAGENET_V1,
    }


def _told_meta(path: Path, classes: int) -> dict[str, Any]:
    """Read the facts in a file's metadata, if weights/train_cifar10.py wrote the file."""
    metadata = checkpoint.read_metadata(path)
    if metadata.get("format") != FORMAT:
        return {}
    with checkpoint.naming(path):
        for key in "categories", "preset":
            if key not in metadata:
                raise WeightsError(f"its metadata has no {key}")
        told = {key: read_json(metadata[key]) for key in ("categories", "preset")}
        stored = {STORED_CALIBRATION: text} if (text := metadata.get("calibration")) else {}
        return stored | read_meta(told, classes)


def predict(model: ResNet50, x: Array, top: int = 5) -> list[Predictions]:
    """Name the likeliest classes of each image in a batch.

    Parameters
    ----------
    model : ResNet50
        From `resnet50`.
    x : ndarray
        (N, 3, H, W) float32, from `preprocess` with the model's preset.
    top : int
        How many classes to name; if the network has fewer, all of them.

    Returns
    -------
    list of Predictions
        A list for each image, the likeliest class first.

    Raises
    ------
    MiniresError
        For an invalid input or top, and for logits that are not finite.
    """
    if not hasattr(top, "__index__") or operator.index(top) < 1:
        raise MiniresError(f"top is {top!r}; wanted a whole number of at least 1")
    categories = model.meta["categories"]
    answers = []
    logits = model(x)
    if not np.isfinite(logits).all():
        raise MiniresError("the network computed NaN or infinity; its weights must be broken")
    for probabilities in softmax_ref(logits):
        order = np.argsort(-probabilities, kind="stable")[:top]
        found = (Prediction(categories[i], float(probabilities[i]), int(i)) for i in order)
        answers.append(Predictions(found))
    return answers


def classify(image: ImageSource, top: int = 5, model: ResNet50 | None = None) -> Predictions:
    """Label a photograph.

    Parameters
    ----------
    image : path-like, bytes, binary file, PIL image or ndarray
        An image, in any form that `preprocess` takes.
    top : int
        How many labels.
    model : ResNet50, optional
        From `resnet50`. If you give none, the default model is loaded at the first call.

    Returns
    -------
    Predictions
        A list of `Prediction`, the likeliest label first.

    Raises
    ------
    ImageError
        For an image that cannot be used, or for several images.
    """
    if isinstance(image, list | tuple):
        raise ImageError("classify takes one image; for several, preprocess and predict")
    model = model or _default_model()
    return predict(model, model.preprocess(image), top)[0]


def classify_files(
    model: ResNet50, files: Sequence[Path], top: int = 5, batch_size: int = 8
) -> Iterator[tuple[Path, Predictions | ImageError]]:
    """Label many photographs; one that cannot be used does not stop the others.

    You get each file with its answer: the likeliest label first, or the error that it caused. A
    batch of photographs is held in memory at once.
    """
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        images = [_preprocess_file(file, model.meta["preset"]) for file in batch]
        good = [image for image in images if not isinstance(image, ImageError)]
        predictions = iter(predict(model, np.concatenate(good), top) if good else [])
        for file, image in zip(batch, images, strict=True):
            yield file, image if isinstance(image, ImageError) else next(predictions)


def _preprocess_file(file: Path, preset: Preset) -> Array | ImageError:  # (1, 3, H, W)
    try:
        if os.path.isdir(file):
            raise ImageError(f"{file}: no image lies in this folder")
        return preprocess(file, preset)
    except ImageError as error:
        return error


@functools.cache
def _default_model() -> ResNet50:
    return resnet50()
