"""Adding images to a data set: the next version, of which the old images keep their splits."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingested import Listener, everything
from pictures import write_class_folders
from PIL import Image

from cluster.dataset import SPLITS, Dataset, dataset_versions
from cluster.errors import DataError, NotFoundError
from cluster.store import Folder, Store
from train.data.duplicates import read_checks
from train.data.ingest import ingest
from train.data.options import IngestOptions
from train.data.sources.recognize import read_source


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_images_are_added_and_stay_in_their_splits(
    tmp_path: Path, store: Store, storage: Any
) -> None:
    folder = write_class_folders(tmp_path / "pets", per_class=20)
    options = IngestOptions(storage=storage)
    first = ingest(store, read_source(str(folder)), "pets", options)
    # The folder has grown, as folders do: what is known already is not added again.
    write_class_folders(folder, per_class=20, first=5000)
    adding = IngestOptions(append=True)
    second = ingest(store, read_source(str(folder)), "pets", adding)
    second.verify()
    assert second.reference == "pets@2"
    assert (second.meta.parent, second.meta.parent_digest) == ("pets@1", first.meta.digest)
    assert second.meta.storage == storage
    for split in SPLITS:
        old, new = first.split(split), second.split(split)
        assert np.array_equal(new.take(slice(len(old))), old.take(slice(None)))
        assert np.array_equal(new.labels[: len(old)], old.labels)
        assert len(old) < len(new)
    assert len({bytes(image) for image in everything(second)}) == 80
    scaled = second.split("train").take(slice(None)) / 255
    assert second.meta.statistics.mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-9)
    assert second.meta.statistics.std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-9)
    assert second.meta.normalization == first.meta.normalization
    checks = read_checks(Folder(second.path))
    assert checks is not None
    assert checks.already_there == 40
    assert checks.exact.total == 0
    listener = Listener()
    again = ingest(store, read_source(str(folder)), "pets", adding, watcher=listener)
    assert again.reference == "pets@2"
    assert listener.said[-1] == "pets@2 has all of these images already"


@pytest.mark.parametrize("added", [0, 10])
def test_what_is_there_under_another_class_is_told(
    tmp_path: Path, store: Store, added: int
) -> None:
    ingest(store, read_source(str(write_class_folders(tmp_path / "pets", per_class=12))), "pets")
    # Three dogs turn out to be cats; a cat and a dog come again.
    more = write_class_folders(tmp_path / "more", per_class=added, first=7000)
    for number in range(3):
        name = f"{1000 + number}.png"
        (more / "cat" / name).write_bytes((tmp_path / "pets" / "dog" / name).read_bytes())
    for name in ("cat/0000.png", "dog/1009.png"):
        (more / name).write_bytes((tmp_path / "pets" / name).read_bytes())
    listener = Listener()
    dataset = ingest(
        store, read_source(str(more)), "pets", IngestOptions(append=True), watcher=listener
    )
    if not added:
        assert dataset.reference == "pets@1"
        assert listener.said[-1].startswith("warning: 3 of them under another class, such as ")
        assert listener.said[-1].endswith(" (dog) = cat/1000.png (cat)")
        return
    checks = read_checks(Folder(dataset.path))
    assert checks is not None
    assert (checks.already_there, checks.relabelled) == (5, 3)
    assert [here for _, here in checks.relabelled_examples] == [
        f"cat/{1000 + number}.png (cat)" for number in range(3)
    ]
    for there, here in checks.relabelled_examples:
        found = re.fullmatch(r"(train|val|test): pets@1 row (\d+) \(dog\)", there)
        assert found is not None
        split: Any = found[1]
        image = Dataset.find(store, "pets@1").split(split).take(np.array([int(found[2])]))[0]
        with Image.open(more / here.removesuffix(" (cat)")) as file:
            assert np.array_equal(image, np.asarray(file).transpose(2, 0, 1))


def test_files_of_the_version_added_to_are_shared(tmp_path: Path, store: Store) -> None:
    folder = write_class_folders(tmp_path / "pets", per_class=20)
    first = ingest(store, read_source(str(folder)), "pets", IngestOptions(storage="encoded"))
    more = write_class_folders(tmp_path / "more", ("dog",), per_class=10, first=7000)
    write_class_folders(tmp_path / "more", ("cat",), per_class=1, first=8000)
    second = ingest(store, read_source(str(more)), "pets", IngestOptions(append=True))
    second.verify()
    old, new = (dataset.meta.splits["train"].shards for dataset in (first, second))
    assert new[: len(old)] == old
    assert [shard.file for shard in new] == ["train-00000.arrow", "train-00001.arrow"]
    for shard in old:
        assert os.path.samefile(first.path / shard.file, second.path / shard.file)
    # Data sets of before there were fingerprints can be added to as well.
    (second.path / "fingerprints.arrow").unlink()
    third = ingest(store, read_source(str(folder)), "pets", IngestOptions(append=True))
    assert third.reference == "pets@2"


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        ({}, ("cat", "cow"), "more has class cow, which pets@1 lacks; its classes are cat, dog"),
        ({"size": (4, 4)}, ("cat", "dog"), "--size: pets@1 has 8x8, .*; leave out --size"),
        ({"channels": 1}, ("cat", "dog"), "--channels: pets@1 has 3, and so has what is added"),
        ({"resize": "pad"}, ("cat", "dog"), "--resize: pets@1 has crop"),
        ({"storage": "encoded"}, ("cat", "dog"), "--storage encoded: pets@1 keeps pixels, and so"),
    ],
)
def test_what_does_not_fit_is_not_added(
    tmp_path: Path, store: Store, options: dict[str, Any], classes: tuple[str, ...], message: str
) -> None:
    ingest(store, read_source(str(write_class_folders(tmp_path / "pets"))), "pets")
    more = read_source(str(write_class_folders(tmp_path / "more", classes, first=9000)))
    with pytest.raises(DataError, match=message):
        ingest(store, more, "pets", IngestOptions(append=True, **options))
    assert dataset_versions(store, "pets") == [1]
    with pytest.raises(NotFoundError, match="--append: there is no data set 'other' to add to"):
        ingest(store, more, "other", IngestOptions(append=True))
