"""A data set is mapped, not read; its digest names what is in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import CLASS_NAMES, IMAGE, make_split, write_dataset

from cluster.dataset import (
    META_FILE,
    ChannelStatistics,
    Dataset,
    DatasetMeta,
    ImageSplit,
    Split,
    SplitName,
    content_digest,
    dataset_names,
    dataset_versions,
    write_meta,
    write_split,
)
from cluster.errors import DataError, NotFoundError
from cluster.store import Store


def pixels(dataset: Dataset, name: SplitName = "train") -> Split:
    split = dataset.split(name)
    assert isinstance(split, Split)
    return split


def test_round_trip(store: Store) -> None:
    dataset = write_dataset(store)
    for name, expected in (("train", make_split(20, 0)), ("test", make_split(7, 1))):
        split = pixels(dataset, name)  # type: ignore[arg-type]
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.take(np.array([3, 1])), expected.images[[3, 1]])
        assert split.images.shape == (len(split), *IMAGE.shape)
    assert sum(dataset.meta.splits["train"].class_counts) == 20
    assert dataset.reference == "pets@1"


def _mapped_file(array: np.ndarray[Any, Any]) -> str:
    """The file that an array's memory belongs to, as the kernel tells."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.split()[-1]
    raise AssertionError("no mapping holds that address")


def test_splits_are_views_of_the_file(store: Store) -> None:
    dataset = write_dataset(store)
    split = pixels(dataset)
    file = str(dataset.path / "train.arrow")
    assert _mapped_file(split.images) == file
    assert _mapped_file(split.labels) == file
    assert _mapped_file(split.take(slice(2, 5))) == file
    assert split.images.flags.c_contiguous


def test_splits_are_read_only(store: Store) -> None:
    split = pixels(write_dataset(store))
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        split.take(slice(0, 1))[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 0


def test_the_digest_names_the_content_and_nothing_else(store: Store) -> None:
    first = write_dataset(store, "a", 1, seed=0)
    same = write_dataset(store, "b", 2, seed=0)
    other = write_dataset(store, "a", 2, seed=5)
    assert first.meta.digest == same.meta.digest != other.meta.digest
    splits: dict[SplitName, ImageSplit] = {
        "train": first.split("train"),
        "test": first.split("test"),
    }
    assert content_digest(IMAGE, CLASS_NAMES, splits) == first.meta.digest
    assert content_digest(IMAGE, ("dog", "cat"), splits) != first.meta.digest


def test_the_digest_does_not_change_between_releases() -> None:
    images = np.arange(2 * 45, dtype=np.uint8).reshape(2, *IMAGE.shape)
    split = Split(images, np.array([0, 1]))
    assert content_digest(IMAGE, CLASS_NAMES, {"train": split}) == (
        "b6abd79d24d4cf6490f9af295b4d222bbc39feb6e1e270c72a42056978814752"
    )


def test_one_row_and_a_memory_map(tmp_path: Path) -> None:
    images = np.memmap(tmp_path / "raw", np.uint8, "w+", shape=(1, *IMAGE.shape))
    images[:] = 9
    info = write_split(tmp_path, "train", images, np.array([1]), 3)
    assert info.rows == 1
    assert info.class_counts == (0, 1, 0)


def test_versions(store: Store) -> None:
    assert dataset_versions(store, "pets") == []
    for version in (1, 2, 10):
        write_dataset(store, "pets", version)
    (store.datasets / "pets" / ".11.abc.draft").mkdir()
    assert dataset_versions(store, "pets") == [1, 2, 10]
    assert list(dataset_names(store)) == ["pets"]
    assert Dataset.find(store, "pets").meta.version == 10
    assert Dataset.find(store, "pets@2").meta.version == 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("birds", "no data set 'birds' .*there are: pets; make one with: python -m train ingest"),
        ("pets@7", "data set 'pets' has no version 7; there are: 1"),
        ("", "no data set ''"),
        ("../datasets/pets", "no data set"),
    ],
)
def test_references_that_lead_nowhere(store: Store, reference: str, message: str) -> None:
    write_dataset(store)
    with pytest.raises(NotFoundError, match=message):
        Dataset.find(store, reference)


def test_a_missing_split(store: Store) -> None:
    with pytest.raises(DataError, match="pets@1 has no split 'val'"):
        write_dataset(store).split("val")


def test_a_changed_byte_is_found_when_asked(store: Store) -> None:
    dataset = write_dataset(store)
    dataset.verify()
    file = dataset.path / "test.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"test\.arrow was changed since it was ingested"):
        dataset.verify()


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"x" * 100])
def test_a_damaged_file(store: Store, content: bytes) -> None:
    dataset = write_dataset(store)
    (dataset.path / "train.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.arrow is damaged"):
        dataset.split("train")


def test_a_removed_file(store: Store) -> None:
    dataset = write_dataset(store)
    (dataset.path / "train.arrow").unlink()
    with pytest.raises(DataError, match=r"train\.arrow is damaged"):
        dataset.split("train")


def test_fewer_rows_than_recorded(store: Store) -> None:
    dataset = write_dataset(store)
    split = make_split(3)
    write_split(dataset.path, "train", split.images, split.labels, 2)
    with pytest.raises(DataError, match=r"holds 3 rows; meta.json says 20"):
        dataset.split("train")


def test_another_schema_version(store: Store) -> None:
    dataset = write_dataset(store)
    file = dataset.path / META_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 9}))
    with pytest.raises(DataError, match=r"schema version 9; .*ingest the source again"):
        Dataset.open(dataset.path)


def test_a_data_set_of_the_first_schema_version_still_opens(store: Store) -> None:
    dataset = write_dataset(store)
    file = dataset.path / META_FILE
    values = json.loads(file.read_text())
    for name in ("storage", "normalization", "parent", "parent_digest"):
        del values[name]
    for split in values["splits"].values():
        (shard,) = split.pop("shards")
        split |= {"file": shard["file"], "sha256": shard["sha256"]}
    file.write_text(json.dumps({**values, "schema_version": 1}))
    old = Dataset.open(dataset.path)
    assert old.meta.normalization == old.meta.statistics == dataset.meta.statistics
    assert old.meta.storage == "pixels"
    assert old.meta.parent is None
    assert old.meta.digest == dataset.meta.digest
    np.testing.assert_array_equal(pixels(old).images, pixels(dataset).images)
    old.verify()


def test_a_normalization_of_its_own(store: Store) -> None:
    dataset = write_dataset(store)
    values = dataset.meta.model_dump(mode="json")
    parents = ChannelStatistics(mean=(0.1,) * 3, std=(0.3,) * 3)
    values |= {"normalization": parents.model_dump(mode="json"), "parent": "pets@1"}
    write_meta(dataset.path, DatasetMeta.decode(values, "test"))
    assert Dataset.open(dataset.path).meta.normalization == parents
    assert Dataset.open(dataset.path).meta.statistics == dataset.meta.statistics


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a data set"):
        Dataset.open(tmp_path)
