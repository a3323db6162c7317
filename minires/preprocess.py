"""A photograph to the network's input: load, resize, crop, normalize.

From an upright RGB image on, this is torchvision's ``ImageClassification`` preset, and the crop
equals torchvision's in every byte. Making an image upright and RGB comes before and is ours, as is
enlarging the crop at last, for networks that were trained on enlarged images.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minires.errors import ImageError, MiniresError, short
from minires.layers import Array

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | Array

# What is white in Pillow's deep modes: the first of these that no value exceeds. I and I;16 are
# what files of 16 bits are read into; floats come on either scale.
WHITES = {"I": (65535,), "F": (1, 255)}
MAX_ASPECT_RATIO = 1000  # such an image takes 215 MB when its short side is resized to 232


@dataclass(frozen=True)
class Preset:
    """How a network wants its images.

    Parameters
    ----------
    resize : int
        What the short side is brought to, in pixels.
    crop : int
        Side of the square cut from the centre.
    mean, std : tuple of float
        Of red, green and blue in the training images, on the scale 0 to 1.
    enlarge : int, optional
        Side to which the square is enlarged at last.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    enlarge: int | None = None


LARGEST_SIDE = 1024  # pixels of a preset; the largest in use are 512 or so


def read_preset(values: object) -> Preset:
    """Make a preset of what JSON or TOML has: lists in place of tuples.

    Parameters
    ----------
    values : mapping
        By the names of its fields.

    Returns
    -------
    Preset
        Equal to the one that was written.

    Raises
    ------
    MiniresError
        For values that make no images, or images that the network does not take.
    """
    known = {field.name for field in fields(Preset)}
    if not isinstance(values, Mapping) or not known - {"enlarge"} <= set(values) <= known:
        raise MiniresError(f"a preset is {short(values)}; wanted resize, crop, mean and std")
    sides = [values[name] for name in ("resize", "crop", "enlarge") if values.get(name) is not None]
    whole = all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides)
    if len(sides) < 2 or not whole or sides[-1] < 32:
        raise MiniresError(
            f"a preset makes images of {short(sides)} pixels; wanted 32 to {LARGEST_SIDE}"
        )
    colours = [values["mean"], values["std"]]
    for colour in colours:
        kinds = [type(x) for x in colour] if isinstance(colour, list | tuple) else []
        if len(kinds) != 3 or not set(kinds) <= {int, float}:
            raise MiniresError(f"a preset's mean or std is {short(colour)}; wanted 3 numbers")
    for mean, std in zip(*colours, strict=True):
        # `check_input` refuses what is larger, when an image is there.
        if not (0 < std < 1000 and max(abs(mean), abs(1 - mean)) < 100 * std):
            raise MiniresError(
                f"a preset has the mean {short(mean)} and the std {short(std)}; wanted those of "
                "pixels from 0 to 1"
            )
    return Preset(**{**values, **{key: tuple(values[key]) for key in ("mean", "std")}})


IMAGENET_V1 = Preset(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGENET_V2 = Preset(232, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def preprocess(images: ImageSource | Sequence[ImageSource], preset: Preset) -> Array:
    """Make one image, or several, a batch for the network.

    Parameters
    ----------
    images : image source, or list or tuple of them
        What `load_image` takes.
    preset : Preset
        How the network wants its images: its ``meta["preset"]``. `ResNet50.preprocess` takes it.

    Returns
    -------
    ndarray
        (N, 3, crop, crop) float32; enlarge in place of crop where the preset has it.

    Raises
    ------
    ImageError
        For no images at all, or for the first that cannot be used.
    """
    if not isinstance(preset, Preset):
        raise MiniresError(f"preset is {preset!r}; wanted a Preset, such as model.meta['preset']")
    sources: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
    if not sources:
        raise ImageError("the list of images is empty; wanted at least one")
    crops = (resize_and_crop(load_image(source), preset) for source in sources)
    return np.stack([normalize(crop_u8, preset) for crop_u8 in crops])


def find_images(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that are named, and those that lie in the folders that are named.

    Parameters
    ----------
    sources : iterable of path-like
        Files and folders.

    Returns
    -------
    list of Path
        In place of a folder its images, by name. What is no folder, or a folder without an image,
        stays as it is: whoever opens it says what is wrong.
    """
    suffixes = {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = []
    for source in map(Path, sources):
        inside: list[Path] = []
        with contextlib.suppress(OSError):  # it is a file, or may not be looked into
            inside = sorted(source.iterdir())
        # A name that begins with a dot is hidden: macOS leaves such files beside images.
        visible = [path for path in inside if path.name[0] != "." and path.is_file()]
        images = [path for path in visible if path.suffix.lower() in suffixes]
        files += images or [source]
    return files


def load_image(source: ImageSource) -> Image.Image:
    """Decode an image, turn it upright and make it RGB.

    What is transparent becomes white, the paper that drawings and cut-outs are made for: the
    colour stored beneath is arbitrary. Of an animation this is the first frame.

    Parameters
    ----------
    source : path-like, bytes, binary file, PIL image or ndarray
        An array is (H, W, 3) or (H, W) uint8. More than 8 bits are scaled to 8: white is 65535,
        for floats 1 or 255; values beyond that are stretched from the least to the greatest.

    Returns
    -------
    PIL.Image.Image
        RGB, turned as its EXIF orientation says.

    Raises
    ------
    ImageError
        For what cannot be opened, is no image, is incomplete, has more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS`` or is over 1000 times as long as it is wide.
    """
    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mostly of odd metadata; the pixels are checked
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(source) as opened:
                image = _to_upright_rgb(opened)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: empty, or not an image; wanted a JPEG or PNG, say") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: refused unless made smaller ({error})") from error
    except Exception as error:  # Pillow lets nearly anything out where a file is damaged
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"{name}: cannot be opened ({error.strerror})") from error
        raise ImageError(
            f"{name}: damaged, incomplete or of an unusual kind ({str(error) or repr(error)}); "
            "if another program shows it, save it from there as JPEG or PNG"
        ) from error
    if not 0 < max(image.size) <= MAX_ASPECT_RATIO * min(image.size):
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels; wanted at least 1 x 1, and at most "
            f"{MAX_ASPECT_RATIO} times as many one way as the other"
        )
    return image


def _name(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return str(source)
    path = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(path or f"the {type(source).__name__} given")


def _open(source: ImageSource) -> contextlib.AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or not (source.ndim == 2 or source.shape[2:] == (3,)):
            raise ImageError(
                f"an image given as an array is {source.dtype} of shape {source.shape}; "
                "wanted uint8 and (H, W, 3) or (H, W)"
            )
        return contextlib.nullcontext(Image.fromarray(source))
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return Image.open(source)
    raise ImageError(
        f"a {type(source).__name__} given as an image; "
        "wanted a path, bytes, a binary file, a PIL image or an array"
    )


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    image.load()  # all of it: here an incomplete file is noticed
    with contextlib.suppress(Exception):  # broken EXIF data says nothing of the pixels
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in WHITES:
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale where Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    black, white = values.min(), values.max()
    if black >= 0 and white <= WHITES[image.mode[0]][-1]:
        black, white = 0, next(known for known in WHITES[image.mode[0]] if white <= known)
    scaled = (values - black) * (255 / (white - black or 1))  # 1: all are the same
    if "transparency" in image.info:  # the one grey through which the paper shows
        scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def resize_and_crop(image: Image.Image, preset: Preset) -> Array:
    """Bring the short side to a length, keeping the proportions, and cut out the centre.

    Parameters
    ----------
    image : PIL.Image.Image
        RGB, as `load_image` returns it.
    preset : Preset
        Its resize, crop and enlarge.

    Returns
    -------
    ndarray
        (crop, crop, 3) uint8, or (enlarge, enlarge, 3); black where the image does not reach.
    """
    long = int(preset.resize * max(image.size) / min(image.size))
    size = (preset.resize, long) if image.width <= image.height else (long, preset.resize)
    resized = image.resize(size, Image.Resampling.BILINEAR)  # antialiased: Pillow's always is
    left, top = (_crop_offset(side, preset.crop) for side in size)
    square = resized.crop((left, top, left + preset.crop, top + preset.crop))
    if preset.enlarge:
        square = square.resize((preset.enlarge, preset.enlarge), Image.Resampling.BILINEAR)
    return np.array(square)


def _crop_offset(side: int, crop: int) -> int:
    """Find where a centred crop begins: before 0 where it is larger than the image."""
    # They round apart, because torchvision pads a small image first and then has nothing to cut.
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def normalize(crop_u8: Array, preset: Preset) -> Array:
    """Scale to 0..1, subtract the mean, divide by the standard deviation.

    Parameters
    ----------
    crop_u8 : ndarray
        (H, W, 3) uint8.
    preset : Preset
        Its mean and std.

    Returns
    -------
    ndarray
        (3, H, W) float32.
    """
    x = crop_u8.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
    mean, std = np.array([preset.mean, preset.std], np.float32)[:, :, np.newaxis, np.newaxis]
    y: Array = (x - mean) / std
    return y


def check_input(x: Array) -> None:
    """Raise `MiniresError` unless `x` is a batch that the network can take."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        kind = f"a {x.dtype} array" if isinstance(x, np.ndarray) else type(x).__name__
        raise MiniresError(f"x is {kind}; wanted a float32 array, as minires.preprocess makes it")
    if x.ndim != 4 or x.shape[0] < 1 or x.shape[1] != 3 or min(x.shape[2:]) < 32:
        raise MiniresError(f"x has shape {x.shape}; wanted (N, 3, H, W), H and W at least 32")
    # Two passes over each image, which the second finds in the cache, are quicker than a copy.
    largest = np.max([[image.max(), -image.min()] for image in x])
    if not largest < 100:  # so that NaN fails too
        raise MiniresError(
            f"x holds values up to {largest:g}; wanted normalized pixels (about -3 to 3), "
            "as minires.preprocess makes them"
        )
