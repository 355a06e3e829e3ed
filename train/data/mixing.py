"""Mixup and cutmix: an image and its label, mixed with another of the training split.

The other is drawn from (seed, epoch, sample), not taken from the batch, so what an image becomes
does not depend on which worker or step it falls to.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from train.config import AugmentConfig, Sampling
from train.data.draws import Draws, Stream
from train.data.erasing import centred_boxes, paste
from train.data.geometry import Pixels

SHARE_STEPS = 256


@dataclass(frozen=True)
class Mix:
    """The second label of each image of a batch."""

    labels: Tensor
    """int64 ``[n]``."""
    share: Tensor
    """float32 ``[n]``: the weight of the image's own label; the rest is that of ``labels``."""


class Partners:
    """Draws for each sample the one that it is mixed with.

    It is any other row of the split. Of ``balanced`` sampling, it is any row of a class that is
    drawn first, so that mixing does not bring back the larger classes' weight.

    Args:
        labels: int64 ``[rows]``, two or more.
        sampling: which order the epochs take.
    """

    def __init__(self, labels: npt.NDArray[np.int64], sampling: Sampling) -> None:
        self._count = len(labels)
        self._balanced = sampling == "balanced"
        if self._balanced:
            self._by_class = np.argsort(labels, kind="stable")
            _, self._starts, self._sizes = np.unique(
                labels[self._by_class], return_index=True, return_counts=True
            )

    def rows(self, draws: Draws) -> npt.NDArray[np.int64]:
        """The partner of each sample: int64 ``[n]``."""
        if self._balanced:
            label = draws.integers(Stream.PARTNER, len(self._sizes))
            within = draws.uniform(Stream.PARTNER, 1) * self._sizes[label]
            return self._by_class[self._starts[label] + within.astype(np.int64)]
        step = 1 + draws.integers(Stream.PARTNER, self._count - 1)
        return (draws.samples + step) % self._count


def mix_piece(
    images: Pixels, others: Pixels, config: AugmentConfig, draws: Draws
) -> npt.NDArray[np.float32]:
    """Some of what :func:`train.data.augment.mix` mixes, all at once."""
    if not (config.mixup and config.cutmix):
        how = _mixup if config.mixup else _cutmix
        return how(images, others, config, draws)
    share = np.empty(len(images), np.float32)
    blended = draws.uniform(Stream.MIX_KIND) < 0.5
    for how, chosen in ((_mixup, blended), (_cutmix, ~blended)):
        rows = np.flatnonzero(chosen)
        mixed = images[rows]
        share[rows] = how(mixed, others[rows], config, draws.of(draws.samples[rows]))
        images[rows] = mixed
    return share


def _mixup(
    images: Pixels, others: Pixels, config: AugmentConfig, draws: Draws
) -> npt.NDArray[np.float32]:
    """Blend pixels (Zhang et al. 2018, equation 1).

    Shares are whole 256ths: pixels have no more digits, integers are quicker, and the label's
    share is exactly that of the pixels.
    """
    weights = np.rint(SHARE_STEPS * _beta(config.mixup, draws)).astype(np.uint16)
    of_own = weights[:, None, None, None]
    # At most 255 * 256 + 128, which fits into 16 bits.
    mixed = images * of_own
    mixed += others * (SHARE_STEPS - of_own)
    mixed += np.uint16(SHARE_STEPS // 2)
    mixed >>= np.uint16(8)
    images[:] = mixed
    return (weights / SHARE_STEPS).astype(np.float32)


def _cutmix(
    images: Pixels, others: Pixels, config: AugmentConfig, draws: Draws
) -> npt.NDArray[np.float32]:
    """Paste a box (Yun et al. 2019, section 3.1): its area is the other's share before the image's
    edges cut it, and the labels are mixed by what is left of it."""
    height, width = images.shape[2:]
    length = np.sqrt(1 - _beta(config.cutmix, draws))
    sides = (length[:, None] * np.array([height, width])).astype(np.int64)
    boxes = centred_boxes(draws.uniforms(Stream.MIX_PLACE, 2), sides, height, width)
    paste(images, others, boxes)
    top, left, bottom, right = boxes.T
    area = (bottom - top) * (right - left)
    share: npt.NDArray[np.float32] = (1 - area / (height * width)).astype(np.float32)
    return share


def _beta(concentration: float, draws: Draws) -> npt.NDArray[np.float64]:
    """Draws of Beta(concentration, concentration), by its quantile function: float64 ``[n]``."""
    # Takes most of a second to import, which only those who mix wait for.
    from scipy.special import betaincinv

    uniform = draws.uniform(Stream.MIX_SHARE)
    quantiles: npt.NDArray[np.float64] = betaincinv(concentration, concentration, uniform)
    return quantiles
