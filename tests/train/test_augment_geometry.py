"""Flips, shifts and affine maps, against torchvision, numpy and plain loops."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from train.data.draws import Draws
from train.data.geometry import Padding, Pixels, flip, mirrored, shifts, translate, warp


def noise(count: int, channels: int = 3, height: int = 12, width: int = 10) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), np.uint8)


def draws(count: int, epoch: int = 0) -> Draws:
    return Draws(3, epoch, np.arange(count, dtype=np.int64))


def test_flip_mirrors_the_chosen_half() -> None:
    chosen = mirrored(True, draws(1000))
    assert 400 < int(chosen.sum()) < 600
    assert not np.array_equal(chosen, mirrored(True, draws(1000, epoch=1)))
    images = noise(1000)
    flipped = images.copy()
    flip(flipped, chosen)
    for image, before, turned in zip(flipped, images, chosen, strict=True):
        assert np.array_equal(image, before[..., ::-1] if turned else before)


def test_alternating_flip_shows_both_sides_in_two_epochs() -> None:
    first = mirrored("alternating", draws(1000))
    assert 400 < int(first.sum()) < 600
    for epoch in range(1, 6):
        expected = first if epoch % 2 == 0 else ~first
        assert np.array_equal(mirrored("alternating", draws(1000, epoch)), expected)


def test_shifts_are_uniform_in_both_directions() -> None:
    offsets, counts = np.unique(shifts(2, draws(10_000)), axis=0, return_counts=True)
    every = [[down, right] for down in range(-2, 3) for right in range(-2, 3)]
    assert offsets.tolist() == every
    # Each 400 times: six standard deviations are 118.
    assert np.abs(counts - 400).max() < 118


@pytest.mark.parametrize("padding", ["black", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_translate_is_pad_and_crop(padding: Padding, channels: int) -> None:
    images, limit = noise(200, channels), 3
    offsets = shifts(limit, draws(200))
    shifted = translate(images, offsets, limit, padding)
    border = ((0, 0), (limit, limit), (limit, limit))
    for image, (down, right), ours in zip(images, offsets, shifted, strict=True):
        padded = np.pad(image, border, mode="constant" if padding == "black" else "reflect")
        top, left = limit - down, limit - right
        assert np.array_equal(ours, padded[:, top : top + 12, left : left + 10])


def test_a_positive_shift_goes_down_and_right() -> None:
    image = np.zeros((1, 1, 5, 6), np.uint8)
    image[0, 0, 1, 2] = 200
    shifted = translate(image, np.array([[2, 1]]), 2, "black")
    assert np.argwhere(shifted == 200).tolist() == [[0, 0, 3, 3]]


def shear(x: float, y: float) -> list[list[float]]:
    return [[1.0, x, 0.0], [y, 1.0, 0.0]]


@pytest.mark.parametrize(("x", "y"), [(0.3, 0.0), (-0.17, 0.0), (0.0, 0.22), (0.0, -0.3)])
def test_shears_are_torchvisions(x: float, y: float) -> None:
    images = noise(8, 3, 32, 28)
    ours = warp(images, np.array([shear(x, y)] * 8, np.float32))
    degrees = [math.degrees(math.atan(value)) for value in (-x, -y)]
    theirs = tv.affine(
        torch.from_numpy(images),
        angle=0.0,
        translate=[0, 0],
        scale=1.0,
        shear=[-degrees[0], -degrees[1]],
        center=[0, 0],
    )
    # Where the middle of a pixel falls between two, rounding decides.
    assert np.mean(ours == theirs.numpy()) > 0.99


def test_each_image_has_its_own_map_as_a_loop_has() -> None:
    images = noise(20, 1, 7, 9)
    rng = np.random.default_rng(1)
    matrices = (np.eye(2, 3) + rng.uniform(-0.4, 0.4, (20, 2, 3))).astype(np.float32)
    expected = np.zeros_like(images)
    for number in range(20):
        for row in range(7):
            for column in range(9):
                place = np.array([column + 0.5, row + 0.5, 1])
                x, y = np.floor(matrices[number].astype(float) @ place).astype(int)
                if 0 <= x < 9 and 0 <= y < 7:
                    expected[number, 0, row, column] = images[number, 0, y, x]
    assert np.array_equal(warp(images, matrices), expected)
