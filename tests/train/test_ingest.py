"""From a source to a data set: what is kept is what a person sees, and nothing else is."""

import threading
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
from ingested import Listener, everything, leftovers
from odd_files import odd_files
from pictures import encode, picture, write_class_folders, write_parquet
from PIL import Image

from cluster.dataset import SPLITS, Dataset, EncodedSplit, Split, dataset_versions
from cluster.errors import DataError
from cluster.images import ImageSpec
from cluster.store import Folder, Store
from train.data import ingest as ingest_module
from train.data.contact_sheet import CONTACT_SHEET
from train.data.duplicates import read_checks
from train.data.ingest import ingest
from train.data.options import IngestOptions, Silent, parse_size
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source
from train.data.splitting import assign_splits
from train.data.workers import Workers

T = TypeVar("T")
R = TypeVar("R")


@pytest.fixture(scope="module")
def digits() -> Source:
    return read_source("digits")


def test_what_was_ingested_is_what_is_read(digits: Source, store: Store) -> None:
    dataset = ingest(store, digits, "digits", IngestOptions(seed=5))
    assert dataset.reference == "digits@1"
    dataset.verify()
    part = digits.parts["train"]
    assert isinstance(part.pictures, PixelPictures)
    codes = assign_splits(digits, None, 5)["train"]
    for code, name in enumerate(SPLITS):
        read = Dataset.find(store, "digits").split(name)
        assert isinstance(read, Split)
        assert np.array_equal(read.images, part.pictures.images[codes == code])
        assert np.array_equal(read.labels, part.labels[codes == code])
        assert not read.images.flags.owndata
        assert not read.images.flags.writeable
    with Image.open(dataset.path / CONTACT_SHEET) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height >= 10 * 48
    assert leftovers(store) == []


def test_statistics_are_those_of_numpy(tmp_path: Path, store: Store) -> None:
    dataset = ingest(store, read_source(str(write_class_folders(tmp_path / "pets"))), "pets")
    scaled = dataset.split("train").take(slice(None)) / 255
    assert dataset.meta.statistics.mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-12)
    assert dataset.meta.statistics.std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-12)
    assert dataset.meta.normalization == dataset.meta.statistics


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_odd_files_become_what_a_person_sees(
    tmp_path: Path, store: Store, storage: Literal["pixels", "encoded"]
) -> None:
    write_class_folders(tmp_path / "all" / "test", ("odd", "plain"), 2)
    write_class_folders(tmp_path / "all" / "val", ("odd", "plain"), 2)
    write_class_folders(tmp_path / "all" / "train", ("plain",), 2)
    seen = odd_files(tmp_path / "all" / "train" / "odd")
    source = read_source(str(tmp_path / "all"))
    dataset = ingest(store, source, "odd", IngestOptions(size=(8, 8), storage=storage))
    train = dataset.split("train")
    assert isinstance(train, EncodedSplit if storage == "encoded" else Split)
    for row, name in enumerate(sorted(seen)):
        expected = np.asarray(seen[name].convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(train.take(np.array([row]))[0], expected, err_msg=name)


def test_the_same_content_makes_no_new_version(digits: Source, store: Store) -> None:
    first, listener = ingest(store, digits, "digits"), Listener()
    assert ingest(store, digits, "digits", watcher=listener).reference == first.reference
    assert listener.said[-1] == "digits@1 holds the same content already"
    other = ingest(store, digits, "digits", IngestOptions(seed=1))
    assert other.reference == "digits@2"
    assert other.meta.digest != first.meta.digest
    assert ingest(store, digits, "twin").meta.digest == first.meta.digest


def test_another_normalization_makes_a_new_version(digits: Source, store: Store) -> None:
    first = ingest(store, digits, "digits")
    half = IngestOptions(normalize="half")
    second = ingest(store, digits, "digits", half)
    assert second.reference == "digits@2"
    assert second.meta.digest == first.meta.digest
    assert second.meta.normalization.mean == (0.5,)
    assert ingest(store, digits, "digits", half).reference == "digits@2"
    listener = Listener()
    adding = IngestOptions(append=True)
    assert ingest(store, digits, "digits", adding, watcher=listener).reference == "digits@2"
    assert listener.said[-1] == "digits@2 has all of these images already"
    adding = IngestOptions(append=True, normalize="dataset")
    third = ingest(store, digits, "digits", adding)
    third.verify()
    assert (third.reference, third.meta.parent) == ("digits@3", "digits@2")
    assert third.meta.normalization == first.meta.statistics
    assert np.array_equal(everything(third), everything(first))


def test_progress_is_told(digits: Source, store: Store) -> None:
    listener = Listener()
    ingest(store, digits, "digits", watcher=listener)
    assert "writing train: 1259 images" in listener.said
    assert listener.steps[-1] == ("decoding", 1797, 1797)


def test_parquet_folder_and_pixels_of_the_same_images_are_the_same_data(
    tmp_path: Path, store: Store
) -> None:
    folder = write_class_folders(tmp_path / "pets", per_class=12)
    files = sorted(folder.rglob("*.png"))
    blobs = [file.read_bytes() for file in files]
    write_parquet(tmp_path / "p.parquet", blobs, [0] * 12 + [1] * 12)
    images = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
    part = Part(PixelPictures(images, "image"), np.repeat(np.arange(2), 12))
    sources = [
        read_source(str(folder)),
        read_source(str(tmp_path / "p.parquet")),
        Source("made", ("cat", "dog"), {"train": part}),
    ]
    digests = {ingest(store, source, f"s{i}").meta.digest for i, source in enumerate(sources)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 8, 8)),
        ({"size": (4, 6)}, (3, 6, 4)),
        ({"channels": 1}, (1, 8, 8)),
        ({"size": (16, 16), "channels": 1, "resize": "pad"}, (1, 16, 16)),
    ],
)
@pytest.mark.parametrize("made", ["files", "pixels"])
def test_size_and_channels(
    tmp_path: Path, store: Store, options: dict[str, Any], shape: tuple[int, ...], made: str
) -> None:
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    if made == "pixels":
        # The same images, decoded by hand: they are fitted in the same way.
        files = [tmp_path / "pets" / path for path in sorted((tmp_path / "pets").rglob("*.png"))]
        images = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
        labels = source.parts["train"].labels
        source = Source("made", ("cat", "dog"), {"train": Part(PixelPictures(images, ""), labels)})
    dataset = ingest(store, source, "pets", IngestOptions(**options))
    assert dataset.meta.image.shape == shape
    assert dataset.meta.image.resize == options.get("resize", "crop")
    assert everything(dataset).shape == (20, *shape)


def test_gray_files_are_kept_gray(tmp_path: Path, store: Store) -> None:
    folder = write_class_folders(tmp_path / "pets", mode="L")
    assert ingest(store, read_source(str(folder)), "pets").meta.image.channels == 1
    (folder / "cat" / "color.png").write_bytes(encode(picture(0)))
    assert ingest(store, read_source(str(folder)), "pets").meta.image.channels == 3


class Others(Workers):
    """Processes that are there from the beginning."""

    def __init__(self) -> None:
        super().__init__(2, patience_s=0.0)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R]:
        while self._running_pool(function, 0.0) is None:
            time.sleep(0.01)
        return super().map(function, tasks)


@pytest.mark.parametrize("workers", [Others, partial(Workers, 1)])
def test_one_that_is_unlike_the_first_is_noticed_wherever_it_is(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, workers: object
) -> None:
    monkeypatch.setattr(ingest_module, "Workers", workers)
    folder = write_class_folders(tmp_path / "pets", per_class=1000, mode="L")
    (folder / "dog" / "last.png").write_bytes(encode(picture(9999, mode="RGB")))
    source = read_source(str(folder))
    dataset = ingest(store, source, "found")
    assert dataset.meta.image == ImageSpec(height=8, width=8, channels=3)
    told = ingest(store, source, "told", IngestOptions(size=(8, 8), channels=3))
    assert dataset.meta.digest == told.meta.digest
    dataset.verify()
    (folder / "dog" / "last.png").write_bytes(encode(picture(9999, (9, 8))))
    with pytest.raises(DataError, match=r"2 sizes: 8x8 \(2000\), 9x8 \(1\); choose"):
        ingest(store, source, "refused")
    (folder / "cat" / "0000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="of 2 sizes"):
        ingest(store, source, "refused")
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [("half", (0.5,) * 3, (0.5,) * 3), ("none", (0.0,) * 3, (1.0,) * 3)],
)
def test_normalization(tmp_path: Path, store: Store, normalize: Any, mean: Any, std: Any) -> None:
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    meta = ingest(store, source, "pets", IngestOptions(normalize=normalize)).meta
    assert (meta.normalization.mean, meta.normalization.std) == (mean, std)
    assert meta.statistics.mean == pytest.approx((0.5,) * 3, abs=0.05)


def test_large_data_stays_encoded(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.sizing._PIXELS_LIMIT", 20 * 3 * 8 * 8 - 1)
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    dataset = ingest(store, source, "pets")
    assert dataset.meta.storage == "encoded"
    train = dataset.split("train")
    assert isinstance(train, EncodedSplit)
    stored = {train.encoded(row) for row in range(len(train))}
    assert stored <= {file.read_bytes() for file in (tmp_path / "pets").rglob("*.png")}
    assert read_checks(Folder(dataset.path)) is not None
    few = ingest(store, source, "few", IngestOptions(size=(7, 8)))
    assert few.meta.storage == "pixels"


def test_two_at_once_write_two_versions(tmp_path: Path, store: Store) -> None:
    sources = [
        read_source(str(write_class_folders(tmp_path / str(number), first=5000 * number)))
        for number in range(2)
    ]
    ready = threading.Barrier(2)

    class Together(Silent):
        def say(self, text: str) -> None:
            if text.startswith("looking"):
                ready.wait(timeout=60)

    threads = [
        threading.Thread(
            target=ingest, args=(store, source, "pets"), kwargs={"watcher": Together()}
        )
        for source in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dataset_versions(store, "pets") == [1, 2]
    versions = [Dataset.find(store, f"pets@{version}") for version in (1, 2)]
    assert [dataset.meta.version for dataset in versions] == [1, 2]
    assert versions[0].meta.digest != versions[1].meta.digest


def test_sizes_are_read() -> None:
    assert parse_size("32") == (32, 32)
    assert parse_size("320X240") == (320, 240)


def test_spec_is_what_a_server_uses(tmp_path: Path, store: Store) -> None:
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    dataset = ingest(store, source, "pets", IngestOptions(size=(6, 4), resize="stretch"))
    assert dataset.meta.image == ImageSpec(height=4, width=6, channels=3, resize="stretch")
