"""Colours and RandAugment, against Pillow and torchvision."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as tv

from train.config import ColorConfig, RandAugmentConfig
from train.data import color
from train.data.draws import Draws
from train.data.geometry import Pixels
from train.data.rand_augment import OPERATIONS, apply, rand_augment

FACTORS = np.array([0.0, 0.1, 0.55, 1.0, 1.3, 1.9])


def pictures(channels: int = 3, height: int = 24, width: int = 20) -> Pixels:
    """Six images: noise, noise of few values, a gradient, one value, dark noise, two values."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, channels, height, width), np.uint8)
    images[1] = images[1] // 37 * 37
    images[2] = np.linspace(20, 180, width).astype(np.uint8)
    images[3] = 77
    images[4] //= 5
    images[5] = np.where(images[5] < 3, 250, 9)
    return images


def as_pillow(image: Pixels) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def from_pillow(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def largest_difference(ours: Pixels, theirs: Pixels) -> int:
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "enhance"),
    [
        (color.brightness, ImageEnhance.Brightness),
        (color.saturation, ImageEnhance.Color),
        (color.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_changes_are_pillows(
    ours: Callable[[Pixels, color.Factors], Pixels],
    enhance: Callable[[Image.Image], ImageEnhance.Brightness],
    channels: int,
) -> None:
    images = pictures(channels)
    for factors in (FACTORS, FACTORS[::-1]):
        changed = ours(images, factors)
        for image, factor, after in zip(images, factors.tolist(), changed, strict=True):
            expected = from_pillow(enhance(as_pillow(image)).enhance(factor))
            assert np.array_equal(after, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (color.brightness, tv.adjust_brightness, 1),
        (color.contrast, tv.adjust_contrast, 2),
        (color.saturation, tv.adjust_saturation, 2),
        (color.sharpness, tv.adjust_sharpness, 1),
    ],
)
def test_changes_are_torchvisions_but_for_how_grey_is_rounded(
    ours: Callable[[Pixels, color.Factors], Pixels],
    theirs: Callable[[torch.Tensor, float], torch.Tensor],
    tolerance: int,
    channels: int,
) -> None:
    images = pictures(channels)
    for factors in (FACTORS, FACTORS[::-1]):
        changed = ours(images, factors)
        for image, factor, after in zip(images, factors.tolist(), changed, strict=True):
            expected = theirs(torch.from_numpy(image), factor).numpy()
            assert largest_difference(after, expected) <= tolerance


def test_hue_is_torchvisions() -> None:
    images = pictures()
    turns = np.array([-0.5, -0.21, 0.0, 0.1, 0.37, 0.5])
    changed = color.hue(images, turns)
    for image, turn, after in zip(images, turns.tolist(), changed, strict=True):
        expected = tv.adjust_hue(torch.from_numpy(image), turn).numpy()
        assert largest_difference(after, expected) <= 1
    assert np.array_equal(color.hue(images, np.zeros(6)), images)
    red = np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1)
    assert color.hue(red, np.array([1 / 3])).ravel().tolist() == [0, 255, 0]
    assert np.array_equal(color.hue(pictures(1), turns), pictures(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_histograms_are_pillows(channels: int) -> None:
    images = pictures(channels)
    equal, stretched = color.equalize(images), color.autocontrast(images)
    for image, even, wide in zip(images, equal, stretched, strict=True):
        assert np.array_equal(even, from_pillow(ImageOps.equalize(as_pillow(image))))
        assert np.array_equal(even, tv.equalize(torch.from_numpy(image)).numpy())
        assert largest_difference(wide, from_pillow(ImageOps.autocontrast(as_pillow(image)))) <= 1
        assert largest_difference(wide, tv.autocontrast(torch.from_numpy(image)).numpy()) <= 1


def test_bits_and_thresholds_are_torchvisions() -> None:
    images = pictures()
    tensor = torch.from_numpy(images)
    for bits in (4, 7, 8):
        assert np.array_equal(color.posterize(images, bits), tv.posterize(tensor, bits).numpy())
    for threshold in (0.0, 178.5, 255.0):
        expected = tv.solarize(tensor, threshold).numpy()
        assert np.array_equal(color.solarize(images, threshold), expected)


def test_jitter_draws_each_factor_from_its_range() -> None:
    # Bright enough to tell factors apart, dark enough that none is cut off.
    images = np.full((2000, 3, 1, 1), 120, np.uint8)
    draws = Draws(0, 0, np.arange(2000, dtype=np.int64))
    levels = color.jitter(images, ColorConfig(brightness=0.5), draws)[:, 0, 0, 0]
    assert levels.min() == 60
    assert levels.max() == 179
    counts, _ = np.histogram(levels, bins=10, range=(60, 180))
    # Each 200 times: six standard deviations are 81.
    assert np.abs(counts - 200).max() < 81
    # Contrast of an image of one value, and saturation of a grey one, change nothing.
    same = color.jitter(images, ColorConfig(contrast=1, saturation=1, hue=0.5), draws)
    assert np.array_equal(same, images)


SPACE = RandAugment._AUGMENTATION_SPACE
THEIRS = {
    "identity": "Identity",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "rotate": "Rotate",
    "solarize": "Solarize",
    "color": "Color",
    "posterize": "Posterize",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [3, 9, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str, magnitude: int, channels: int) -> None:
    """At each magnitude, in both directions; geometry but for pixels between two others."""
    images = pictures(channels, 33, 28)
    signs = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    ours = images.copy()
    apply(ours, np.full(6, OPERATIONS.index(name)), signs, magnitude / 30)
    transform = RandAugment()
    levels, signed = SPACE[THEIRS[name]]
    values = levels(31, 33, 28)
    level = 0.0 if values is None else float(values[magnitude])
    for image, sign, after in zip(images, signs.tolist(), ours, strict=True):
        expected = transform._apply_image_or_video_transform(
            torch.from_numpy(image), THEIRS[name], level * sign if signed else level, "nearest", {}
        ).numpy()
        if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            assert np.mean(after == expected) > 0.985
        else:
            assert largest_difference(after, expected) <= 2


def test_the_operations_are_the_papers_fourteen() -> None:
    assert set(THEIRS) == set(OPERATIONS)
    assert set(THEIRS.values()) == set(SPACE)


def test_every_image_gets_its_own_operations() -> None:
    images = np.repeat(pictures(3, 16, 16)[:1], 3000, 0)
    rand_augment(images, RandAugmentConfig(ops=1), Draws(0, 0, np.arange(3000, dtype=np.int64)))
    kinds = Counter(bytes(image) for image in images)
    # Nine go either way; of the others, what noise is left as it is by counts once.
    expected = set()
    for number in range(len(OPERATIONS)):
        for sign in (-1.0, 1.0):
            image = pictures(3, 16, 16)[:1]
            apply(image, np.array([number]), np.array([sign]), 0.3)
            expected.add(bytes(image))
    assert len(expected) >= 9 * 2 + 4
    assert set(kinds) == expected
    # A direction comes 107 times.
    assert min(kinds.values()) > 60


def test_more_operations_go_on_from_the_first() -> None:
    draws = Draws(0, 0, np.arange(6, dtype=np.int64))
    once, twice = pictures(), pictures()
    rand_augment(once, RandAugmentConfig(ops=1), draws)
    rand_augment(twice, RandAugmentConfig(ops=2), draws)
    assert not np.array_equal(once, twice)
    still = pictures()
    rand_augment(still[3:4], RandAugmentConfig(magnitude=0), draws.of(np.array([3])))
    assert np.array_equal(still[3], pictures()[3]) or bool((still[3] == 255 - 77).all())
