"""Mean and deviation of a training split, exactly, from sums that are gathered as it is decoded."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cluster.dataset import ChannelStatistics
from train.data.options import Normalize


def channel_statistics(
    sums: npt.NDArray[np.int64], squares: npt.NDArray[np.int64], count: int
) -> ChannelStatistics:
    """Statistics of each channel, pixels scaled to [0, 1].

    Args:
        sums: int64 ``[channels]``, of the bytes of all images.
        squares: of their squares.
        count: pixels of all images.
    """
    means, stds = [], []
    # Python's integers: no digit is lost before the last division.
    for total, square in zip(sums.tolist(), squares.tolist(), strict=True):
        means.append(total / count / 255)
        stds.append(_std((count * square - total * total) / (count * count * 255 * 255)))
    return ChannelStatistics(mean=tuple(means), std=tuple(stds))


def pooled(parts: Sequence[tuple[ChannelStatistics, int]]) -> ChannelStatistics:
    """Statistics of several sets of images of one size, from those of each and their numbers."""
    if len(parts) == 1:
        return parts[0][0]
    total = sum(count for _, count in parts)
    means, stds = [], []
    for channel in range(len(parts[0][0].mean)):
        mean = sum(part.mean[channel] * count for part, count in parts) / total
        second = sum(
            (part.std[channel] ** 2 + part.mean[channel] ** 2) * count for part, count in parts
        )
        means.append(mean)
        stds.append(_std(max(0.0, second / total - mean * mean)))
    return ChannelStatistics(mean=tuple(means), std=tuple(stds))


def normalization(
    choice: Normalize | None, statistics: ChannelStatistics, parent: ChannelStatistics | None
) -> ChannelStatistics:
    """What models will normalise with.

    Args:
        choice: the user's.
        statistics: of the training split.
        parent: of the version that is added to. It is kept unless the user chooses, so that its
            weights go on with the new version.
    """
    channels = len(statistics.mean)
    if choice == "half":
        return ChannelStatistics(mean=(0.5,) * channels, std=(0.5,) * channels)
    if choice == "none":
        return ChannelStatistics(mean=(0.0,) * channels, std=(1.0,) * channels)
    return statistics if choice == "dataset" or parent is None else parent


def _std(variance: float) -> float:
    """At least one level, so that images of one color can be divided by it."""
    return float(max(variance**0.5, 1 / 255))
