"""Boxes of images: random erasing, cutout, and what is pasted into a box."""

import math

import numpy as np
import numpy.typing as npt

from train.config import ErasingConfig
from train.data.draws import Draws, Stream
from train.data.geometry import Pixels

Boxes = npt.NDArray[np.int64]
"""int64 ``[n, 4]``: top, left, bottom and right of each image's box, inside of the image."""

ERASING_ATTEMPTS = 10
MIN_ASPECT = 0.3
"""Height over width, and width over height, of an erased box (Zhong et al. 2020, section 3)."""


def paste(images: Pixels, others: Pixels | np.uint8, boxes: Boxes) -> None:
    """Replace what is in each image's box, in place.

    Args:
        images: are written to.
        others: of the same shape, or one value for all.
        boxes: where.
    """
    _, _, height, width = images.shape
    rows, columns = np.arange(height), np.arange(width)
    top, left, bottom, right = boxes.T[:, :, None]
    down = (rows >= top) & (rows < bottom)
    across = (columns >= left) & (columns < right)
    # A choice by bits takes a tenth of what np.where takes.
    mask = np.negative((down[:, :, None] & across[:, None, :]).astype(np.uint8))[:, None]
    images ^= (images ^ others) & mask


def centred_boxes(
    centres: npt.NDArray[np.float64], sides: npt.NDArray[np.int64], height: int, width: int
) -> Boxes:
    """Boxes whose middle is a pixel of the image; what would be outside of it is cut off.

    Args:
        centres: float64 ``[n, 2]``, in [0, 1): down and across.
        sides: int64 ``[n, 2]``, height and width before the cut.
        height: of the images.
        width: of the images.
    """
    size = np.array([height, width])
    starts = (centres * size).astype(np.int64) - sides // 2
    return np.concatenate([np.clip(starts, 0, size), np.clip(starts + sides, 0, size)], 1)


def cutout(images: Pixels, side: int, draws: Draws) -> None:
    """Blacken a square in each image, in place (DeVries and Taylor 2017, section 3.2).

    Its middle is uniform over the image's pixels, so that a part of it may be outside.
    """
    sides = np.full((len(images), 2), side)
    height, width = images.shape[2:]
    centres = draws.uniforms(Stream.CUTOUT, 2)
    paste(images, np.uint8(0), centred_boxes(centres, sides, height, width))


def erase(images: Pixels, config: ErasingConfig, draws: Draws) -> None:
    """Random erasing, in place (Zhong et al. 2020, algorithm 1)."""
    chosen = np.flatnonzero(draws.uniform(Stream.ERASING) < config.p)
    if len(chosen) == 0:
        return
    own = draws.of(draws.samples[chosen])
    erased = images[chosen]
    fill: Pixels | np.uint8 = np.uint8(0)
    if config.fill == "noise":
        fill = own.noise(Stream.ERASING_NOISE, erased[0].size).reshape(erased.shape)
    paste(erased, fill, erasing_boxes(config, own, *erased.shape[2:]))
    images[chosen] = erased


def erasing_boxes(config: ErasingConfig, draws: Draws, height: int, width: int) -> Boxes:
    """The box to erase in each image, empty where ten draws give none that fits.

    Its area is uniform between the bounds, the logarithm of its aspect ratio between those of
    ``MIN_ASPECT`` and its inverse, as in torchvision's ``RandomErasing``.
    """
    count = len(draws)
    numbers = draws.uniforms(Stream.ERASING, 2 + 2 * ERASING_ATTEMPTS, first=1)
    place, attempts = numbers[:, :2], numbers[:, 2:].reshape(count, ERASING_ATTEMPTS, 2)
    spread = config.max_area - config.min_area
    area = height * width * (config.min_area + attempts[..., 0] * spread)
    aspect = np.exp(math.log(MIN_ASPECT) * (1 - 2 * attempts[..., 1]))
    tall = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    wide = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (tall < height) & (wide < width)
    first = fits.argmax(1)
    each = np.arange(count)
    sides = np.stack([tall[each, first], wide[each, first]], 1) * fits.any(1, keepdims=True)
    starts = (place * (np.array([height, width]) - sides + 1)).astype(np.int64)
    return np.concatenate([starts, starts + sides], 1)
