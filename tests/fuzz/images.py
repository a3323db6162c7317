"""Mutated images of all formats: each is read, or refused in one sentence."""

import functools
import io
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from minires.images import FORMATS
from minires.preprocess import Preset, preprocess
from tests.fuzz.target import Target

PRESET = Preset(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}],
    "PNG": [{}, {"bits": 4}, {"transparency": 3}],
    "GIF": [{}, {"save_all": True, "append_images": [Image.new("L", (19, 23), 9)]}],
    "WEBP": [{}, {"lossless": True}],
    "TIFF": [{"compression": c} for c in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
    "JPEG2000": [{}, {"tile_size": (16, 16)}],
    "ICO": [{}, {"bitmap_format": "bmp"}],
}
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F")
ODD = [0, 1, 2, 7, 127, 128, 255, 256, 9459, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1]


@functools.cache
def originals() -> list[tuple[str, bytes]]:
    """Save a small image in every format, mode and way that Pillow can write."""
    files = []
    values = np.random.RandomState(0).randint(0, 256, (33, 47, 4)).astype(np.uint8)
    for mode in MODES:
        grey = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
        deep = mode in ("I;16", "I", "F")
        rgba = Image.fromarray(values).convert("RGBA")
        image = grey if mode == "I;16" else (grey if deep else rgba.convert("RGB")).convert(mode)
        image.getexif()[0x0112] = 6
        for kind in FORMATS:
            for options in OPTIONS.get(kind, [{}]):
                file = io.BytesIO()
                try:
                    image.save(file, kind, exif=image.getexif(), **options)
                except (OSError, ValueError, KeyError, TypeError, SystemError):
                    continue  # this format has no such mode
                files.append((kind, file.getvalue()))
    return files


def make(random: Random, scratch: Path) -> bytes:
    """Damage one of the files."""
    files = originals()
    kind, original = random.choice(files)
    data = bytearray(original)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        what = random.randrange(6)
        # Half of all places lie in the header, where sizes are, and kinds, and offsets.
        at = random.randrange(min(len(data), 200) if random.randrange(2) else len(data))
        if what == 0:
            data[at] ^= 1 << random.randrange(8)
        elif what in (1, 2):
            size = random.choice([1, 2, 4])
            value = random.choice(ODD) % 256**size
            order = "big" if random.randrange(2) else "little"
            data[at : at + size] = value.to_bytes(size, order)
        elif what == 3 and len(data) > 20:
            del data[at : at + random.randrange(1, 20)]
        elif what == 4:
            data[at:at] = data[at : at + random.randrange(1, 200)]
        elif random.randrange(4) == 0:
            other = random.choice(files)[1]
            data[at:] = other[min(at, len(other) - 1) :]
    return _with_checksums(data) if kind == "PNG" else bytes(data)


def _with_checksums(png: bytearray) -> bytes:
    """Make the chunks' checksums right, so that what is in them is looked at."""
    at = 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        if end + 4 > len(png):
            break
        png[end : end + 4] = zlib.crc32(png[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(png)


def read(path: Path) -> None:
    """Read an image as a user does."""
    x = preprocess(path, PRESET)
    assert x.shape == (1, 3, 32, 32), x.shape
    assert np.isfinite(x).all(), f"{x.min()} to {x.max()}"


TARGETS = [Target("image", make, read)]
