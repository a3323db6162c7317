import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from minires.errors import ImageError, MiniresError
from minires.preprocess import (
    IMAGENET_V1,
    IMAGENET_V2,
    Preset,
    find_images,
    load_image,
    normalize,
    preprocess,
    resize_and_crop,
)
from tests.comparing import Array, assert_close, assert_same
from tests.making_files import BAD_IMAGES, save_photograph
from tests.torch_oracle import load_torchvision

CAT = Path(__file__).parents[1] / "examples" / "images" / "cat.jpg"
CIFAR = Preset(32, 32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), enlarge=64)
# The crop is larger than the resized image by 3, 4, 5 and 6: all ways that halving can round.
PADDED = [Preset(resize, 56, IMAGENET_V2.mean, IMAGENET_V2.std) for resize in (53, 52, 51, 50)]
PRESETS = [IMAGENET_V1, IMAGENET_V2, CIFAR, *PADDED]
SIZES = [(1, 1), (2, 3), (33, 31), (224, 224), (232, 232), (225, 400), (501, 333), (640, 427),
         (54, 53), (57, 53), (1000, 1), (1, 1000)]  # fmt: skip


def random_image(width: int, height: int) -> Image.Image:
    values = np.random.RandomState(width * 1009 + height).randint(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


# Geometry, against a resize written out here


def triangle_weights(n_in: int, n_out: int) -> Array:
    """Antialiased bilinear: a triangle as wide as an output pixel is, or an input pixel."""
    scale = n_in / n_out
    width = max(scale, 1.0)
    centers = (np.arange(n_out) + 0.5) * scale
    distances = (np.arange(n_in) + 0.5 - centers[:, np.newaxis]) / width
    weights = np.maximum(1 - np.abs(distances), 0)
    return weights / weights.sum(axis=1, keepdims=True)  # (n_out, n_in)


def resized(x_u8: Array, width: int, height: int) -> Array:
    """Resize (H, W, 3) along W, then along H, and round up from half each time, as Pillow does."""
    wide = np.einsum("ow,hwc->hoc", triangle_weights(x_u8.shape[1], width), x_u8)
    weights = triangle_weights(x_u8.shape[0], height)
    return np.floor(np.einsum("oh,hwc->owc", weights, np.floor(wide + 0.5)) + 0.5)


def assert_within_a_level(actual: Array, expected: Array) -> None:
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(np.float64) - expected).max() <= 1


@pytest.mark.parametrize(
    ("size", "resize", "wanted_size", "left", "top"),
    [
        ((451, 300), 232, (348, 232), 62, 4),  # int(232 * 451 / 300 = 348.8); (348 - 224) / 2
        ((300, 451), 256, (256, 384), 16, 80),
        ((233, 232), 232, (233, 232), 4, 4),  # 4.5 rounds to even
        ((235, 232), 232, (235, 232), 6, 4),  # 5.5 rounds to even
        ((37, 50), 232, (232, 313), 4, 44),  # 44.5
        ((5, 3), 224, (373, 224), 74, 0),  # 74.5
    ],
)
def test_the_crop_lies_where_torchvision_cuts_it(
    size: tuple[int, int], resize: int, wanted_size: tuple[int, int], left: int, top: int
) -> None:
    image = random_image(*size)
    crop_u8 = resize_and_crop(image, Preset(resize, 224, IMAGENET_V2.mean, IMAGENET_V2.std))
    expected = resized(np.asarray(image), *wanted_size)
    assert_within_a_level(crop_u8, expected[top : top + 224, left : left + 224])
    elsewhere = np.roll(expected, 1, axis=0 if left == 0 else 1)[top : top + 224, left : left + 224]
    assert np.abs(crop_u8 - elsewhere).max() > 1  # a pixel further it is another


@pytest.mark.parametrize("size", [(40, 32), (32, 45), (500, 333)])
def test_the_crop_is_enlarged(size: tuple[int, int]) -> None:
    image = random_image(*size)
    crop_u8 = resize_and_crop(image, Preset(32, 32, CIFAR.mean, CIFAR.std))
    assert_within_a_level(resize_and_crop(image, CIFAR), resized(crop_u8, 64, 64))
    assert preprocess(image, CIFAR).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("preset", "before"), [*zip(PADDED, [1, 2, 2, 3], strict=True)])
def test_a_small_image_is_padded_with_black(preset: Preset, before: int) -> None:
    side = preset.resize
    crop_u8 = resize_and_crop(Image.new("RGB", (9, 9), "white"), preset)
    expected = np.zeros((56, 56, 3), np.uint8)
    expected[before : before + side, before : before + side] = 255
    assert_same(crop_u8, expected)


def test_normalize() -> None:
    crop_u8 = np.arange(256 * 3).reshape(16, 16, 3).astype(np.uint8)
    for preset in (IMAGENET_V2, CIFAR):
        expected = (crop_u8 / 255.0 - preset.mean) / preset.std  # float64
        assert_close(normalize(crop_u8, preset), expected.transpose(2, 0, 1), 1e-6)


# torchvision itself, and what it once answered


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.resize}-{preset.crop}")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equal_to_torchvision(size: tuple[int, int], preset: Preset) -> None:
    image = random_image(*size)
    assert_equal_to_torchvision(image, preset)


@pytest.mark.parametrize("preset", [IMAGENET_V1, IMAGENET_V2], ids=["V1", "V2"])
def test_photographs_equal_to_torchvision(preset: Preset, test_data: Path) -> None:
    paths = sorted((test_data / "images" / "imagenet_sample").glob("*.jpg"))[::10]
    assert len(paths) == 40
    for path in paths:
        assert_equal_to_torchvision(load_image(path), preset)


def assert_equal_to_torchvision(image: Image.Image, preset: Preset) -> None:
    transforms = load_torchvision().transforms
    functional, modes = transforms.functional, transforms.InterpolationMode
    square = functional.resize(image, [preset.resize], modes.BILINEAR, antialias=True)
    square = functional.center_crop(square, [preset.crop])
    if preset.enlarge:
        side = [preset.enlarge] * 2
        square = functional.resize(square, side, modes.BILINEAR, antialias=True)
        expected = functional.normalize(functional.to_tensor(square), preset.mean, preset.std)
    else:
        expected = transforms._presets.ImageClassification(
            crop_size=preset.crop, resize_size=preset.resize, mean=preset.mean, std=preset.std
        )(image)
    assert_same(resize_and_crop(image, preset), np.asarray(square))
    assert_close(preprocess(image, preset), expected.numpy()[np.newaxis], 1e-6)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_the_presets_are_torchvisions(weights: str) -> None:
    theirs = load_torchvision().models.ResNet50_Weights[weights].transforms()
    ours = {"IMAGENET1K_V1": IMAGENET_V1, "IMAGENET1K_V2": IMAGENET_V2}[weights]
    assert [[ours.resize], [ours.crop]] == [theirs.resize_size, theirs.crop_size]
    assert [[*ours.mean], [*ours.std]] == [theirs.mean, theirs.std]


GOLDEN = {  # width and height, resize
    ((1, 1), 256): 0x48081C57,
    ((1, 1), 232): 0x48081C57,
    ((33, 31), 256): 0xC0DAC2A8,
    ((33, 31), 232): 0xDCE9DCBD,
    ((225, 400), 256): 0x78176C9E,
    ((225, 400), 232): 0xA8A8B7D1,
    ((501, 333), 256): 0xB81064D9,
    ((501, 333), 232): 0xFA897F27,
    ((640, 427), 256): 0xB7ABB73D,
    ((640, 427), 232): 0x0BF58261,
    ((1000, 1), 256): 0xB5B0C9DA,
    ((1000, 1), 232): 0x55AEBF8D,
}


@pytest.mark.parametrize(("size", "resize"), GOLDEN)
def test_equal_to_what_torchvision_answered(size: tuple[int, int], resize: int) -> None:
    """CRC-32 of the uint8 crop by torchvision 0.28.0 with Pillow 13.0.0."""
    preset = {256: IMAGENET_V1, 232: IMAGENET_V2}[resize]
    crop_u8 = resize_and_crop(random_image(*size), preset)
    assert zlib.crc32(crop_u8.tobytes()) == GOLDEN[size, resize]


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


# Sources


def test_every_kind_of_source_is_the_same_image() -> None:
    expected = np.asarray(Image.open(CAT))
    with open(CAT, "rb") as file, Image.open(CAT) as opened:
        for source in (CAT, str(CAT), CAT.read_bytes(), file, opened, expected, expected.copy("F")):
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


def test_preprocess_makes_a_batch() -> None:
    images = [CAT, random_image(300, 200), np.zeros((20, 30), np.uint8)]
    x = preprocess(images, IMAGENET_V2)
    assert x.shape == (3, 3, 224, 224)
    assert x.flags.c_contiguous
    for image, expected in zip(images, x, strict=True):
        assert_same(preprocess(image, IMAGENET_V2), expected[np.newaxis])
        assert_same(preprocess((image,), IMAGENET_V2), expected[np.newaxis])


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


def test_a_bad_image_among_good_ones_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        preprocess([CAT, tmp_path / "bad.jpg", CAT], IMAGENET_V2)
    with pytest.raises(ImageError, match="empty"):
        preprocess([], IMAGENET_V2)


def test_a_transparent_grey_of_16_bits_becomes_white(tmp_path: Path) -> None:
    grey = np.array([[0, 1000], [40_000, 65_535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png", transparency=1000)
    red = np.asarray(load_image(tmp_path / "grey.png"))[..., 0]
    assert red.tolist() == [[0, 255], [round(40_000 / 257), 255]]


def test_a_preset_by_name_is_refused_in_one_sentence() -> None:
    with pytest.raises(MiniresError, match="wanted a Preset"):
        preprocess(np.zeros((8, 8, 3), np.uint8), "IMAGENET1K_V2")  # type: ignore[arg-type]


def test_a_folder_is_its_images_and_all_else_stays(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    full = tmp_path / "full.png"  # a folder for all that
    for folder in (empty, full, full / "folder.jpg"):
        folder.mkdir()
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt"):
        (full / name).write_bytes(b"")
    missing = tmp_path / "missing.png"
    found = find_images([missing, full, str(empty)])
    assert found == [missing, full / "a.JPG", full / "b.png", empty]
