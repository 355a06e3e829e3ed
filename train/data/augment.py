"""Augmentation: of uint8 batches, vectorised, and of single images while they are decoded.

What happens to an image is a function of (seed, epoch, sample) alone: not of the batch it falls
into, the worker that trains on it, or what was drawn before. So a resumed run, or one on another
number of workers, sees the same images.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.images import Box, Crop
from train.config import AugmentConfig

_FLIP, _SHIFT_Y, _SHIFT_X, _CROP = range(4)
CROP_ATTEMPTS = 10
MAX_ASPECT = 4 / 3


def uniform(
    seed: int, epoch: int, samples: npt.NDArray[np.int64], stream: int
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), one a sample: a hash of (seed, epoch, sample, stream).

    The hash is SplitMix64's finaliser (Steele, Lea and Flood 2014), applied to each part in turn.

    Args:
        seed: of the run.
        epoch: from 0.
        samples: int64 ``[n]``, rows of the training split.
        stream: tells independent draws for one sample apart.
    """
    start = _mix(_mix(_mix(np.uint64(seed)) + np.uint64(epoch)) + np.uint64(stream))
    bits = _mix(start + samples.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def augment(
    config: AugmentConfig,
    images: Tensor,
    samples: npt.NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> Tensor:
    """Augment a batch, except for its crops, which :func:`random_crops` draws.

    Args:
        config: what to do.
        images: uint8 ``[n, channels, height, width]``; not written to.
        samples: int64 ``[n]``, each image's row in the training split.
        seed: of the run.
        epoch: from 0.

    Returns:
        uint8 of the same shape.
    """
    if config.flip:
        mirrored = torch.from_numpy(uniform(seed, epoch, samples, _FLIP) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if config.translate:
        images = _translate(
            images,
            _offsets(config.translate, uniform(seed, epoch, samples, _SHIFT_Y)),
            _offsets(config.translate, uniform(seed, epoch, samples, _SHIFT_X)),
        )
    return images


def random_crops(
    scale: float, samples: npt.NDArray[np.int64], *, seed: int, epoch: int
) -> list[Crop]:
    """A random crop for each sample.

    Args:
        scale: smallest share of an image's area.
        samples: int64 ``[n]``, rows of the training split.
        seed: of the run.
        epoch: from 0.
    """
    streams = range(_CROP, _CROP + 2 * CROP_ATTEMPTS + 2)
    draws = np.stack([uniform(seed, epoch, samples, stream) for stream in streams], 1)
    return [functools.partial(crop_box, scale, own) for own in draws]


def crop_box(scale: float, draws: npt.NDArray[np.float64], width: int, height: int) -> Box:
    """Choose a part of an image as torchvision's ``RandomResizedCrop`` does.

    Its area is uniform in [scale, 1] of the image's, the logarithm of its aspect ratio uniform
    between those of 3/4 and 4/3, and its place uniform; if ten draws give none that fits, it is
    the largest middle part of an allowed aspect ratio.

    Args:
        scale: smallest share of the image's area.
        draws: ``[2 * CROP_ATTEMPTS + 2]``, uniform in [0, 1): two for the place, then an area and
            an aspect ratio for each attempt.
        width: of the image.
        height: of the image.
    """
    place_x, place_y, *attempts = draws.tolist()
    for area, aspect in zip(attempts[::2], attempts[1::2], strict=True):
        target = width * height * (scale + area * (1 - scale))
        ratio = MAX_ASPECT ** (2 * aspect - 1)
        across, down = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = math.floor(place_x * (width - across + 1))
            top = math.floor(place_y * (height - down + 1))
            return left, top, left + across, top + down
    across = min(width, max(1, round(height * MAX_ASPECT)))
    down = min(height, max(1, round(width * MAX_ASPECT)))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _offsets(limit: int, draws: npt.NDArray[np.float64]) -> Tensor:
    """Integers in [-limit, limit]."""
    return torch.from_numpy(np.floor(draws * (2 * limit + 1)).astype(np.int64) - limit)


def _translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image; what comes in is zero."""
    n, _, height, width = images.shape
    rows = torch.arange(height)[None] - down[:, None]
    columns = torch.arange(width)[None] - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    index = flat.reshape(n, 1, -1).expand(-1, images.shape[1], -1)
    shifted = images.flatten(2).gather(2, index).view_as(images)
    return shifted * inside[:, None]


def _mix(value: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        value = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed
