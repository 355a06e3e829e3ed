"""Batches out of a mapped split; encoded images are decoded ahead of the step that takes them."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.dataset import ImageSplit, Split
from cluster.errors import ConfigError
from cluster.images import Crop
from train.config import AugmentConfig, Sampling
from train.data.augment import augment, random_crops
from train.data.sampling import epoch_order

Indices = npt.NDArray[np.int64]

BATCHES_AHEAD = 2
"""How many batches are being decoded while one is trained on; what bounds the memory for it."""
PIECE = 8
"""Images that a thread decodes at a time."""


@dataclass(frozen=True)
class Batch:
    """One worker's part of one optimizer step."""

    images: Tensor
    """uint8 ``[n, channels, height, width]``."""
    labels: Tensor
    """int64 ``[n]``."""


class TrainLoader:
    """One worker's batches of a training split.

    The order of an epoch is drawn from (seed, epoch) by :func:`epoch_order`; step ``s`` takes its
    rows ``[s * batch_size, (s + 1) * batch_size)``, of which worker ``rank`` takes every
    ``world``-th. Nothing else decides a batch, whichever thread decodes it, so training can begin
    again at any step. The rows that do not fill a last batch wait for the next epoch's order.

    Args:
        split: the training split.
        batch_size: images of a step over all workers; a multiple of ``world``.
        config: augmentation.
        sampling: which order.
        seed: of the run.
        rank: this worker.
        world: number of workers.
        threads: that decode; by default as many as PyTorch computes with.

    Raises:
        ConfigError: a batch is larger than the split.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        config: AugmentConfig,
        *,
        sampling: Sampling = "shuffle",
        seed: int,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
    ) -> None:
        if batch_size > len(split):
            raise ConfigError(
                f"batch_size={batch_size} is larger than the training split of {len(split)} images"
            )
        self._split = split
        self._batch_size = batch_size
        self._config = config
        self._sampling = sampling
        self._seed = seed
        self._rank = rank
        self._world = world
        self._threads = threads
        self.steps_per_epoch = len(split) // batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from ``first_step`` of it on.

        Raises:
            DataError: an image is damaged; the message names its file and row.
        """
        order = epoch_order(self._split.labels, self._sampling, seed=self._seed, epoch=epoch)
        size = self._batch_size
        batches = (
            order[step * size : (step + 1) * size][self._rank :: self._world]
            for step in range(first_step, self.steps_per_epoch)
        )
        crops = None
        if self._config.random_resized_crop is not None:
            crops = functools.partial(
                random_crops, self._config.random_resized_crop, seed=self._seed, epoch=epoch
            )
        for rows, images in _read(self._split, batches, self._threads, crops):
            augmented = augment(self._config, images, rows, seed=self._seed, epoch=epoch)
            yield Batch(augmented, torch.from_numpy(self._split.labels[rows]))


def shard_batches(
    split: ImageSplit,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """One worker's share of a split for evaluation: every image once, in order, none padded.

    Worker ``rank`` takes the rows ``rank, rank + world, ...``.

    Raises:
        DataError: an image is damaged; the message names its file and row.
    """
    step = batch_size * world
    batches = (
        np.arange(start, min(start + step, len(split)), world)
        for start in range(rank, len(split), step)
    )
    for rows, images in _read(split, batches, threads):
        yield Batch(images, torch.from_numpy(split.labels[rows]))


@dataclass(frozen=True)
class _Pending:
    """A batch that threads are decoding."""

    rows: Indices
    pieces: list[Future[npt.NDArray[np.uint8]]]

    def images(self) -> Tensor:
        """Wait for them."""
        return torch.from_numpy(np.concatenate([piece.result() for piece in self.pieces]))


def _read(
    split: ImageSplit,
    batches: Iterable[Indices],
    threads: int | None,
    crops: Callable[[Indices], list[Crop]] | None = None,
) -> Iterator[tuple[Indices, Tensor]]:
    """Rows and images of each batch, in order; an error comes where its batch would have come."""
    if crops is None and isinstance(split, Split):
        # Copying pixels out of the page cache takes no longer than asking a thread to.
        for rows in batches:
            yield rows, torch.from_numpy(split.take(rows))
        return
    pool = ThreadPoolExecutor(threads or torch.get_num_threads(), "decode")
    waiting = collections.deque[_Pending]()
    try:
        for rows in batches:
            parts = None if crops is None else crops(rows)
            pieces = [
                pool.submit(split.take, rows[at : at + PIECE], parts and parts[at : at + PIECE])
                for at in range(0, len(rows), PIECE)
            ]
            waiting.append(_Pending(rows, pieces))
            if len(waiting) > BATCHES_AHEAD:
                ready = waiting.popleft()
                yield ready.rows, ready.images()
        for ready in waiting:
            yield ready.rows, ready.images()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
