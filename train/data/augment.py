"""Augmentation of uint8 batches, vectorised and different for each image.

What happens to an image is a function of (seed, epoch, sample) alone: not of the batch it falls
into, the worker that trains on it, or what was drawn before. So a resumed run, or one on another
number of workers, sees the same images.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train.config import AugmentConfig

_FLIP, _SHIFT_Y, _SHIFT_X = range(3)


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
    """Augment a batch.

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
