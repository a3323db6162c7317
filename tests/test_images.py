"""Files, bytes and arrays to upright RGB: every mode, every way to be damaged, in little memory."""

import importlib.machinery
import io
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from minires import images
from minires.errors import ImageError
from minires.images import load_image
from minires.preprocess import IMAGENET_V2, preprocess
from tests.comparing import Array, assert_same
from tests.making_files import BAD_IMAGES, make_png, random_image, save_photograph

CAT = Path(__file__).parents[1] / "examples" / "images" / "cat.jpg"

# Modes: the left half is one colour, the right half another


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def from_values(dtype: str, left: float, right: float) -> Image.Image:
    return Image.fromarray(np.repeat([[left] * 4 + [right] * 4], 4, axis=0).astype(dtype))


def palette() -> Image.Image:
    image = halves("P", 1, 2)
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    return image


WHITE, RED, PINK = (255, 255, 255), (255, 0, 0), (255, 127, 127)
MODES: dict[str, tuple[Image.Image, str, dict[str, Any], Any, Any]] = {
    # name: image, suffix of the file or none, how to save it, left and right as RGB
    "1": (halves("1", 0, 1), "png", {}, 0, 255),
    "L": (halves("L", 50, 200), "png", {}, 50, 200),
    "L transparent": (halves("L", 50, 200), "png", {"transparency": 50}, 255, 200),
    "LA": (halves("LA", (9, 0), (0, 128)), "png", {}, 255, 127),
    "La": (halves("RGBA", (0, 0, 0, 0), (*RED, 128)).convert("RGBa"), "", {}, WHITE, PINK),
    "P": (palette(), "png", {}, (10, 20, 30), (200, 100, 50)),
    "P transparent": (palette(), "png", {"transparency": 2}, (10, 20, 30), WHITE),
    "P alpha": (palette(), "png", {"transparency": b"\xff\x00\xff"}, WHITE, (200, 100, 50)),
    "P gif": (palette(), "gif", {}, (10, 20, 30), (200, 100, 50)),
    "P gif transparent": (palette(), "gif", {"transparency": 1}, WHITE, (200, 100, 50)),
    "PA": (palette().convert("PA"), "", {}, (10, 20, 30), (200, 100, 50)),
    "RGB": (halves("RGB", RED, (1, 2, 3)), "png", {}, RED, (1, 2, 3)),
    "RGB transparent": (halves("RGB", RED, (1, 2, 3)), "png", {"transparency": RED},
                        WHITE, (1, 2, 3)),
    "RGBA": (halves("RGBA", (0, 0, 0, 0), (*RED, 128)), "png", {}, WHITE, PINK),
    "RGBA tiff": (halves("RGBA", (0, 0, 0, 0), (*RED, 255)), "tiff", {}, WHITE, RED),
    "CMYK": (halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "tiff", {}, RED, 0),
    "CMYK jpeg": (halves("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)), "jpg", {"quality": 100},
                  WHITE, 0),
    "YCbCr": (halves("YCbCr", (128, 128, 128), (255, 128, 128)), "", {}, 128, 255),
    "HSV": (halves("HSV", (0, 255, 255), (0, 0, 77)), "", {}, RED, 77),
    "I;16": (from_values("<u2", 257 * 7, 65535), "png", {}, 7, 255),
    "I;16 dark": (from_values("<u2", 0, 257), "tiff", {}, 0, 1),
    "I;16B": (from_values(">u2", 0x7F00, 0x8000), "", {}, 127, 128),
    "I": (from_values("<i4", 0, 32768), "tiff", {}, 0, 128),
    "I beyond": (from_values("<i4", -1000, 100_000), "tiff", {}, 0, 255),
    "F to 1": (from_values("<f4", 0.2, 1), "tiff", {}, 51, 255),
    "F to 255": (from_values("<f4", 3, 201.6), "tiff", {}, 3, 202),
    "F beyond": (from_values("<f4", -0.5, 1e30), "tiff", {}, 0, 255),
    "I to 255": (from_values("<i4", 1, 255), "tiff", {}, 1, 255),
    "I a little beyond": (from_values("<i4", -2, 258), "tiff", {}, 0, 255),
    "F a little beyond 1": (from_values("<f4", 0.2, 1.001), "tiff", {}, 51, 255),
    "F a little around": (from_values("<f4", -0.01, 1.2), "tiff", {}, 0, 255),
    "F a little beyond 255": (from_values("<f4", 51, 256.5), "tiff", {}, 51, 255),
    "F centred": (from_values("<f4", -0.5, 0.5), "tiff", {}, 0, 255),
    "F constant": (from_values("<f4", -3, -3), "tiff", {}, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name: str, tmp_path: Path) -> None:
    image, suffix, options, left, right = MODES[name]
    source: Path | Image.Image = image
    if suffix:
        source = tmp_path / f"image.{suffix}"
        image.save(source, **options)
    loaded = load_image(source)
    assert loaded.mode == "RGB"
    expected = np.zeros((4, 8, 3), np.uint8)
    expected[:, :4], expected[:, 4:] = left, right
    assert_same(np.asarray(loaded), expected)


def rgb(image: Image.Image) -> list[Any]:
    return np.asarray(image).reshape(-1, 3).tolist()


def test_sixteen_bits_that_are_dark_stay_dark() -> None:
    """A PNG or PGM says how many bits it has, in whatever mode this version of Pillow reads it."""
    dark = make_png(2, 16, 0, bytes([0, 0, 0, 255]))
    assert rgb(load_image(dark)) == [[0] * 3, [1] * 3]
    assert rgb(load_image(b"P5 2 1 65535\n" + bytes([0, 0, 0, 255]))) == [[0] * 3, [1] * 3]


@pytest.mark.parametrize(
    ("bits", "colour", "row", "transparent", "expected"),
    [
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (2, 0, b"\x10", b"\0\1", [0, 255]),
        (2, 0, b"\x10", b"\0\2", [0, 85]),
        (4, 0, b"\x72", b"\0\7", [255, 34]),
        (8, 0, b"\x07\x02", b"\0\7", [255, 2]),
        (16, 0, b"\x03\xe8\x80\x80", b"\x03\xe8", [255, 128]),
        (8, 2, b"\x07\x07\x07\2\2\2", b"\0\7" * 3, [255, 2]),
        (16, 2, b"\x07\x01" * 3 + b"\2\0" * 3, b"\x07\x01" * 3, [255, 2]),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_white(
    bits: int, colour: int, row: bytes, transparent: bytes, expected: list[int]
) -> None:
    """It is told in the file's own bits, whatever Pillow has made of the pixels."""
    png = make_png(2, bits, colour, row, transparent)
    assert rgb(load_image(png)) == [[value] * 3 for value in expected]


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert_same(np.asarray(load_image(tmp_path / "a.gif")), np.asarray(frames[0]))


UPRIGHT: dict[int, Callable[[Array], Array]] = {  # what to do with the rows as they are stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_orientation_is_honoured(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = random_image(24, 16)
    image.save(tmp_path / f"turned.{suffix}", exif=exif)
    image.save(tmp_path / f"plain.{suffix}")
    expected = UPRIGHT[orientation](np.asarray(Image.open(tmp_path / f"plain.{suffix}")))
    upright = load_image(tmp_path / f"turned.{suffix}")
    assert_same(np.asarray(upright), expected)
    assert_same(np.asarray(load_image(upright)), expected)  # and is not turned twice


@pytest.mark.parametrize(
    "exif", [b"garbage!", b"MM\0*\0\0\0\x08", b"MM\0*\0\0\0\x08\xff\xff\1\x12"]
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_exif_data_does_no_harm(suffix: str, exif: bytes, tmp_path: Path) -> None:
    random_image(9, 7).save(tmp_path / f"image.{suffix}", exif=b"Exif\0\0" + exif)
    assert load_image(tmp_path / f"image.{suffix}").size == (9, 7)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "I;16", "F"])
def test_strips_make_up_the_image(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done to a strip, on the way to the network too, is what was done to the whole."""
    if mode in ("I;16", "F"):
        values = np.random.RandomState(0).randint(0, 65536, (37, 50))
        image = Image.fromarray(values.astype({"I;16": "<u2", "F": "<f4"}[mode]))
    else:
        image = random_image(50, 37).convert(mode)
    image.getexif()[0x0112] = orientation
    monkeypatch.setattr(images, "STRIP", 1)  # a row by itself
    in_rows = load_image(image), preprocess(image, IMAGENET_V2)
    monkeypatch.setattr(images, "STRIP", 10**6)
    whole = load_image(image)
    assert in_rows[0] == whole
    assert_same(in_rows[1], preprocess(whole, IMAGENET_V2))


# Memory

MEASURING = """
import io, sys
import numpy as np
from PIL import Image
from minires.preprocess import IMAGENET_V2, preprocess

def peak() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

preprocess(np.zeros((9, 9, 3), np.uint8), IMAGENET_V2)
before = peak()
preprocess(sys.argv[1], IMAGENET_V2)
print(peak() - before)
"""
SIDE = 3500
LARGE = {  # bytes that Pillow's own mode has for a pixel, and how to write such a file
    "grey of 16 bits": (2, lambda: make_png(SIDE, 16, 0, bytes(2 * SIDE * SIDE), b"\0\1")),
    "transparent RGB": (4, lambda: make_png(SIDE, 8, 2, bytes(3 * SIDE * SIDE), b"\0\1" * 3)),
    "turned": (4, lambda: saved(Image.new("RGB", (SIDE, SIDE)), "jpeg", orientation=6)),
    "float": (4, lambda: saved(Image.new("F", (SIDE, SIDE)), "tiff", compression="tiff_deflate")),
}


def saved(image: Image.Image, kind: str, orientation: int = 1, **options: Any) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a peak alone")
@pytest.mark.parametrize("kind", LARGE)
def test_no_more_is_held_than_pillow_has_decoded(kind: str, tmp_path: Path) -> None:
    """And 50 MB; a second copy in RGB would take that already."""
    bytes_of_pixel, make = LARGE[kind]
    (tmp_path / "large").write_bytes(make())
    command = [sys.executable, "-c", MEASURING, str(tmp_path / "large")]
    process = subprocess.run(command, text=True, capture_output=True, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) < bytes_of_pixel * SIDE**2 + 50e6 < (bytes_of_pixel + 4.1) * SIDE**2


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    assert "not enough memory" in complaint(random_image(9, 9))


def jpeg_with_scans(count: int, between: bytes = b"", after: bytes = b"") -> bytes:
    """Repeat the last scan of a JPEG, with something before each, and after the image's end."""
    file = io.BytesIO()
    random_image(40, 30).save(file, "JPEG", progressive=True, comment=b"\xff\xda" * 200)
    whole = file.getvalue().removesuffix(b"\xff\xd9")
    last = whole.rindex(b"\xff\xda")
    header = whole.index(b"\xff\xfe") + 404  # behind the comment
    more = count - whole.count(b"\xff\xda", header)
    return whole[:last] + (between + whole[last:]) * (more + 1) + b"\xff\xd9" + after


END_IN_A_COMMENT = b"\xff\xfe\x00\x04\xff\xd9"


@pytest.mark.parametrize("between", [b"", b"\xff" * 3, b"\xff\xd0", END_IN_A_COMMENT])
def test_a_jpeg_with_very_many_scans_is_refused(
    between: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes as long as one, but a few bytes."""
    most = jpeg_with_scans(images.MOST_SCANS, between, after=b"\xff\xda" * 200)
    more = jpeg_with_scans(images.MOST_SCANS + 1, between)
    for piece in images.PIECE, 2, 3, 7:  # of which each begins somewhere in a marker
        monkeypatch.setattr(images, "PIECE", piece)
        assert load_image(most).size == (40, 30)
        assert "refused, because it has more than 100 scans" in complaint(more)
    opened = Image.open(io.BytesIO(more))
    assert "scans" in complaint(opened)
    opened.load()
    assert load_image(opened).size == (40, 30)  # the time has been spent already


# Sources


def test_every_kind_of_source_is_the_same_image() -> None:
    expected = np.asarray(Image.open(CAT))
    with open(CAT, "rb") as file, Image.open(CAT) as opened:
        data = CAT.read_bytes()
        for source in (
            CAT,
            str(CAT),
            np.str_(CAT),  # as out of an array of names
            data,
            bytearray(data),
            memoryview(data),
            file,
            opened,
            expected,
            expected.copy("F"),
        ):
            assert_same(np.asarray(load_image(source)), expected)
        assert not file.closed
        opened.seek(0)  # fails where it was closed
    grey = expected[:, :, 0]
    assert_same(np.asarray(load_image(grey)), np.stack([grey] * 3, axis=2))


def test_what_was_given_is_not_changed() -> None:
    image = halves("RGBA", (0, 0, 0, 0), (*RED, 128))
    image.getexif()[0x0112] = 6
    before = image.copy()
    assert load_image(image).size == (4, 8)
    assert image == before
    rgb = random_image(3, 3)
    load_image(rgb).paste(0, (0, 0, 3, 3))
    assert rgb == random_image(3, 3)


# Formats


def test_each_format_has_the_suffixes_that_pillow_knows() -> None:
    known = Image.registered_extensions()
    formats = {kind for name, kind in known.items() if kind in Image.OPEN} & set(images.FORMATS)
    assert {"JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "ICO"} <= formats
    for kind in formats:
        theirs = {suffix for suffix, of in known.items() if of == kind}
        assert theirs <= set(images.FORMATS[kind])


def test_no_program_is_started_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript read EPS: what comes from outside would run in it."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started a program"))
    eps = saved(random_image(8, 8), "eps")
    assert eps.startswith(b"%!PS")
    assert "not an image of a kind that is read: JPEG, PNG" in complaint(eps)


def test_other_formats_are_not_opened() -> None:
    Image.init()
    others = sorted((Image.OPEN.keys() & Image.SAVE.keys()) - images.FORMATS.keys())
    refused = 0
    for kind in others:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are deprecated
            try:
                data = saved(random_image(32, 32), kind)
            except (OSError, ValueError, KeyError):  # not in RGB
                continue
        assert "not an image of a kind that is read" in complaint(data)
        refused += 1
    assert refused >= 3


@pytest.mark.parametrize(("brand", "kind"), [("heic", "HEIC"), ("mif1", "HEIC"), ("avif", "AVIF")])
def test_a_format_without_its_plugin_is_named(
    brand: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "FORMATS", {"JPEG": (), "PNG": ()})
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + bytes(60))
    with open(path, "rb") as file:
        for source in (path, path.read_bytes(), file):
            assert f"a photograph in {kind}" in complaint(source)


def test_a_brand_may_stand_behind_one_that_nobody_knows() -> None:
    """As in files whose own brand is new: they tell what else they can be read as."""
    assert "a photograph in HEIC" in complaint(b"\0\0\0\x18ftypnew1\0\0\0\0heic" + bytes(60))
    # What lies behind the box is no brand any more.
    assert "not an image" in complaint(b"\0\0\0\x10ftypnew1\0\0\0\0heic" + bytes(60))


@pytest.mark.parametrize("as_file", [False, True])
def test_an_installed_plug_in_is_found_without_being_asked_for(
    as_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up one, which turns any such file into one red pixel."""
    plug_in = types.ModuleType("pillow_heif")
    plug_in.__spec__ = importlib.machinery.ModuleSpec("pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)

    def register() -> None:
        Image.OPEN["HEIF"] = (lambda *_: Image.new("RGB", (1, 1), "red"), None)

    plug_in.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", plug_in)
    heic = b"\0\0\0\x18ftypheic" + bytes(60)
    assert load_image(io.BytesIO(heic) if as_file else heic).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["http://a.org/b.jpg", "HTTPS://a.org/b.jpg", "ftp://a/b.jpg"])
def test_an_address_is_refused_as_what_it_is(name: str) -> None:
    told = complaint(name)
    assert told.startswith(f"{name}: an address on the web")
    assert f"curl -O {name}" in told
    assert complaint(Path(name)) == told, "though a path has lost a slash"


# Errors


def complaint(source: Any) -> str:
    """Load what cannot be loaded; the one sentence that tells why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError) as raised:
            load_image(source)
    assert caught == []
    text = str(raised.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    BAD_IMAGES[kind](path)
    state = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, [*warnings.filters]
    reason = complaint(path).removeprefix(f"{path}: ")
    assert not reason.startswith(str(path))
    assert complaint(path.read_bytes()) == f"the bytes given: {reason}"
    with open(path, "rb") as file:
        assert complaint(file) == f"{path}: {reason}"
    assert state == (
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, [*warnings.filters]
    )  # fmt: skip


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "gone.jpg").startswith(f"{tmp_path / 'gone.jpg'}: cannot be opened")
    assert complaint(str(tmp_path)).startswith(f"{tmp_path}: cannot be opened")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_no_truncated_file_is_taken_for_whole(suffix: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    save_photograph(whole, 0)
    data, expected = whole.read_bytes(), np.asarray(load_image(whole))
    for length in np.linspace(0, len(data) - 50, 40, dtype=int):
        cut.write_bytes(data[:length])
        assert "cut" in complaint(cut)
    for length in range(len(data) - 50, len(data)):  # at the very end no pixel may be missing
        try:
            image = load_image(data[:length])
        except ImageError:
            continue
        assert_same(np.asarray(image), expected)


@pytest.mark.parametrize("limit", [4799, 2399])  # Pillow warns of the first, and refuses the second
def test_a_decompression_bomb_is_refused(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photograph(tmp_path / "bomb.png", 0)  # 80 x 60 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4800)
    load_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "4800 pixels" in complaint(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.int8), "int8"),
        (np.zeros((2, 4, 4, 3), np.uint8), "(2, 4, 4, 3)"),
        (np.zeros((3, 4, 4), np.uint8), "(3, 4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros(4, np.uint8), "(4,)"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
        (Image.new("RGBA", (0, 0)), "0 x 0 pixels"),
        (Image.new("L", (1, 1001)), "1 x 1001 pixels"),
        (from_values("<f4", np.nan, 1), "NaN"),
        (from_values("<f4", 0, np.inf), "infinity"),
        (None, "NoneType"),
        (7, "int"),
        (io.StringIO("text"), "StringIO"),
    ],
)
def test_what_is_no_image_is_told(source: Any, named: str) -> None:
    assert named in complaint(source)


def test_a_transparent_grey_of_16_bits_becomes_white(tmp_path: Path) -> None:
    grey = np.array([[0, 1000], [40_000, 65_535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png", transparency=1000)
    red = np.asarray(load_image(tmp_path / "grey.png"))[..., 0]
    assert red.tolist() == [[0, 255], [round(40_000 / 257), 255]]
