"""Order, parts, mixing and decoding of batches."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import write_photos
from sklearn.datasets import load_digits

from cluster.dataset import Dataset, ImageSplit, Split
from cluster.errors import ConfigError, DataError
from cluster.images import Crop
from cluster.splits import Rows
from train.config import AugmentConfig, ErasingConfig, RandAugmentConfig
from train.data.loader import BATCHES_AHEAD, Batch, Mix, TrainLoader, eval_batches
from train.data.sampling import epoch_order


@pytest.fixture(scope="module")
def split() -> Split:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Split(images, digits.target.astype(np.int64))


AUGMENT = {
    "flip": AugmentConfig(flip=True, translate=2),
    "mixed": AugmentConfig(flip="alternating", mixup=0.4, cutmix=1.0),
    "hard": AugmentConfig(
        rand_augment=RandAugmentConfig(), erasing=ErasingConfig(), cutout=3, cutmix=1.0
    ),
}


def loader(
    split: ImageSplit,
    name: str = "flip",
    *,
    batch_size: int = 64,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
    seed: int = 7,
) -> TrainLoader:
    return TrainLoader(
        split, batch_size, AUGMENT[name], seed=seed, parts=parts, num_parts=num_parts
    )


def same(left: Batch, right: Batch) -> bool:
    if left.mix is not None and right.mix is not None:
        alike = torch.equal(left.mix.labels, right.mix.labels)
        if not (alike and torch.equal(left.mix.share, right.mix.share)):
            return False
    elif left.mix is not right.mix:
        return False
    return torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)


def every(batch: Batch, part: int, num_parts: int) -> Batch:
    """A part of a batch."""
    mix = batch.mix
    return Batch(
        batch.images[part::num_parts],
        batch.labels[part::num_parts],
        mix and Mix(mix.labels[part::num_parts], mix.share[part::num_parts]),
    )


@pytest.mark.parametrize("name", AUGMENT)
@pytest.mark.parametrize("num_parts", [2, 4, 7])
def test_parts_are_those_of_each_batch_whoever_takes_them(
    split: Split, name: str, num_parts: int
) -> None:
    whole = list(loader(split, name).epoch(3))
    assert len(whole) == len(split) // 64
    groups = [
        [[part] for part in range(num_parts)],
        [list(range(num_parts))],
        [list(range(num_parts))[1::2], list(range(num_parts))[::2]],
    ]
    for workers in groups:
        for parts in workers:
            stream = loader(split, name, parts=parts, num_parts=num_parts).epoch(3)
            for batch in whole:
                for part in parts:
                    assert same(next(stream), every(batch, part, num_parts))
            assert next(stream, None) is None


def test_parts_may_be_uneven(split: Split) -> None:
    stream = loader(split, batch_size=10, parts=(0, 1, 2, 3), num_parts=4).epoch(0)
    assert [len(next(stream).labels) for _ in range(5)] == [3, 3, 2, 2, 3]


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(AUGMENT)))
def test_an_image_does_not_depend_on_the_size_of_the_batch(
    split: Split, data: st.DataObject, name: str
) -> None:
    """Nor on where a run began, or how its batches were shared."""
    few = Split(split.images[:90], split.labels[:90])
    (whole,) = loader(few, name, batch_size=90).epoch(2)
    size = data.draw(st.integers(1, 30))
    num_parts = data.draw(st.integers(1, size))
    first = data.draw(st.integers(0, 90 // size - 1))
    stream = loader(few, name, batch_size=size, parts=range(num_parts), num_parts=num_parts).epoch(
        2, first
    )
    for step in range(first, 90 // size):
        rows = slice(step * size, (step + 1) * size)
        mix = whole.mix and Mix(whole.mix.labels[rows], whole.mix.share[rows])
        batch = Batch(whole.images[rows], whole.labels[rows], mix)
        for part in range(num_parts):
            assert same(next(stream), every(batch, part, num_parts))


def test_a_partner_is_mixed_in_as_it_is_augmented_itself(split: Split) -> None:
    """Cutmix's boxes show it: outside the image itself, inside another row of this epoch."""
    base = AugmentConfig(flip=True, translate=1)
    few = Split(split.images[:50], split.labels[:50])
    (plain,) = TrainLoader(few, 50, base, seed=1).epoch(0)
    mixed_config = base.model_copy(update={"mixup": 1.0})
    (mixed,) = TrainLoader(few, 50, mixed_config, seed=1).epoch(0)
    assert mixed.mix is not None
    assert torch.equal(mixed.labels, plain.labels)
    for image, own, label, share in zip(
        mixed.images, plain.images, mixed.mix.labels, mixed.mix.share, strict=True
    ):
        blends = torch.floor(own * share + plain.images * (1 - share) + 0.5).to(torch.uint8)
        found = (blends == image).flatten(1).all(1)
        assert bool((plain.labels[found] == label).any())


def test_evaluation_does_not_depend_on_the_number_of_workers(split: Split) -> None:
    whole = list(eval_batches(split, 100))
    assert [len(batch.labels) for batch in whole] == [100] * 17 + [97]
    assert np.array_equal(torch.cat([batch.images for batch in whole]).numpy(), split.images)
    assert np.array_equal(torch.cat([batch.labels for batch in whole]).numpy(), split.labels)
    for world in (2, 3, 30):
        for rank in range(world):
            own = list(eval_batches(split, 100, rank=rank, world=world))
            assert all(same(a, b) for a, b in zip(own, whole[rank::world], strict=True))


@pytest.mark.filterwarnings("error")
def test_mapped_pixels_are_copied_before_they_are_changed(split: Split) -> None:
    images = split.images.copy()
    images.flags.writeable = False
    mapped = Split(images, split.labels)
    for name in AUGMENT:
        assert len(list(loader(mapped, name, batch_size=256).epoch(0))) == 7
    assert len(list(eval_batches(mapped, 256))) == 8
    assert np.array_equal(images, split.images)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_one_image_cannot_be_mixed(split: Split, name: str) -> None:
    one = Split(split.images[:1], split.labels[:1])
    (batch,) = TrainLoader(one, 1, AugmentConfig(flip=True, translate=2), seed=0).epoch(0)
    assert batch.images.shape == (1, 1, 8, 8)
    config = AugmentConfig.model_validate({name: 0.5})
    with pytest.raises(ConfigError, match=f"augment.{name}=0.5 needs a training split of two"):
        TrainLoader(one, 1, config, seed=0)


def test_a_shift_larger_than_the_images_is_refused(split: Split) -> None:
    with pytest.raises(ConfigError, match=r"augment.translate=8: at most 7 for images of 8x8"):
        TrainLoader(split, 64, AugmentConfig(translate=8), seed=0)


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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"train": 70, "val": 23})


def photo_loader(
    photos: Dataset, *, threads: int = 2, parts: Sequence[int] = (0,), num_parts: int = 1
) -> TrainLoader:
    config = AugmentConfig(random_resized_crop=0.3, flip=True, mixup=1.0)
    train = photos.split("train")
    return TrainLoader(train, 16, config, seed=3, parts=parts, num_parts=num_parts, threads=threads)


def test_whichever_thread_decodes_the_batches_are_the_same(photos: Dataset) -> None:
    alone = list(photo_loader(photos, threads=1).epoch(2))
    assert len(alone) == 70 // 16
    many = list(photo_loader(photos, threads=5).epoch(2))
    assert all(same(a, b) for a, b in zip(alone, many, strict=True))
    rest = list(photo_loader(photos).epoch(2, 3))
    assert all(same(a, b) for a, b in zip(rest, alone[3:], strict=True))
    for part in range(2):
        half = photo_loader(photos, parts=[part], num_parts=2).epoch(2)
        assert all(same(a, every(b, part, 2)) for a, b in zip(half, alone, strict=True))
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


@pytest.mark.parametrize("changes", [{"translate": 4}, {"random_resized_crop": 0.3}, {"mixup": 1}])
def test_a_row_that_comes_again_is_augmented_otherwise(changes: dict[str, Any]) -> None:
    # One image of the second class, which comes 32 times.
    rng = np.random.default_rng(0)
    uneven = Split(rng.integers(0, 256, (64, 1, 9, 9), np.uint8), np.arange(64) // 63)
    loader = TrainLoader(uneven, 64, AugmentConfig(**changes), sampling="balanced", seed=0)
    (batch,) = loader.epoch(0)
    repeats = batch.images[batch.labels == 1]
    assert len(repeats) == 32
    # Half of its partners are itself, with which it is what it was.
    assert len(repeats.unique(dim=0)) > 8


@pytest.mark.parametrize("world", [1, 3])
def test_encoded_images_are_evaluated_once_and_in_order(photos: Dataset, world: int) -> None:
    val = photos.split("val")
    images = val.take(slice(None))
    for rank in range(world):
        for number, batch in enumerate(eval_batches(val, 4, rank=rank, world=world, threads=2)):
            rows = slice(4 * (rank + number * world), 4 * (rank + number * world) + 4)
            assert np.array_equal(batch.images.numpy(), images[rows])
            assert np.array_equal(batch.labels.numpy(), val.labels[rows])
        assert rank + number * world > 5 - world


def test_a_damaged_image_ends_the_epoch_where_it_stands(tmp_path: Path) -> None:
    dataset = write_photos(tmp_path / "photos", {"train": 48}, train_replaced={20: b"no image"})
    config = AugmentConfig(random_resized_crop=0.3)
    order = epoch_order(dataset.split("train").labels, "shuffle", seed=3, epoch=0)
    step = int(np.flatnonzero(order == 20)[0]) // 16
    batches = TrainLoader(dataset.split("train"), 16, config, seed=3, threads=2).epoch(0)
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
from train.data.loader import TrainLoader, eval_batches

def private():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

def peak(path):
    train = Dataset.open(Path(path)).split("train")
    loader = TrainLoader(train, 32, AugmentConfig(random_resized_crop=0.3), seed=0, threads=2)
    trained = max(private() for batch in loader.epoch(0))
    return max(trained, max(private() for batch in eval_batches(train, 32, threads=2)))

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
