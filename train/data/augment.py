"""Augmentation of uint8 batches: vectorised, and different for each image.

What happens to an image is a function of (seed, epoch, sample) alone: not of the batch it falls
into, the worker that trains on it, or what was drawn before. So a resumed run, or one on another
number of workers, sees the same images.
"""

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from train.config import AugmentConfig
from train.data.color import jitter
from train.data.draws import Draws
from train.data.erasing import cutout, erase
from train.data.geometry import Pixels, flip, mirrored, shifts, translate
from train.data.mixing import mix_piece
from train.data.rand_augment import rand_augment

PIECE_BYTES = 2**19
"""Pixels that are computed with at a time, where that takes wider numbers than bytes: those of a
whole batch would neither stay in a core's cache nor in memory that is at hand."""


def augment(images: Pixels, config: AugmentConfig, draws: Draws) -> Pixels:
    """Augment a batch, except for its crops, which are drawn when it is read, and for mixing.

    Args:
        images: uint8 ``[n, channels, height, width]``; may be written to.
        config: what to do.
        draws: of the images' samples.

    Returns:
        uint8 of the same shape.
    """
    if config.flip:
        flip(images, mirrored(config.flip, draws))
    if config.translate:
        offsets = shifts(config.translate, draws)
        images = translate(images, offsets, config.translate, config.padding)
    if config.rand_augment is not None:
        rand_augment(images, config.rand_augment, draws)
    if config.color is not None:
        for rows in _pieces(images):
            images[rows] = jitter(images[rows], config.color, draws.of(draws.samples[rows]))
    if config.erasing is not None:
        erase(images, config.erasing, draws)
    if config.cutout:
        cutout(images, config.cutout, draws)
    return images


def mix(
    images: Pixels, others: Pixels, config: AugmentConfig, draws: Draws
) -> npt.NDArray[np.float32]:
    """Mix each image with its partner, in place.

    Args:
        images: are written to.
        others: their partners, augmented.
        config: has ``mixup``, ``cutmix`` or both; of both, half of the images take each.
        draws: of the images' samples.

    Returns:
        float32 ``[n]``: the share of each image that is its own.
    """
    share = np.empty(len(images), np.float32)
    for rows in _pieces(images):
        own = draws.of(draws.samples[rows])
        share[rows] = mix_piece(images[rows], others[rows], config, own)
    return share


def check_augment(config: AugmentConfig, rows: int, height: int, width: int) -> None:
    """Refuse what cannot be done to a training split.

    Args:
        config: what to do.
        rows: of the split.
        height: of its images.
        width: of its images.

    Raises:
        ConfigError: there is nothing to mix with, or a shift or a square is too large.
    """
    side = min(height, width)
    if config.translate >= side:
        raise ConfigError(
            f"augment.translate={config.translate}: at most {side - 1} for images of "
            f"{width}x{height} pixels"
        )
    if config.cutout > side:
        raise ConfigError(
            f"augment.cutout={config.cutout}: at most {side} for images of {width}x{height} pixels"
        )
    for name, value in (("mixup", config.mixup), ("cutmix", config.cutmix)):
        if value and rows < 2:
            raise ConfigError(
                f"augment.{name}={value:g} needs a training split of two images or more"
            )


def without_effect(config: AugmentConfig, channels: int) -> list[str]:
    """Settings that change nothing for images of so many channels, each as a sentence."""
    notes = []
    if config.padding != "black" and config.translate == 0:
        notes.append(f"augment.padding={config.padding} has no effect: augment.translate is 0")
    color = config.color
    if channels == 1 and color is not None:
        named = [name for name in ("saturation", "hue") if getattr(color, name)]
        notes += [f"augment.color.{name} has no effect on grey images" for name in named]
    return notes


def _pieces(images: Pixels) -> list[slice]:
    size = max(1, PIECE_BYTES // images[:1].size)
    return [slice(start, start + size) for start in range(0, len(images), size)]
