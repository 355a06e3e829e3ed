"""Order, sharding and augmentation of batches."""

import numpy as np
import pytest
import torch

from cluster.dataset import Split
from cluster.errors import ConfigError
from train.config import AugmentConfig
from train.data.augment import augment, uniform
from train.data.loader import Batch, TrainLoader, shard_batches
from train.data.sources import read_source


@pytest.fixture(scope="module")
def split() -> Split:
    return read_source("digits", root=None, class_names=None).parts["train"]


def loader(split: Split, *, rank: int = 0, world: int = 1, seed: int = 7) -> TrainLoader:
    config = AugmentConfig(flip=True, translate=2)
    return TrainLoader(split, 64, config, seed=seed, rank=rank, world=world)


def same(left: Batch, right: Batch) -> bool:
    return torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_each_batch_of_one_worker(split: Split, world: int) -> None:
    whole = list(loader(split).epoch(3))
    parts = [list(loader(split, rank=rank, world=world).epoch(3)) for rank in range(world)]
    assert len(whole) == len(split) // 64
    for step, batch in enumerate(whole):
        images = torch.stack([part[step].images for part in parts], 1).flatten(0, 1)
        labels = torch.stack([part[step].labels for part in parts], 1).flatten()
        assert same(Batch(images, labels), batch)


def test_an_epoch_can_begin_at_any_step(split: Split) -> None:
    whole = list(loader(split).epoch(1))
    for first in (0, 5, len(whole) - 1):
        rest = list(loader(split).epoch(1, first))
        assert all(same(a, b) for a, b in zip(rest, whole[first:], strict=True))


def test_an_epoch_is_a_permutation_and_the_next_is_another(split: Split) -> None:
    plain = TrainLoader(split, len(split), AugmentConfig(), seed=0)
    (first,), (second,) = list(plain.epoch(0)), list(plain.epoch(1))
    assert not torch.equal(first.images, second.images)
    for batch in (first, second):
        rows = batch.images.flatten(1).numpy()
        assert sorted(map(bytes, rows)) == sorted(map(bytes, split.images.reshape(-1, 64)))


def test_a_batch_larger_than_the_data_is_refused(split: Split) -> None:
    with pytest.raises(ConfigError, match="batch_size=1798 is larger than the training split"):
        TrainLoader(split, 1798, AugmentConfig(), seed=0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_image_once(split: Split, world: int) -> None:
    seen = np.empty((len(split), 64), np.uint8)
    count = 0
    for rank in range(world):
        images = [batch.images for batch in shard_batches(split, 100, rank=rank, world=world)]
        own = torch.cat(images).flatten(1).numpy()
        seen[rank::world] = own
        count += len(own)
    assert count == len(split)
    assert np.array_equal(seen, split.images.reshape(-1, 64))


def test_augmentation_depends_on_the_sample_and_not_on_its_batch(split: Split) -> None:
    config = AugmentConfig(flip=True, translate=2)
    rows = np.arange(100, dtype=np.int64)
    images = torch.from_numpy(split.images[:100].copy())
    together = augment(config, images, rows, seed=1, epoch=4)
    shuffled = np.random.default_rng(0).permutation(100)
    apart = augment(config, images[shuffled], rows[shuffled], seed=1, epoch=4)
    assert torch.equal(together[shuffled], apart)
    assert not torch.equal(together, augment(config, images, rows, seed=1, epoch=5))
    assert not torch.equal(together, augment(config, images, rows, seed=2, epoch=4))


def test_flip_mirrors_about_half(split: Split) -> None:
    images = torch.from_numpy(split.images[:1000].copy())
    rows = np.arange(1000, dtype=np.int64)
    flipped = augment(AugmentConfig(flip=True), images, rows, seed=0, epoch=0)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert bool((mirrored | kept).all())
    assert 400 < int(mirrored.sum()) < 600


def test_translate_shifts_by_every_offset_and_brings_in_black() -> None:
    images = torch.full((2000, 3, 5, 6), 9, dtype=torch.uint8)
    images[:, :, 2, 3] = 200
    rows = np.arange(2000, dtype=np.int64)
    shifted = augment(AugmentConfig(translate=2), images, rows, seed=0, epoch=0)
    offsets = set()
    for image in shifted:
        assert torch.equal(image[0], image[2])
        ((row, column),) = (image[0] == 200).nonzero().tolist()
        down, right = row - 2, column - 3
        offsets.add((down, right))
        inside = torch.zeros(5, 6, dtype=torch.bool)
        inside[max(0, down) : 5 + min(0, down), max(0, right) : 6 + min(0, right)] = True
        assert bool((image[0][~inside] == 0).all())
        assert bool((image[0][inside] > 0).all())
    assert len(offsets) == 25


def test_draws_are_uniform_and_independent() -> None:
    samples = np.arange(100_000, dtype=np.int64)
    first, second = uniform(0, 0, samples, 0), uniform(0, 0, samples, 1)
    assert 0 <= first.min() < first.max() < 1
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    # 20 bins of 5,000: six standard deviations are 414.
    assert np.abs(counts - 5000).max() < 414
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.02
