"""Files for the tests that start where a user starts: weights, photographs, and broken ones."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file


def save_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[], Mapping[str, Any]]
) -> Path:
    """Save a state_dict where all tests of this session find it: it has 100 MB."""
    path = factory.getbasetemp() / name
    if not path.exists():
        save_file(dict(make()), path)
    return path


def random_image(width: int, height: int) -> Image.Image:
    """Make noise, the same for a size each time."""
    values = np.random.RandomState(width * 1009 + height).randint(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def save_photograph(path: Path, seed: int) -> None:
    """Save smooth colours, in the format that the path's suffix says."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(path)


def make_png(width: int, bits: int, colour: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """Write a PNG as its standard has it: kinds that Pillow reads, but does not write."""
    stride = -(-width * bits * {0: 1, 2: 3}[colour] // 8)
    lines = [b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride)]
    header = (
        width.to_bytes(4, "big") + len(lines).to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    )
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(b"".join(lines), 1)}
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in [*chunks.items(), (b"IEND", b"")]:
        if data or kind == b"IEND":
            check = zlib.crc32(kind + data).to_bytes(4, "big")
            png += len(data).to_bytes(4, "big") + kind + data + check
    return png


def save_truncated(path: Path) -> None:
    """Save the first half of a photograph."""
    save_photograph(path, 0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_bomb(path: Path) -> None:
    """Save a small PNG that says it has 2.5 gigapixels."""
    save_photograph(path, 0)
    png = bytearray(path.read_bytes())
    png[16:24] = 2 * (50_000).to_bytes(4, "big")  # width and height, in the header chunk
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    path.write_bytes(png)


BAD_IMAGES: dict[str, Callable[[Path], object]] = {
    "not an image": lambda path: path.write_text("a text"),
    "truncated": save_truncated,
    "empty": lambda path: path.write_bytes(b""),
    "bomb": save_bomb,
}
