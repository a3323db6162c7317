"""A photograph to the network's input: load, resize, crop, normalize.

For an upright RGB image this is torchvision's ``ImageClassification`` preset, and the crop equals
torchvision's in every byte. Two steps are ours: making the image upright and RGB before, and
enlarging the crop at the end, for networks that were trained on enlarged images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from minires.errors import ImageError, MiniresError, check_whole, short
from minires.images import Decoded, ImageSource, as_array, open_image
from minires.layers import Array

LARGEST_SIDE = 1024  # pixels of a preset; the largest in use are 512 or so


@dataclass(frozen=True)
class Preset:
    """How a network wants its images.

    Parameters
    ----------
    resize : int
        The length in pixels to which the short side is resized.
    crop : int
        The side of the square that is cut from the centre.
    mean, std : tuple of float
        Mean and standard deviation of red, green and blue in the training images, whose values are
        on the scale 0 to 1.
    enlarge : int, optional
        The side to which the square is enlarged at the end.

    Examples
    --------
    >>> preset = minires.Preset(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    >>> minires.preprocess("examples/images/cat.jpg", preset).shape
    (1, 3, 224, 224)
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    enlarge: int | None = None

    def __post_init__(self) -> None:
        # A frozen object's fields are set by object's own method.
        for name in ("resize", "crop", "enlarge"):
            given = getattr(self, name)
            if name != "enlarge" or given is not None:
                side = check_whole(f"a preset's {name}", given)
                if side > LARGEST_SIDE:
                    most = f"at most {LARGEST_SIDE}"
                    raise MiniresError(f"a preset's {name} is {short(side)}; wanted {most}")
                object.__setattr__(self, name, side)
        for name, least in ("mean", -np.inf), ("std", 0.0):
            given = getattr(self, name)
            try:
                # JSON's true would be 1.
                red, green, blue = (np.nan if value is True else float(value) for value in given)
            except (TypeError, ValueError, OverflowError):
                red = np.nan
                green = np.nan
                blue = np.nan
            if not all(least < value < np.inf for value in (red, green, blue)):
                above = ", above 0" if name == "std" else ""
                raise MiniresError(f"a preset's {name} is {short(given)}; wanted 3 numbers{above}")
            object.__setattr__(self, name, (red, green, blue))

    @property
    def side(self) -> int:
        """The side of the square that the network gets."""
        return self.enlarge or self.crop


def read_preset(values: object) -> Preset:
    """Make a preset from its fields in JSON or TOML, if the network can run with it."""
    known = {field.name for field in fields(Preset)}
    if not isinstance(values, Mapping) or not known - {"enlarge"} <= set(values) <= known:
        raise MiniresError(f"a preset is {short(values)}; wanted resize, crop, mean and std")
    preset = Preset(**values)
    if preset.side < 32:
        raise MiniresError(f"a preset makes images of {preset.side} pixels; wanted 32 or more")
    for mean, std in zip(preset.mean, preset.std, strict=True):
        # With larger pixels `check_input` would refuse every image.
        if not (std < 1000 and max(abs(mean), abs(1 - mean)) < 100 * std):
            raise MiniresError(
                f"a preset has the mean {mean:g} and the std {std:g}; wanted those of pixels from "
                "0 to 1"
            )
    return preset


IMAGENET_V1 = Preset(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGENET_V2 = Preset(232, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def preprocess(images: ImageSource | Sequence[ImageSource], preset: Preset) -> Array:
    """Make a batch for the network of one image or several.

    Parameters
    ----------
    images : image source, or list or tuple of them
        Images in any form that `load_image` takes.
    preset : Preset
        How the network wants its images: its ``meta["preset"]``. `ResNet50.preprocess` gives this
        for you.

    Returns
    -------
    ndarray
        (N, 3, crop, crop) float32, or (N, 3, enlarge, enlarge) if the preset enlarges.

    Raises
    ------
    ImageError
        For an empty list, or for the first image that cannot be used.

    Examples
    --------
    >>> two = ["examples/images/cat.jpg", np.zeros((480, 640, 3), np.uint8)]
    >>> minires.preprocess(two, model.meta["preset"]).shape
    (2, 3, 64, 64)
    """
    if not isinstance(preset, Preset):
        raise MiniresError(
            f"preset is {short(preset)}; wanted a Preset, such as model.meta['preset']"
        )
    sources: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
    if not sources:
        raise ImageError("the list of images is empty; wanted at least one")
    return np.stack([_preprocess_one(source, preset) for source in sources])


def _preprocess_one(source: ImageSource, preset: Preset) -> Array:
    with open_image(source) as image:
        return normalize(resize_and_crop(image, preset), preset)


def resize_and_crop(image: Image.Image | Decoded, preset: Preset) -> Array:
    """Resize an RGB image so that its short side has the preset's length, and cut out the centre.

    You get (crop, crop, 3) uint8, or (enlarge, enlarge, 3). Where the crop reaches beyond the
    image, it is black.
    """
    image = image if isinstance(image, Decoded) else Decoded(image)
    width, height = image.size
    long = int(preset.resize * max(image.size) / min(image.size))
    wide, high = (preset.resize, long) if width <= height else (long, preset.resize)
    left, top = (_crop_offset(side, preset.crop) for side in (wide, high))
    bilinear = Image.Resampling.BILINEAR  # antialiased: Pillow's always is
    # Pillow resizes each row, rounds, and then resizes each column. So we may resize rows strip by
    # strip, and cut off the pixels beside the square before the columns are resized.
    square = Image.new("RGB", (preset.crop, height))
    row = 0
    for strip in image.strips():
        strip = strip.resize((wide, strip.height), bilinear)
        square.paste(strip.crop((left, 0, left + preset.crop, strip.height)), (0, row))
        row += strip.height
    square = square.resize((preset.crop, high), bilinear)
    square = square.crop((0, top, preset.crop, top + preset.crop))
    if preset.enlarge:
        square = square.resize((preset.enlarge, preset.enlarge), bilinear)
    return np.array(square)


def _crop_offset(side: int, crop: int) -> int:
    """Find where a centred crop begins: below 0 if it is larger than the image."""
    # The two cases round differently, because torchvision pads a small image and then cuts nothing.
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def normalize(crop_u8: Array, preset: Preset) -> Array:
    """Scale to 0..1, subtract the mean, divide by std: (H, W, 3) uint8 to (3, H, W) float32."""
    x = crop_u8.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
    mean, std = np.array([preset.mean, preset.std], np.float32)[:, :, np.newaxis, np.newaxis]
    y: Array = (x - mean) / std
    return y


def check_input(x: Any) -> Array:
    """Return NumPy's array of a batch that the network can take; else raise `MiniresError`."""
    x = as_array(x) if hasattr(x, "__array__") else x
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        kind = f"a {x.dtype} array" if isinstance(x, np.ndarray) else type(x).__name__
        raise MiniresError(f"x is {kind}; wanted a float32 array, as minires.preprocess makes it")
    if x.ndim != 4 or x.shape[0] < 1 or x.shape[1] != 3 or min(x.shape[2:]) < 32:
        raise MiniresError(f"x has shape {x.shape}; wanted (N, 3, H, W), H and W at least 32")
    # Two passes over one image at a time: the second finds it in the cache, and nothing is copied.
    largest = np.max([[image.max(), -image.min()] for image in x])
    if not largest < 100:  # so that NaN fails too
        raise MiniresError(
            f"x holds values up to {largest:g}; wanted normalized pixels (about -3 to 3), "
            "as minires.preprocess makes them"
        )
    return x
