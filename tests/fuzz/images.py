"""Damaged images of all formats: each is read, or refused in one sentence.

``python -m tests.fuzz.images FIRST COUNT`` reads so many of them in a process with little memory
and a time limit for each. `make` makes an input of its number, and `read` tells what became of it.
"""

import functools
import io
import resource
import signal
import subprocess
import sys
import warnings
import zlib
from collections import Counter

import numpy as np
from PIL import Image

from minires.errors import ImageError
from minires.images import FORMATS
from minires.preprocess import Preset, preprocess

MEMORY = 4 * 2**30  # bytes of addresses; Python and its libraries take one of them
SECONDS = 60  # for one input
AT_ONCE = 1000  # inputs of a process
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


def make(number: int) -> bytes:
    """Damage one of the files, the same way for a number each time."""
    random = np.random.RandomState(number)
    files = originals()
    kind, original = files[random.randint(len(files))]
    data = bytearray(original)
    for _ in range(random.randint(1, 6)):
        what = random.randint(6)
        # Half of all places lie in the header, where sizes are, and kinds, and offsets.
        at = random.randint(min(len(data), 200) if random.randint(2) else len(data))
        if what == 0:
            data[at] ^= 1 << random.randint(8)
        elif what in (1, 2):
            size, order = 2 ** random.randint(3), ("big", "little")[random.randint(2)]
            value = ODD[random.randint(len(ODD))] % 256**size
            data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
        elif what == 3 and len(data) > 20:
            del data[at : at + random.randint(1, 20)]
        elif what == 4:
            data[at:at] = data[at : at + random.randint(1, 200)]
        elif random.randint(4) == 0:
            other = files[random.randint(len(files))][1]
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


def read(data: bytes) -> str:
    """Read an image as a user does; whatever is neither an answer nor one sentence is raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            x = preprocess(data, PRESET)
    except ImageError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error!r}") from error
        return "refused"
    if x.shape != (1, 3, 32, 32) or not np.isfinite(x).all():
        raise AssertionError(f"{x.shape} of {x.dtype}, from {x.min()} to {x.max()}")
    return "read"


def read_all(first: int, count: int) -> Counter[str]:
    """Read damaged images in this process, which a crash or a limit may end."""
    originals()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    done: Counter[str] = Counter()
    for number in range(first, first + count):
        print(number, flush=True)
        data = make(number)
        signal.alarm(SECONDS)
        done[read(data)] += 1
        signal.alarm(0)
    return done


def main(first: int, count: int) -> int:
    """Read damaged images in processes of their own, and name those that are not mended yet."""
    done: Counter[str] = Counter()
    end, failed = first + count, 0
    while first < end:
        some = min(AT_ONCE, end - first)
        command = [sys.executable, "-m", "tests.fuzz.images", "inside", str(first), str(some)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        *numbers, last = process.stdout.splitlines() or ["-1"]
        if process.returncode == 0:
            done.update(dict(zip(("read", "refused"), map(int, last.split()), strict=True)))
            first += some
        else:
            failed += 1
            reason = (process.stderr.splitlines() or [""])[-1]
            print(f"{last}: status {process.returncode}, {reason}", flush=True)
            done["not told which"] += len(numbers)
            first = max(int(last), first) + 1
        print(dict(done), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1] == "inside":
        seen = read_all(*map(int, sys.argv[2:]))
        print(seen["read"], seen["refused"])
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
