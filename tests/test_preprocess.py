import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minires.errors import ImageError, MiniresError
from minires.images import load_image
from minires.preprocess import (
    IMAGENET_V1,
    IMAGENET_V2,
    Preset,
    normalize,
    preprocess,
    resize_and_crop,
)
from tests.comparing import Array, assert_close, assert_same
from tests.making_files import random_image
from tests.torch_oracle import load_torchvision

CAT = Path(__file__).parents[1] / "examples" / "images" / "cat.jpg"
CIFAR = Preset(32, 32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), enlarge=64)
# The crop is larger than the resized image by 3, 4, 5 and 6: all ways that halving can round.
PADDED = [Preset(resize, 56, IMAGENET_V2.mean, IMAGENET_V2.std) for resize in (53, 52, 51, 50)]
PRESETS = [IMAGENET_V1, IMAGENET_V2, CIFAR, *PADDED]
SIZES = [(1, 1), (2, 3), (33, 31), (224, 224), (232, 232), (225, 400), (501, 333), (640, 427),
         (54, 53), (57, 53), (1000, 1), (1, 1000)]  # fmt: skip


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


# Batches


def test_preprocess_makes_a_batch() -> None:
    images = [CAT, random_image(300, 200), np.zeros((20, 30), np.uint8)]
    x = preprocess(images, IMAGENET_V2)
    assert x.shape == (3, 3, 224, 224)
    assert x.flags.c_contiguous
    for image, expected in zip(images, x, strict=True):
        assert_same(preprocess(image, IMAGENET_V2), expected[np.newaxis])
        assert_same(preprocess((image,), IMAGENET_V2), expected[np.newaxis])


def test_a_bad_image_among_good_ones_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        preprocess([CAT, tmp_path / "bad.jpg", CAT], IMAGENET_V2)
    with pytest.raises(ImageError, match="empty"):
        preprocess([], IMAGENET_V2)


def test_a_preset_by_name_is_refused_in_one_sentence() -> None:
    with pytest.raises(MiniresError, match="wanted a Preset"):
        preprocess(np.zeros((8, 8, 3), np.uint8), "IMAGENET1K_V2")  # type: ignore[arg-type]
