"""The order in which an epoch takes the rows of the training split."""

import numpy as np
import numpy.typing as npt

from train.config import Sampling


def epoch_order(
    labels: npt.NDArray[np.int64], sampling: Sampling, *, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """The rows of one epoch, as many as the split has: a function of (seed, epoch) alone.

    ``shuffle`` is a permutation. ``balanced`` takes every class that has an image equally often,
    give or take one, in random order; a class's own rows come in cycles, each a permutation of
    them, so that none comes again before all others have come.

    Args:
        labels: int64 ``[rows]``.
        sampling: which order.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 ``[rows]``.
    """
    rng = np.random.default_rng((seed, epoch))
    if sampling == "shuffle":
        return rng.permutation(len(labels))
    classes = np.unique(labels)
    share, over = divmod(len(labels), len(classes))
    extra = set(rng.permutation(classes)[:over].tolist())
    drawn = [
        _cycle(rng, np.flatnonzero(labels == label), share + (int(label) in extra))
        for label in classes
    ]
    return rng.permutation(np.concatenate(drawn))


def tell_apart(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number an epoch's samples, so that a row which comes again is another sample.

    Args:
        order: int64 ``[rows]``, of :func:`epoch_order`.

    Returns:
        int64 ``[rows]``: row plus ``rows`` times how often it has come before.
    """
    by_row = np.argsort(order, kind="stable")
    rows = order[by_row]
    place = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.diff(rows, prepend=-1) != 0, place, 0))
    samples = order.copy()
    samples[by_row] += (place - first) * len(order)
    return samples


def _cycle(
    rng: np.random.Generator, rows: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    cycles = [rng.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate([*cycles, rows[:0]])[:count]
