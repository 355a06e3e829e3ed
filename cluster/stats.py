"""Reference statistics: what a model saw and said before it was served, for drift to be told by."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from cluster.config import Frozen
from cluster.runtime import softmax

BINS = 20


class ReferenceStatistics(Frozen):
    """What ``reference.json`` of a bundle holds: a summary of the validation split.

    Histograms are counts over equal bins: brightness and confidence in [0, 1], entropy in
    [0, log(classes)].
    """

    schema_version: Literal[1] = 1
    images: int
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    brightness_histogram: tuple[int, ...]
    """Mean pixel of each image."""
    label_counts: tuple[int, ...]
    predicted_counts: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones; label-shift estimates need it."""
    confidence_histogram: tuple[int, ...]
    entropy_histogram: tuple[int, ...]


def reference_statistics(
    batches: Iterable[npt.NDArray[np.uint8]],
    labels: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
) -> ReferenceStatistics:
    """Summarise a split and a model's answers to it.

    Args:
        batches: the images, some at a time: uint8 ``[n, channels, height, width]`` each.
        labels: int64 ``[rows]``.
        logits: float32 ``[rows, classes]``.
    """
    num_classes = logits.shape[1]
    probabilities = softmax(logits)
    predicted = logits.argmax(1)
    mean, std, brightness = _measure(batches)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(1)
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return ReferenceStatistics(
        images=len(labels),
        channel_mean=mean,
        channel_std=std,
        brightness_histogram=_histogram(brightness, 1.0),
        label_counts=_counts(labels, num_classes),
        predicted_counts=_counts(predicted, num_classes),
        confusion=tuple(
            tuple(int(count) for count in row) for row in confusion.reshape(num_classes, -1)
        ),
        confidence_histogram=_histogram(probabilities.max(1), 1.0),
        entropy_histogram=_histogram(entropy, float(np.log(num_classes))),
    )


def _measure(
    batches: Iterable[npt.NDArray[np.uint8]],
) -> tuple[tuple[float, ...], tuple[float, ...], npt.NDArray[np.float64]]:
    """Mean and deviation of each channel, and the mean of each image; pixels from 0 to 1."""
    brightness = []
    counts: npt.NDArray[np.int64] | int = 0
    for images in batches:
        channels = images.swapaxes(0, 1).reshape(images.shape[1], -1)
        counts = counts + np.stack([np.bincount(channel, minlength=256) for channel in channels])
        brightness.append(images.mean((1, 2, 3)) / 255)
    # Counts of the 256 values are exact, and need no float copy of the images.
    shares = np.atleast_2d(counts) / np.sum(counts, axis=-1, keepdims=True)
    levels = np.arange(256) / 255
    mean = (shares * levels).sum(1)
    std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(std.tolist()), np.concatenate(brightness)


def _histogram(values: npt.NDArray[np.floating], top: float) -> tuple[int, ...]:
    counts, _ = np.histogram(np.clip(values, 0, top), bins=BINS, range=(0, top))
    return tuple(int(count) for count in counts)


def _counts(labels: npt.NDArray[np.int64], num_classes: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(labels, minlength=num_classes))
