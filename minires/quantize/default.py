"""INT8 networks made automatically: calibrated once, by a stored calibration or on photographs."""

import contextlib
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from minires.cache import cache_dir, remove_oldest
from minires.download import weights_dir
from minires.errors import MiniresError, WeightsError
from minires.images import load_image
from minires.layers import Array
from minires.metadata import read_calibration
from minires.model import ResNet50
from minires.notice import bar_hidden, progress_bar
from minires.preprocess import Preset, preprocess
from minires.quantize.calibrate import (
    STORED_CALIBRATION,
    Calibration,
    calibrate,
    quantized_edges,
)
from minires.quantize.convert import quantize_model
from minires.quantize.int8_file import load_int8, save_int8

RECIPE = ("mse", "gptq", "off")  # the observer, the rounding, the correction
VERSION = 2  # goes into the cached file's name with the recipe: count on if it makes other bits
MOST_CACHED = 8  # networks, of 26 MB each


def calibration_photographs() -> list[Path]:
    """List the photographs that come with the package, freely licensed, in a fixed order."""
    return sorted((weights_dir() / "calibration").glob("*.jpg"))


def default_batches(preset: Preset) -> Iterator[Array]:
    """Cut several crops from each photograph in weights/calibration: (crops, 3, H, W) float32.

    Few photographs have to stand for all. So from each the network sees the whole, and also three
    parts, enlarged: both corners and the middle.
    """
    for path in calibration_photographs():
        image = load_image(path)
        width, height = image.size
        side = min(width, height) * 2 // 3
        boxes = [(0, 0), (width - side, height - side), ((width - side) // 2, (height - side) // 2)]
        closer = [image.crop((x, y, x + side, y + side)) for x, y in boxes]
        yield preprocess([image, *closer], preset)


def stored_calibration(fp32: ResNet50) -> Calibration | None:
    """Take the calibration from the metadata of a network's weights, or None if it has none.

    It is in the network's meta, under `STORED_CALIBRATION`: a `Calibration`'s fields in JSON. If it
    is damaged, or belongs to another network, it raises `WeightsError`.
    """
    text = fp32.meta.get(STORED_CALIBRATION)
    if text is None:
        return None
    try:
        return Calibration(**read_calibration(text, quantized_edges(fp32.layers)))
    except WeightsError as error:
        raise WeightsError(
            f"{fp32.meta['name']}: the calibration in its metadata cannot be used ({error}); "
            "calibrate on photographs, with minires quantize --calibrate FOLDER"
        ) from error


def default_int8(
    load_fp32: Callable[[], ResNet50], weights_key: str, progress: bool = True
) -> ResNet50:
    """Load the INT8 network from the cache, or make it by the default recipe and cache it.

    `weights_key` tells these weights from all others, as a checksum does. `load_fp32` is called
    only if nothing is cached yet. `progress` tells of it on stderr, by a bar or a line.
    """
    key = hashlib.sha256(f"{weights_key} {'-'.join(RECIPE)} {VERSION}".encode()).hexdigest()[:16]
    cached = cache_dir() / f"resnet50-int8-{key}.safetensors"
    if os.path.exists(cached):  # in a folder that may not be read, pathlib's would raise an error
        with contextlib.suppress(WeightsError):  # a damaged file is made again
            model = load_int8(cached)
            with contextlib.suppress(OSError):
                os.utime(cached)  # so that `remove_oldest` keeps files that are in use
            return model
    fp32 = load_fp32()
    calibration = stored_calibration(fp32)
    if calibration is None:
        photographs = progress_bar(
            default_batches(fp32.meta["preset"]),
            "calibrating for INT8, once",
            progress,
            total=len(calibration_photographs()),
        )
        observer, rounding, correction = RECIPE
        calibration = calibrate(fp32, photographs, observer, moments=True)
        # Where no bar can be shown, the line above has told already.
        shown = progress and not bar_hidden()
        layers = functools.partial(progress_bar, text="rounding for INT8, once", shown=shown)
        int8 = quantize_model(fp32, calibration, rounding, correction, layers)
    else:
        int8 = quantize_model(fp32, calibration)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_int8(int8, cached)
        remove_oldest(cached.parent, "resnet50-int8-*.safetensors", MOST_CACHED)
    except (OSError, MiniresError) as error:
        warnings.warn(f"the INT8 network is not cached: {error}", stacklevel=2)
    return int8
