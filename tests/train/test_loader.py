"""Order, sharding and decoding of batches."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from photos import write_photos
from sklearn.datasets import load_digits

from cluster.dataset import Dataset, ImageSplit, Split
from cluster.errors import ConfigError, DataError
from cluster.images import Crop
from cluster.splits import Rows
from train.config import AugmentConfig
from train.data.loader import BATCHES_AHEAD, Batch, TrainLoader, shard_batches
from train.data.sampling import epoch_order


@pytest.fixture(scope="module")
def split() -> Split:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Split(images, digits.target.astype(np.int64))


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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"train": 70, "val": 23})


def photo_loader(
    photos: Dataset, *, threads: int = 2, rank: int = 0, world: int = 1
) -> TrainLoader:
    config = AugmentConfig(random_resized_crop=0.3, flip=True)
    train = photos.split("train")
    return TrainLoader(train, 16, config, seed=3, rank=rank, world=world, threads=threads)


def test_whichever_thread_decodes_the_batches_are_the_same(photos: Dataset) -> None:
    alone = list(photo_loader(photos, threads=1).epoch(2))
    assert len(alone) == 70 // 16
    many = list(photo_loader(photos, threads=5).epoch(2))
    assert all(same(a, b) for a, b in zip(alone, many, strict=True))
    rest = list(photo_loader(photos).epoch(2, 3))
    assert all(same(a, b) for a, b in zip(rest, alone[3:], strict=True))
    halves = [list(photo_loader(photos, rank=rank, world=2).epoch(2)) for rank in range(2)]
    for left, right, whole in zip(*halves, alone, strict=True):
        joined = torch.stack([left.images, right.images], 1).flatten(0, 1)
        assert torch.equal(joined, whole.images)
    assert not same(alone[0], next(photo_loader(photos).epoch(3)))


def test_a_crop_of_stored_pixels(split: Split) -> None:
    config = AugmentConfig(random_resized_crop=0.3)
    whole = list(TrainLoader(split, 64, config, seed=0, threads=2).epoch(0))
    plain = list(TrainLoader(split, 64, AugmentConfig(), seed=0).epoch(0))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(whole, plain, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(whole, plain, strict=True))
    assert whole[0].images.shape == plain[0].images.shape


def test_a_balanced_epoch(photos: Dataset) -> None:
    train = photos.split("train")
    rows = np.concatenate(
        [np.flatnonzero(train.labels == 0), np.flatnonzero(train.labels == 1)[:6]]
    )
    uneven = Split(train.take(rows), train.labels[rows])
    config = AugmentConfig()
    loader = TrainLoader(uneven, 30, config, sampling="balanced", seed=0)
    (batch,) = loader.epoch(0)
    assert torch.bincount(batch.labels).tolist() == [15, 15]


@pytest.mark.parametrize("world", [1, 3])
def test_encoded_images_are_evaluated_once_and_in_order(photos: Dataset, world: int) -> None:
    val = photos.split("val")
    seen = np.zeros((len(val), *photos.meta.image.shape), np.uint8)
    for rank in range(world):
        batches = list(shard_batches(val, 4, rank=rank, world=world, threads=2))
        seen[rank::world] = torch.cat([batch.images for batch in batches]).numpy()
        labels = torch.cat([batch.labels for batch in batches]).numpy()
        assert np.array_equal(labels, val.labels[rank::world])
    assert np.array_equal(seen, val.take(slice(None)))


def test_a_damaged_image_ends_the_epoch_where_it_stands(tmp_path: Path) -> None:
    dataset = write_photos(tmp_path / "photos", {"train": 48}, train_replaced={20: b"no image"})
    order = epoch_order(dataset.split("train").labels, "shuffle", seed=3, epoch=0)
    step = int(np.flatnonzero(order == 20)[0]) // 16
    batches = photo_loader(dataset).epoch(0)
    for _ in range(step):
        next(batches)
    with pytest.raises(DataError, match=r"train-0000\d\.arrow: row \d+: not an image; allowed"):
        next(batches)


class Counting:
    """A split that counts what it is asked for."""

    def __init__(self, split: ImageSplit) -> None:
        self._split = split
        self.labels = split.labels
        self.taken = 0

    def __len__(self) -> int:
        return len(self._split)

    def take(self, rows: Rows, crops: Sequence[Crop] | None = None) -> npt.NDArray[np.uint8]:
        images = self._split.take(rows, crops)
        self.taken += len(images)
        return images

    def content(self) -> Iterator[object]:
        return self._split.content()


def test_only_a_few_batches_are_decoded_ahead_and_an_epoch_left_early_leaves_no_thread(
    photos: Dataset,
) -> None:
    split = Counting(photos.split("train"))
    batches = TrainLoader(split, 8, AugmentConfig(), seed=0, threads=1).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert split.taken <= 8 * (1 + BATCHES_AHEAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


ITERATE = """
import sys
from pathlib import Path
import torch
from cluster.dataset import Dataset
from train.config import AugmentConfig
from train.data.loader import TrainLoader, shard_batches

def private():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

def peak(path):
    train = Dataset.open(Path(path)).split("train")
    loader = TrainLoader(train, 32, AugmentConfig(random_resized_crop=0.3), seed=0, threads=2)
    trained = max(private() for batch in loader.epoch(0))
    return max(trained, max(private() for batch in shard_batches(train, 32, threads=2)))

torch.set_num_threads(1)
peak(sys.argv[1])
print(peak(sys.argv[1]), peak(sys.argv[2]))
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """One epoch and one evaluation in a process of its own, of 300 photos and of 3000."""
    for rows in (300, 3000):
        write_photos(tmp_path / str(rows), {"train": rows}, shard_bytes=2**20)
    stored = sum(file.stat().st_size for file in (tmp_path / "3000").glob("*.arrow"))
    command = [sys.executable, "-c", ITERATE, str(tmp_path / "300"), str(tmp_path / "3000")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    few, many = (int(value) * 1024 for value in done.stdout.split())
    pixels = 3000 * 3 * 16 * 16
    assert min(stored, pixels) > 2 * 2**20
    assert many - few < 2**20
