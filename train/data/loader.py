"""Batches out of a mapped split; encoded images are decoded ahead of the step that takes them."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from train.data.augment import augment, check_augment, mix
from train.data.crops import random_crops
from train.data.draws import Draws
from train.data.geometry import Pixels
from train.data.mixing import Mix, Partners
from train.data.sampling import epoch_order, tell_apart

__all__ = ["Batch", "Mix", "TrainLoader", "eval_batches"]

Indices = npt.NDArray[np.int64]

BATCHES_AHEAD = 2
"""How many batches are being decoded while one is trained on; what bounds the memory for it."""
IMAGES_TOGETHER = 8192
"""How many images are augmented at once, if parts of a step are no larger."""
PIECE = 8
"""Images that a thread decodes at a time."""


@dataclass(frozen=True)
class Batch:
    """Images and labels that are computed together."""

    images: Tensor
    """uint8 ``[n, channels, height, width]``."""
    labels: Tensor
    """int64 ``[n]``."""
    mix: Mix | None = None
    """What else is in the images, of mixup and cutmix."""


class TrainLoader:
    """Some parts of each batch of a training split.

    The order of an epoch is drawn from (seed, epoch) by :func:`epoch_order`; step ``s`` takes its
    rows ``[s * batch_size, (s + 1) * batch_size)``, of which part ``v`` takes every
    ``num_parts``-th, from the ``v``-th on. Nothing else decides a batch, whoever computes its parts
    and whichever thread decodes it, so training can begin again at any step. The rows that do not
    fill a last batch wait for the next epoch's order. A row that comes again within an epoch is
    another sample, and is augmented otherwise.

    Args:
        split: the training split.
        batch_size: images of a step, over all parts.
        config: augmentation.
        sampling: which order.
        seed: of the run.
        parts: which parts of each step to give.
        num_parts: how many parts a step has, over all workers.
        threads: that decode; by default as many as PyTorch computes with.

    Raises:
        ConfigError: a batch is larger than the split, or the augmentation does not fit its images.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        config: AugmentConfig,
        *,
        sampling: Sampling = "shuffle",
        seed: int,
        parts: Sequence[int] = (0,),
        num_parts: int = 1,
        threads: int | None = None,
    ) -> None:
        if batch_size > len(split):
            raise ConfigError(
                f"batch_size={batch_size} is larger than the training split of {len(split)} images"
            )
        check_augment(config, len(split), *split.take(slice(0, 0)).shape[2:])
        self._split = split
        self._batch_size = batch_size
        self._config = config
        self._sampling = sampling
        self._seed = seed
        self._num_parts = num_parts
        # Parts are read and augmented together, which is quicker; but a step of gradient descent is
        # the whole split, which may be more than memory holds.
        count = max(1, IMAGES_TOGETHER * num_parts // batch_size)
        self._together = [parts[at : at + count] for at in range(0, len(parts), count)]
        self._threads = threads
        mixes = bool(config.mixup or config.cutmix)
        self._partners = Partners(split.labels, sampling) if mixes else None
        self.steps_per_epoch = len(split) // batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The parts of an epoch's steps, from ``first_step`` of it on: one step's parts in order,
        then the next one's. A step is read when its first part is asked for, or a little ahead.

        Raises:
            DataError: an image is damaged; the message names its file and row.
        """
        order = epoch_order(self._split.labels, self._sampling, seed=self._seed, epoch=epoch)
        if self._sampling == "balanced":
            order = tell_apart(order)
        steps = range(first_step, self.steps_per_epoch)
        wanted = (
            self._with_partners(self._samples(order, step, parts), epoch)
            for step in steps
            for parts in self._together
        )
        scale = self._config.random_resized_crop

        def crops(samples: Indices) -> list[Crop]:
            assert scale is not None
            return random_crops(scale, Draws(self._seed, epoch, samples))

        chooser = None if scale is None else crops
        read = _read(self._split, wanted, self._threads, chooser)
        for parts, (samples, images) in zip(itertools.cycle(self._together), read, strict=False):
            batch = self._batch(samples, images, epoch)
            start = 0
            for part in parts:
                stop = start + len(range(part, self._batch_size, self._num_parts))
                yield _cut(batch, start, stop)
                start = stop

    def _samples(self, order: Indices, step: int, parts: Sequence[int]) -> Indices:
        """A step's samples, one part after the other."""
        samples = order[step * self._batch_size : (step + 1) * self._batch_size]
        return np.concatenate([samples[part :: self._num_parts] for part in parts])

    def _with_partners(self, samples: Indices, epoch: int) -> Indices:
        if self._partners is None:
            return samples
        return np.concatenate([samples, self._partners.rows(Draws(self._seed, epoch, samples))])

    def _batch(self, samples: Indices, images: Pixels, epoch: int) -> Batch:
        """Augment what was read; what is mixed was augmented as what it is in this epoch."""
        images = augment(images, self._config, Draws(self._seed, epoch, samples))
        labels = torch.from_numpy(self._split.labels[samples % len(self._split)])
        if self._partners is None:
            return Batch(torch.from_numpy(images), labels)
        half = len(samples) // 2
        own = images[:half]
        share = mix(own, images[half:], self._config, Draws(self._seed, epoch, samples[:half]))
        mixed = Mix(labels[half:], torch.from_numpy(share))
        return Batch(torch.from_numpy(own), labels[:half], mixed)


def eval_batches(
    split: ImageSplit,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    threads: int | None = None,
) -> Iterator[Batch]:
    """One worker's batches of a split for evaluation: every image once, in order, none padded.

    Batch ``b`` is the rows ``[b * batch_size, (b + 1) * batch_size)``, whatever the number of
    workers; worker ``rank`` takes the batches ``rank, rank + world, ...``.

    Raises:
        DataError: an image is damaged; the message names its file and row.
    """
    batches = (
        np.arange(start, min(start + batch_size, len(split)))
        for start in range(rank * batch_size, len(split), world * batch_size)
    )
    for rows, images in _read(split, batches, threads):
        yield Batch(torch.from_numpy(images), torch.from_numpy(split.labels[rows]))


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    mixed = batch.mix
    if mixed is not None:
        mixed = Mix(mixed.labels[start:stop], mixed.share[start:stop])
    return Batch(batch.images[start:stop], batch.labels[start:stop], mixed)


@dataclass(frozen=True)
class _Pending:
    """A batch that threads are decoding."""

    samples: Indices
    pieces: list[Future[npt.NDArray[np.uint8]]]

    def images(self) -> Pixels:
        """Wait for them."""
        return np.concatenate([piece.result() for piece in self.pieces])


def _read(
    split: ImageSplit,
    batches: Iterable[Indices],
    threads: int | None,
    crops: Callable[[Indices], list[Crop]] | None = None,
) -> Iterator[tuple[Indices, Pixels]]:
    """Samples and images of each batch, in order; an error comes where its batch would have come.

    A sample is a row of the split, or that plus a multiple of the split's rows.
    """
    if crops is None and isinstance(split, Split):
        # Copying pixels out of the page cache takes no longer than asking a thread to.
        for samples in batches:
            yield samples, split.take(samples % len(split))
        return
    pool = ThreadPoolExecutor(threads or torch.get_num_threads(), "decode")
    waiting = collections.deque[_Pending]()
    try:
        for samples in batches:
            parts = None if crops is None else crops(samples)
            rows = samples % len(split)
            pieces = [
                pool.submit(split.take, rows[at : at + PIECE], parts and parts[at : at + PIECE])
                for at in range(0, len(rows), PIECE)
            ]
            waiting.append(_Pending(samples, pieces))
            if len(waiting) > BATCHES_AHEAD:
                ready = waiting.popleft()
                yield ready.samples, ready.images()
        for ready in waiting:
            yield ready.samples, ready.images()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
