"""Splitting and writing data sets."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from cluster.dataset import Dataset, Split
from cluster.errors import DataError, UserError
from cluster.store import Store
from train.data.ingest import CONTACT_SHEET, channel_statistics, ingest, split_source
from train.data.sources import Source, read_source


@pytest.fixture(scope="module")
def digits() -> Source:
    return read_source("digits", root=None, class_names=None)


def make_source(labels: list[int], num_classes: int) -> Source:
    rows = len(labels)
    images = np.arange(rows * 4, dtype=np.uint8).reshape(rows, 1, 2, 2)
    names = tuple(f"class{index}" for index in range(num_classes))
    return Source("made", names, {"train": Split(images, np.array(labels, np.int64))})


def test_splits_hold_every_image_once_and_every_class_in_proportion(digits: Source) -> None:
    splits = split_source(digits, 0.1, None, seed=3)
    whole = digits.parts["train"]
    rows = np.concatenate([part.images for part in splits.values()]).reshape(-1, 64)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole.images.reshape(-1, 64)))
    counts = np.bincount(whole.labels)
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        got = np.bincount(splits[name].labels)  # type: ignore[index]
        assert np.abs(got - counts * share).max() <= 1.5


def test_splits_depend_on_the_seed_alone(digits: Source) -> None:
    first, again, other = (split_source(digits, 0.1, 0.2, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first["test"].images, again["test"].images)
    assert not np.array_equal(first["test"].images, other["test"].images)


def test_a_test_split_of_the_source_is_kept(digits: Source) -> None:
    part = digits.parts["train"]
    source = Source(
        "two parts",
        digits.class_names,
        {
            "train": Split(part.images[:1500], part.labels[:1500]),
            "test": Split(part.images[1500:], part.labels[1500:]),
        },
    )
    splits = split_source(source, 0.1, None, seed=0)
    assert np.array_equal(splits["test"].images, part.images[1500:])
    with pytest.raises(DataError, match="brings a test split of its own"):
        split_source(source, 0.1, 0.2, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0.0, None), (1.0, None), (0.5, 0.5), (0.1, 1.2)])
def test_impossible_fractions_are_refused(digits: Source, val: float, test: float | None) -> None:
    with pytest.raises(DataError, match="fraction"):
        split_source(digits, val, test, seed=0)


def test_statistics_are_those_of_numpy(digits: Source) -> None:
    images = np.repeat(digits.parts["train"].images, 3, axis=1)
    images[:, 1] = 255 - images[:, 1]
    found = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert found.mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert found.std == pytest.approx(scaled.std((0, 2, 3)))


def test_what_was_ingested_is_what_is_read(digits: Source, store: Store) -> None:
    dataset = ingest(store, digits, "digits", seed=5)
    assert dataset.reference == "digits@1"
    dataset.verify()
    for name, part in split_source(digits, 0.1, None, seed=5).items():
        read = Dataset.find(store, "digits").split(name)
        assert np.array_equal(read.images, part.images)
        assert np.array_equal(read.labels, part.labels)
        assert not read.images.flags.owndata
        assert not read.images.flags.writeable
    with Image.open(dataset.path / CONTACT_SHEET) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height >= 10 * 48


def test_the_same_content_makes_no_new_version(digits: Source, store: Store) -> None:
    first = ingest(store, digits, "digits")
    assert ingest(store, digits, "digits").reference == first.reference
    other = ingest(store, digits, "digits", seed=1)
    assert other.reference == "digits@2"
    assert other.meta.digest != first.meta.digest
    assert ingest(store, digits, "twin").meta.digest == first.meta.digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (make_source([0] * 20, 1), "one class"),
        (make_source([0] * 20 + [1] * 2, 2), "class 'class1' has no image in split"),
        (make_source([0] * 20 + [2] * 20, 3), "class 'class1' has no image in split train"),
    ],
)
def test_too_few_images_are_refused(source: Source, message: str, store: Store) -> None:
    with pytest.raises(DataError, match=message):
        ingest(store, source, "bad")
    assert not (store.datasets / "bad").exists()


def test_a_failure_leaves_nothing(
    digits: Source, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.data.ingest.write_contact_sheet", fail)
    with pytest.raises(KeyboardInterrupt):
        ingest(store, digits, "digits")
    assert list((store.datasets / "digits").iterdir()) == []


def test_a_name_must_be_usable_everywhere(digits: Source, store: Store) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        ingest(store, digits, "../digits")


def test_progress_is_told(digits: Source, store: Store) -> None:
    said: list[str] = []
    tell: Callable[[str], None] = said.append
    ingest(store, digits, "digits", progress=tell)
    assert said[0] == "writing train: 1259 images"
