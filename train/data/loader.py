"""Batches out of a mapped split."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.dataset import Split
from cluster.errors import ConfigError
from train.config import AugmentConfig
from train.data.augment import augment


@dataclass(frozen=True)
class Batch:
    """One worker's part of one optimizer step."""

    images: Tensor
    """uint8 ``[n, channels, height, width]``."""
    labels: Tensor
    """int64 ``[n]``."""


class TrainLoader:
    """One worker's batches of a training split.

    The order of an epoch is a permutation drawn from (seed, epoch); step ``s`` takes its rows
    ``[s * batch_size, (s + 1) * batch_size)``, of which worker ``rank`` takes every ``world``-th.
    Nothing else decides a batch, so training can begin again at any step. The rows that do not
    fill a last batch wait for the next epoch's order.

    Args:
        split: the mapped training split.
        batch_size: images of a step over all workers; a multiple of ``world``.
        config: augmentation.
        seed: of the run.
        rank: this worker.
        world: number of workers.

    Raises:
        ConfigError: a batch is larger than the split.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        config: AugmentConfig,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size > len(split):
            raise ConfigError(
                f"batch_size={batch_size} is larger than the training split of {len(split)} images"
            )
        self._images = mapped_tensor(split.images)
        self._labels = mapped_tensor(split.labels)
        self._batch_size = batch_size
        self._config = config
        self._seed = seed
        self._rank = rank
        self._world = world
        self.steps_per_epoch = len(split) // batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from ``first_step`` of it on."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._labels))
        for step in range(first_step, self.steps_per_epoch):
            start = step * self._batch_size
            rows = order[start : start + self._batch_size][self._rank :: self._world]
            index = torch.from_numpy(rows)
            images = augment(
                self._config,
                self._images.index_select(0, index),
                rows,
                seed=self._seed,
                epoch=epoch,
            )
            yield Batch(images, self._labels.index_select(0, index))


def shard_batches(
    split: Split, batch_size: int, *, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """One worker's share of a split for evaluation: every image once, in order, none padded.

    Worker ``rank`` takes the rows ``rank, rank + world, ...``.
    """
    images, labels = mapped_tensor(split.images), mapped_tensor(split.labels)
    for start in range(rank, len(split), batch_size * world):
        rows = slice(start, start + batch_size * world, world)
        yield Batch(images[rows], labels[rows])


def mapped_tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """A tensor over a mapped, read-only array, without a copy. It must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
