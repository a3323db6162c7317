"""An image file to upright RGB: open, decode, turn, and bring all modes to 8 bits of RGB.

A file of 0.2 MB may hold 89 million pixels. So what Pillow has decoded is the only thing here that
is as large as the image. It is brought to RGB in strips of rows, and whoever reads these keeps as
little of them as they need.
"""

import contextlib
import importlib.util
import io
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from minires.errors import ImageError, MiniresError, short
from minires.layers import Array

ImageSource = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | Array | Any
)  # Any: what has __array__, such as torch's tensors

# The formats of photographs, by Pillow's name, with the suffixes of such files. No other one
# is opened: for some Pillow starts a program, as Ghostscript for EPS, and hands it the file.
# HEIF is opened where the plug-in pillow-heif is installed, AVIF where Pillow was built so.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
# Files in ISO's container: the brands that follow "ftyp", by Pillow's name for the format.
BRANDS = dict.fromkeys((b"avif", b"avis"), "AVIF") | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"),
    "HEIF",
)
# Plug-ins that read them where Pillow does not: by the format, the package, the module, and the
# function of the module that makes it known to Pillow.
PLUG_INS = {
    "AVIF": ("pillow-avif-plugin", "pillow_avif", ""),  # importing it is enough
    "HEIF": ("pillow-heif", "pillow_heif", "register_heif_opener"),
}
SPOKEN = {"AVIF": "AVIF", "HEIF": "HEIC"}  # as people call them

# White in Pillow's deep modes, and up to which value: a product may overshoot a little.
SCALES: dict[str, list[tuple[float, float]]] = {
    "F": [(1, 1.5), (255, 280)],
    "I": [(255, 280), (65535, 65535)],
    "I;16": [(65535, 65535)],
}
DEEP = ("PNG", "PPM")  # whose grey of 16 bits is mode I in some versions of Pillow, or in all
DARKER = 0.02  # of white: as little below black is black
# By the EXIF orientation: the turn to upright, whether its rows are columns as stored, and
# whether the first one is the last as stored.
ORIENTATION = 0x0112
Turn = tuple[Image.Transpose | None, bool, bool]
UPRIGHT: Turn = (None, False, False)
TURNS: dict[int, Turn] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, False),
    3: (Image.Transpose.ROTATE_180, False, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, True, True),
}
# Each scan of a JPEG goes over all pixels, and 20 bytes are enough for one. Encoders write about 10
# of them, and libtiff allows as many as this.
MOST_SCANS = 100
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # ITU T.81, annex B: those with more behind
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
PIECE = 2**14  # bytes that are looked through at once
STRIP = 2**19  # pixels: the arrays made of them take some 20 MB
MAX_ASPECT_RATIO = 1000  # such an image takes 215 MB when its short side is resized to 232


def load_image(source: ImageSource) -> Image.Image:
    """Decode an image, turn it upright and make it RGB.

    What is transparent becomes white, the paper that drawings and cut-outs are made for: the
    colour stored beneath is arbitrary. Of an animation this is the first frame.

    Parameters
    ----------
    source : path-like, bytes-like, binary file, PIL image, ndarray or tensor
        An array is (H, W, 3) or (H, W) uint8; a tensor, as torch's, may also be (3, H, W). More
        than 8 bits are scaled to 8: white is 65535 in 16 bits, 255 or 65535 in 32, 1 or 255 in
        floats, and a little beyond that is white too. Other values are stretched from the least to
        the greatest.

    Returns
    -------
    PIL.Image.Image
        RGB, turned as its EXIF orientation says.

    Raises
    ------
    ImageError
        For what cannot be opened, is no image, is incomplete, has more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS`` or is over 1000 times as long as it is wide.

    Examples
    --------
    >>> minires.load_image("examples/images/cat.jpg").size
    (451, 300)
    """
    with open_image(source) as decoded:
        image = Image.new("RGB", decoded.size)
        row = 0
        for strip in decoded.strips():
            image.paste(strip, (0, row))
            row += strip.height
    return image


class Decoded:
    """An image that Pillow has decoded, to be read upright and in RGB, some rows at a time.

    The image may have any mode, and is not changed. The orientation is EXIF's: 1 is upright. The
    transparent colour has the form that Pillow has for this mode.
    """

    def __init__(
        self, image: Image.Image, orientation: int = 1, transparent: object = None
    ) -> None:
        self._image = image
        self._transparent = transparent
        self._turn, self._sideways, self._backwards = TURNS.get(orientation, UPRIGHT)
        self.size = image.size[::-1] if self._sideways else image.size

    def strips(self) -> Iterator[Image.Image]:
        """Yield the image in RGB, from top to bottom."""
        scale = _grey_scale(self._image) if self._image.mode[0] in "IF" else None
        for strip in self._cut():
            if self._transparent is not None:
                strip.info["transparency"] = self._transparent
            yield _to_rgb(strip if scale is None else _to_8_bits(strip, *scale))

    def _cut(self) -> Iterator[Image.Image]:
        width, height = self.size
        rows = max(1, STRIP // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = (height - bottom, height - top) if self._backwards else (top, bottom)
            box = (first, 0, last, width) if self._sideways else (0, first, width, last)
            # A copy of the whole would be for nothing, unless something is written into it.
            whole = rows >= height and self._transparent is None
            strip = self._image if whole else self._image.crop(box)
            yield strip if self._turn is None else strip.transpose(self._turn)


@contextlib.contextmanager
def open_image(source: ImageSource) -> Iterator[Decoded]:
    """Decode an image; whatever goes wrong, then or while it is read, is an `ImageError`."""
    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mostly of odd metadata; the pixels are checked
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(source) as opened:
                yield _decode(opened, name)
    except MiniresError as error:
        raise ImageError(str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(source)}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: refused unless made smaller ({error})") from error
    except MemoryError as error:
        raise ImageError(f"{name}: there is not enough memory for it; make it smaller") from error
    except Exception as error:  # Pillow lets nearly anything out where a file is damaged
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"{name}: cannot be opened ({error.strerror})") from error
        raise ImageError(
            f"{name}: damaged, incomplete or of an unusual kind ({str(error) or repr(error)}); "
            "if another program shows it, save it from there as JPEG or PNG"
        ) from error


def _name(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return str(source) or "the empty name given"
    path = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(path or f"the {type(source).__name__} given")


def _open(source: ImageSource) -> contextlib.AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source)
    # NumPy's own str and bytes have __array__, too: a name may come out of an array of names.
    if hasattr(source, "__array__") and not isinstance(source, str | bytes):
        source = _as_image(source)
        if source.dtype != np.uint8 or not (source.ndim == 2 or source.shape[2:] == (3,)):
            raise ImageError(
                f"an image given as an array is {source.dtype} of shape {source.shape}; "
                "wanted uint8 and (H, W, 3) or (H, W)"
            )
        return contextlib.nullcontext(Image.fromarray(np.ascontiguousarray(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_file(io.BytesIO(source))
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        refuse_address(source)
        return _open_file(source)
    raise ImageError(
        f"a {type(source).__name__} given as an image; "
        "wanted a path, bytes, a binary file, a PIL image or an array"
    )


def refuse_address(source: object) -> None:
    """Raise `ImageError` for an address on the web, because minires opens files only."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    # A path has one slash where the address had two.
    if isinstance(name, str) and (found := re.match(r"(https?|ftp):/+", name, re.IGNORECASE)):
        address = f"{found[1]}://{name[found.end() :]}"
        raise ImageError(
            f"{address}: an address on the web, and minires reads files; download it first, as by "
            f"curl -O {address}"
        )


def _open_file(file: Any) -> Image.Image:
    """Open a path or a binary file, with a plug-in's help if Pillow needs it."""
    Image.init()  # finds Pillow's own plug-ins
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        kind = _brand(file)
        _, module, register = PLUG_INS.get(kind, ("", "", ""))
        if kind in Image.OPEN or not module or importlib.util.find_spec(module) is None:
            raise
        plug_in = importlib.import_module(module)
        getattr(plug_in, register, lambda: None)()
        return Image.open(file, formats=[kind])


def as_array(given: Any) -> Array:
    """Turn into NumPy's array whatever has ``__array__``, such as torch's tensors."""
    try:
        if hasattr(given, "detach"):  # torch's may need a gradient, or lie on a GPU
            given = given.detach().cpu()
        return np.asarray(given)
    except Exception as error:  # of a library that we do not know
        raise MiniresError(
            f"NumPy can make no array of the {type(given).__name__} given ({short(str(error))})"
        ) from error


def _as_image(given: Any) -> Array:
    """Turn what may be a tensor into (H, W, 3): torch has the channels first."""
    array = as_array(given)
    first = not isinstance(given, np.ndarray) and array.ndim == 3 and array.shape[2] != 3
    return array.transpose(1, 2, 0) if first and array.shape[0] == 3 else array


def _brand(source: Any) -> str:
    """Look at a file's first bytes for a format of `BRANDS`; the answer is empty for others."""
    start = b""
    with contextlib.suppress(Exception):
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                start = file.read(64)
        elif hasattr(source, "read"):
            source.seek(0)
            start = source.read(64)
        else:
            start = bytes(source[:64])
    if start[4:8] != b"ftyp":
        return ""
    # The box tells its own length. The file's own brand comes first, then those it can be read as.
    brands = start[8 : int.from_bytes(start[:4], "big")]
    words = (brands[at : at + 4] for at in range(0, len(brands), 4))
    return next((BRANDS[word] for word in words if word in BRANDS), "")


def _what_it_is(source: Any) -> str:
    """Say what kind of file it is that cannot be opened, and what to do."""
    kind = _brand(source)
    if not kind:
        return f"empty, or not an image of a kind that is read: {', '.join(FORMATS)}"
    if kind in Image.OPEN:
        return f"a photograph in {SPOKEN[kind]} that is damaged or incomplete"
    return (
        f"a photograph in {SPOKEN[kind]}, which Pillow cannot read here by itself; pip install "
        f"{PLUG_INS[kind][0]}, or save it as JPEG or PNG"
    )


def _decode(image: Image.Image, name: str) -> Decoded:
    file = getattr(image, "fp", None)  # None where it is decoded already
    if image.format in ("JPEG", "MPO") and file and _count_scans(file) > MOST_SCANS:
        raise ImageError(
            f"{name}: refused, because it has more than {MOST_SCANS} scans and would take long; "
            "save it anew as JPEG or PNG"
        )
    transparent = _transparent(image)  # before its pixels are read: then how they lay is forgotten
    image.load()  # all of it: here an incomplete file is noticed
    if not 0 < max(image.size) <= MAX_ASPECT_RATIO * min(image.size):
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels; wanted at least 1 x 1, and at most "
            f"{MAX_ASPECT_RATIO} times as many one way as the other"
        )
    orientation = 1
    with contextlib.suppress(Exception):  # broken EXIF data says nothing of the pixels
        orientation = image.getexif().get(ORIENTATION, 1)
        hash(orientation)
    return Decoded(image, orientation, transparent)


def _count_scans(file: BinaryIO) -> int:
    """Count a JPEG's scans, as far as they matter."""
    before = file.tell()
    at = 0
    scans = 0
    while scans <= MOST_SCANS:
        file.seek(at)
        piece = file.read(PIECE)
        found = MARKER.search(piece)
        if found and found[0] != END_OF_IMAGE:
            scans += found[0] == START_OF_SCAN
            at += found.end()
            file.seek(at)
            at += int.from_bytes(file.read(2), "big")  # what is in a segment is no marker
        elif found or len(piece) < PIECE:
            break
        else:
            at += len(piece) - 1  # the last byte may be half of a marker
    file.seek(before)
    return scans


def _transparent(image: Image.Image) -> object:
    """Tell the transparent colour as it is after decoding: Pillow leaves it as a PNG has it."""
    colour = image.info.get("transparency")
    tile = next(iter(getattr(image, "tile", ())), None)
    stored = tile[3] if tile and image.format == "PNG" else None
    if stored in ("1", "L;2", "L;4") and isinstance(colour, int):
        return colour * {"1": 255, "L;2": 85, "L;4": 17}[stored]
    if stored == "RGB;16B" and isinstance(colour, tuple):
        return tuple(value >> 8 for value in colour)  # the low bits of the pixels are gone, too
    return colour


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def _grey_scale(image: Image.Image) -> tuple[float, float]:
    """Find the values of black and of white in one of Pillow's deep modes."""
    strips = (np.asarray(strip) for strip in Decoded(image)._cut())
    extremes = np.array([(strip.min(), strip.max()) for strip in strips], np.float64)
    black = extremes[:, 0].min()
    white = extremes[:, 1].max()
    if not np.isfinite([black, white]).all():
        raise ValueError("it holds NaN or infinity")
    mode = "I;16" if image.format in DEEP and image.mode == "I" else image.mode[:4]
    for known, most in SCALES[mode]:
        if white <= most:
            return (0, known) if black >= -DARKER * known else (float(black), float(white))
    return float(black), float(white)


def _to_8_bits(image: Image.Image, black: float, white: float) -> Image.Image:
    """Scale where Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.float64)
    scaled = (values - black) * (255 / (white - black or 1))  # 1: all are the same
    if "transparency" in image.info:  # the one grey through which the paper shows
        scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
