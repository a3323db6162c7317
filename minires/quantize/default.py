"""INT8 with no further step: calibrated once on the package's own photographs, and cached."""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from minires.download import cache_dir, weights_dir
from minires.errors import WeightsError
from minires.layers import Array
from minires.model import ResNet50
from minires.preprocess import Preset, load_image, preprocess
from minires.quantize.calibrate import calibrate
from minires.quantize.convert import quantize_model
from minires.quantize.int8_file import load_int8, save_int8

OBSERVER = "mse"
RECIPE = f"{OBSERVER}-crops-1"  # a part of the cached file's name: change it with the recipe


def calibration_photographs() -> list[Path]:
    """List the photographs that come with the package, freely licensed, in a fixed order."""
    return sorted((weights_dir() / "calibration").glob("*.jpg"))


def default_batches(preset: Preset) -> Iterator[Array]:
    """Cut several crops from each photograph in weights/calibration.

    A few photographs have to stand for all: from each the network sees the whole, and the
    two ends and the middle of an enlarged one.

    Parameters
    ----------
    preset : Preset
        How the network wants its images.

    Yields
    ------
    ndarray
        One photograph's crops, (crops, 3, H, W) float32.
    """
    for path in calibration_photographs():
        image = load_image(path)
        width, height = image.size
        side = min(width, height) * 2 // 3
        boxes = [(0, 0), (width - side, height - side), ((width - side) // 2, (height - side) // 2)]
        closer = [image.crop((x, y, x + side, y + side)) for x, y in boxes]
        yield preprocess([image, *closer], preset)


def default_int8(
    load_fp32: Callable[[], ResNet50], weights_key: str, progress: bool = True
) -> ResNet50:
    """Load the INT8 network from the cache, or calibrate it by the default recipe and cache it.

    Parameters
    ----------
    load_fp32 : callable
        Returns the network in fp32; called only where nothing is cached yet.
    weights_key : str
        What tells these weights from all others, such as their checksum.
    progress : bool
        Whether a bar on stderr says what is going on, on a terminal.

    Returns
    -------
    ResNet50
        With precision "int8".
    """
    key = hashlib.sha256(f"{weights_key} {RECIPE}".encode()).hexdigest()[:16]
    cached = cache_dir() / f"resnet50-int8-{key}.safetensors"
    if cached.exists():
        with contextlib.suppress(WeightsError):  # a damaged one is made again
            return load_int8(cached)
    from tqdm import tqdm  # here, because it takes long and is seldom needed

    fp32 = load_fp32()
    photographs = tqdm(
        default_batches(fp32.meta["preset"]),
        desc="calibrating for INT8, once",
        total=len(calibration_photographs()),
        disable=None if progress else True,
    )
    int8 = quantize_model(fp32, calibrate(fp32, photographs, OBSERVER))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_int8(int8, cached)
    except OSError as error:
        warnings.warn(f"the INT8 network is not cached: {error}", stacklevel=2)
    return int8
