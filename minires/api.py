"""The functions for users: from weights to a model, and from an image to labels."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires import checkpoint, download, html
from minires.backends import INT8, Backend, Engine, check_backend
from minires.cache import noted_sha256
from minires.categories import Categories, read_categories, told_categories
from minires.errors import (
    ImageError,
    MiniresError,
    WeightsError,
    check_choice,
    check_is,
    check_whole,
    short,
)
from minires.images import ImageSource
from minires.layers import OPERATORS, Array, Layer
from minires.layouts import NAMES, torchvision_names
from minires.metadata import read_json, read_meta
from minires.model import ResNet50
from minires.notice import tell_once
from minires.preprocess import IMAGENET_V1, Preset
from minires.quantize.calibrate import STORED_CALIBRATION
from minires.quantize.default import default_int8
from minires.quantize.int8_file import is_int8_file, load_int8
from minires.reading import read_photographs
from minires.reference import softmax_ref
from minires.show import Meta

FORMAT = "minires-float"  # marks .safetensors files that tell categories, preset and calibration


class Prediction(NamedTuple):
    """One label for an image.

    Examples
    --------
    >>> best = minires.classify("examples/images/cat.jpg", model=model)[0]
    >>> best.label, best.index
    ('cat', 3)
    """

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
    if any(layer.kept for layer in layers):
        raise MiniresError('backend "cuda" runs no layers kept in float32; take "numba"')
    from minires.kernels.cuda import engine

    return engine.Engine(list(layers), params, precision)


def instruction_set() -> str:
    """Name the instruction set that compiled kernels use, if there is one of the name wanted."""
    from minires.kernels.isa import choose_isa

    with contextlib.suppress(MiniresError):  # the first run says it
        return choose_isa().name
    return ""


def gpu_name() -> str:
    """Name the GPU that runs have opened; to show a network must open none."""
    from minires.kernels.cuda import driver

    with contextlib.suppress(MiniresError):  # the next run says it
        return driver.open_gpu().name if os.getpid() in driver.opened_by else ""
    return ""


ResNet50.backends |= {
    "numba": Backend(("fp32", "bf16", "int8", "int8-simulated"), make_engine, instruction_set),
    "cuda": Backend(("fp32", "tf32", "fp16", "bf16", "int8"), make_cuda_engine, gpu_name),
}
BACKENDS = tuple(ResNet50.backends)


def resnet50(
    weights: str | os.PathLike[str] | download.Weights | None = None,
    precision: str | None = None,
    backend: str = "numba",
    *,
    categories: Categories | None = None,
    preset: Preset | str | None = None,
    progress: bool = True,
) -> ResNet50:
    """Load a ResNet-50 that is ready to run.

    Parameters
    ----------
    weights : str, path-like or Weights, optional
        A name that `minires.available_weights` lists, a result of `minires.get_weights`, or the
        path of a .pth or .safetensors file. If you give none, IMAGENET1K_V2 is used, or CIFAR10
        where that cannot be fetched, and a line on stderr says so.
    precision : str, optional
        "fp32", "bf16", "int8" or "int8-simulated" (INT8's numbers, computed in float32); a GPU
        also has "fp16" and "tf32". If you give none: "int8" for a file in INT8, or else "fp32".
        Float weights are calibrated once, unless their file has a calibration.
    backend : str
        "numba" runs compiled kernels; "cuda" an NVIDIA GPU's; "numpy" runs the definitions.
    categories : sequence of str, mapping or path-like, optional
        The names of your own network's classes: a list; ImageFolder's ``class_to_idx``; a text
        file with a name on each line; or a folder with a folder for each class. If you give none,
        those of the weights' file are used.
    preset : Preset or str, optional
        How the network wants its images, or the name of weights that want them so. If nothing is
        known of the weights and you give none, IMAGENET1K_V1's, and a line on stderr says so.
    progress : bool
        Whether downloading and calibrating show a bar on stderr.

    Returns
    -------
    ResNet50
        Its ``meta`` has categories, preset, accuracy, source and licence, as far as known.

    Raises
    ------
    MiniresError
        For an unknown precision, backend or preset, and a wrong number of categories.
    WeightsError
        For weights that cannot be had or read, or that belong to another network.

    Examples
    --------
    >>> minires.resnet50("CIFAR10", "int8", backend="numpy")
    ResNet50(CIFAR10, int8, numpy, 10 classes, 64 x 64 pixels)
    """
    check_choice("precision", "fp32" if precision is None else precision, OPERATORS)
    check_backend(ResNet50.backends, backend, precision or "fp32")
    names = None if categories is None else read_categories(categories)
    chosen = None if preset is None else _choose_preset(preset)
    weights = download.default_weights(progress) if weights is None else weights
    path, entry = download.resolve(weights, progress)
    precision = precision or ("int8" if is_int8_file(path) else "fp32")
    model = _load(path, entry, precision, chosen, progress)
    _name_classes(model, names)
    model.precision, model.backend = precision, backend
    return model


def _tell_guess(model: ResNet50) -> None:
    """Say of a network of the reader's own that its preset is a guess; ImageNet's is a good one."""
    if model.layers[-1].out_c != len(download.imagenet_categories()):
        tell_once(
            f"minires: {model.meta['name']} does not say how it wants its images; they are "
            "prepared as for IMAGENET1K_V1, unless you give a preset (--preset)"
        )


def _name_classes(model: ResNet50, names: list[str] | None) -> None:
    if names is None:
        return
    classes = model.layers[-1].out_c
    if len(names) != classes:
        raise MiniresError(f"{len(names)} categories are given for {classes} classes")
    model.meta["categories"] = names


def _load(
    path: Path,
    entry: download.Weights | None,
    precision: str,
    preset: Preset | None,
    progress: bool,
) -> ResNet50:
    """Load a network in fp32 or in INT8, whichever the precision needs the parameters of."""
    load_fp32 = functools.partial(_load_fp32, path, entry, preset)
    if is_int8_file(path):
        if precision not in INT8:
            raise WeightsError(
                f"{path} holds INT8 weights, which cannot run in {precision}; "
                "ask for precision int8 or int8-simulated"
            )
        model = load_int8(path)
        told = {"preset": preset} if preset else {}
        model.meta = Meta(_guess_meta(path, model.layers[-1].out_c) | model.meta | told)
        return model
    if precision in INT8:
        with checkpoint.naming(path):
            files = checkpoint.files_of(path)
            sums = [entry.sha256] if entry else [noted_sha256(Path(file)) for file in files]
        # A calibration is kept for these files, and for your preset, which changes the images.
        key = " ".join([*sums, repr(preset)] if preset else sums)
        model = default_int8(load_fp32, key, progress)
    else:
        model = load_fp32()
    if not (preset or entry or checkpoint.read_metadata(path).get("format") == FORMAT):
        _tell_guess(model)
    return model


def _choose_preset(preset: object) -> Preset:
    if isinstance(preset, Preset):
        return preset
    check_choice("preset", preset, download.available_weights())
    return download.get_weights(str(preset)).preset


def _load_fp32(path: Path, entry: download.Weights | None, preset: Preset | None) -> ResNet50:
    if entry:
        download.check_at_rest(path, entry)
    tensors, beside = checkpoint.read_all(path)
    with checkpoint.naming(path):
        model = ResNet50.from_state_dict(torchvision_names(tensors))
    classes = model.layers[-1].out_c
    meta = dict(entry.meta) if entry else _guess_meta(path, classes)
    # PyTorch's files may hold names beside their tensors; safetensors has them in its metadata.
    beside |= {k: v for k, v in checkpoint.read_metadata(path).items() if k in NAMES}
    if not entry and (names := told_categories(beside, classes)):
        meta["categories"] = names
    meta |= _told_meta(path, classes)
    model.meta.update({**meta, "preset": preset} if preset else meta)
    return model


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

    Examples
    --------
    >>> [[best]] = minires.predict(model, x, top=1)
    >>> f"{best.label} {best.probability:.0%}"
    'cat 92%'
    """
    top = check_whole("top", top)
    check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
    classes = model.layers[-1].out_c
    categories = model.meta.get("categories", [f"class {i}" for i in range(classes)])
    if len(categories) != classes:
        raise MiniresError(f'model.meta["categories"] has {len(categories)} names for {classes}')
    answers = []
    logits = model(x)
    if not np.isfinite(logits).all():
        raise MiniresError("the network computed NaN or infinity; its weights must be broken")
    for probabilities in softmax_ref(logits):
        order = np.argsort(-probabilities, kind="stable")[:top]
        found = (Prediction(categories[i], float(probabilities[i]), int(i)) for i in order)
        answers.append(Predictions(found))
    return answers


def classify(
    image: ImageSource, top: int = 5, model: ResNet50 | str | os.PathLike[str] | None = None
) -> Predictions:
    """Label a photograph.

    Parameters
    ----------
    image : path-like, bytes, binary file, PIL image or ndarray
        An image, in any form that `preprocess` takes.
    top : int
        How many labels.
    model : ResNet50, str or path-like, optional
        From `resnet50`; or what `resnet50` takes as weights, such as "CIFAR10", which is loaded at
        the first call. If you give none, that is the default model.

    Returns
    -------
    Predictions
        A list of `Prediction`, the likeliest label first.

    Raises
    ------
    ImageError
        For an image that cannot be used, or for several images.

    Examples
    --------
    >>> for label, probability, index in minires.classify("examples/images/cat.jpg", 2, "CIFAR10"):
    ...     print(f"{label} {probability:.0%}")
    cat 92%
    frog 1%
    """
    if isinstance(image, list | tuple):
        raise ImageError("classify takes one image; for several, call preprocess and predict")
    if isinstance(top, ResNet50):
        raise MiniresError("the network stands in the place of top; write model= before it")
    top = check_whole("top", top)  # before weights are downloaded
    if model is None or isinstance(model, str | os.PathLike):
        model = _loaded(None if model is None else os.fspath(model))
    check_is("model", model, ResNet50, "a network that minires.resnet50 loads")
    return predict(model, model.preprocess(image), top)[0]


def classify_files(
    model: ResNet50, files: Sequence[Path], top: int = 5, batch_size: int = 8
) -> Iterator[tuple[Path, Predictions | ImageError]]:
    """Label many photographs; one that cannot be used does not stop the others.

    You get each file with its answer: the likeliest label first, or the error that it caused. A
    batch of photographs is held in memory at once, and the next one while it is read.
    """
    images = read_photographs(files, model.meta["preset"], ahead=batch_size)
    for start in range(0, len(files), batch_size):
        batch = list(zip(files[start : start + batch_size], images, strict=False))
        good = [image for _, image in batch if not isinstance(image, ImageError)]
        predictions = iter(predict(model, np.concatenate(good), top) if good else [])
        for file, image in batch:
            yield file, image if isinstance(image, ImageError) else next(predictions)


@functools.lru_cache(maxsize=2)  # a network has 100 MB
def _loaded(weights: str | None) -> ResNet50:
    return resnet50(weights)
