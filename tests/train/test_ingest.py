"""From a source to a data set: what is kept is what a person sees, and nothing else is."""

import os
import re
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from harness import run_command
from odd_files import odd_files
from pictures import encode, picture, pngs, write_class_folders, write_parquet
from PIL import Image

from cluster.dataset import SPLITS, Dataset, EncodedSplit, Split, dataset_names, dataset_versions
from cluster.errors import ConfigError, DataError, NotFoundError, UserError
from cluster.images import ImageSpec
from cluster.store import Folder, Store
from train.data.contact_sheet import CONTACT_SHEET
from train.data.duplicates import read_checks
from train.data.gathering import BadImagesError
from train.data.ingest import ingest
from train.data.options import IngestOptions, Silent, parse_size
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source
from train.data.splitting import assign_splits

SplitName = Literal["train", "val", "test"]


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


@pytest.fixture(scope="module")
def digits() -> Source:
    return read_source("digits")


def everything(dataset: Dataset) -> npt.NDArray[np.uint8]:
    return np.concatenate([dataset.split(split).take(slice(None)) for split in SPLITS])


def names_of(dataset: Dataset, split: SplitName) -> set[bytes]:
    return {bytes(image) for image in dataset.split(split).take(slice(None))}


def leftovers(store: Store) -> list[str]:
    return [path.name for path in store.root.rglob("*") if path.name.startswith(".")]


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


def test_images_of_several_sizes_need_one(tmp_path: Path, store: Store) -> None:
    folder = write_class_folders(tmp_path / "pets", size=(12, 8))
    (folder / "cat" / "x.png").write_bytes(encode(picture(0, (9, 20))))
    # Lies on its side: a person sees 12x8 of it.
    exif = Image.Exif()
    exif[0x0112] = 8
    (folder / "cat" / "y.jpg").write_bytes(encode(picture(0, (8, 12)), "JPEG", exif=exif))
    message = r"pets holds images of 2 sizes: 12x8 \(21\), 9x20 \(1\); choose one .* --size 8"
    with pytest.raises(DataError, match=message):
        ingest(store, read_source(str(folder)), "pets")
    assert list(dataset_names(store)) == leftovers(store) == []


def with_bad_files(folder: Path) -> Path:
    write_class_folders(folder, per_class=20)
    (folder / "cat" / "0003.png").write_bytes(b"no image")
    broken = (folder / "dog" / "1004.png").read_bytes()
    (folder / "dog" / "1004.png").write_bytes(broken[: len(broken) // 2])
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    return folder


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_bad_files_stop_it_or_are_left_out(tmp_path: Path, store: Store, storage: Any) -> None:
    folder = with_bad_files(tmp_path / "pets")
    source = read_source(str(folder))
    with pytest.raises(BadImagesError) as error:
        ingest(store, source, "pets", IngestOptions(storage=storage))
    text = str(error.value)
    assert text.startswith("3 of 41 images cannot be used: cat/0003.png (not an image; allowed: ")
    assert "dog/1004.png (damaged image: " in text
    assert "dog/gone.png (No such file or directory); mend them, or leave" in text
    assert [row["image"] for row in error.value.details["bad"]] == [
        *("cat/0003.png", "dog/1004.png", "dog/gone.png")
    ]
    assert list(dataset_names(store)) == leftovers(store) == []
    kept = ingest(store, source, "pets", IngestOptions(on_bad="skip", storage=storage))
    kept.verify()
    for file in ("cat/0003.png", "dog/1004.png", "dog/gone.png"):
        (folder / file).unlink()
    good = {
        bytes(np.asarray(Image.open(file)).transpose(2, 0, 1)) for file in folder.rglob("*.png")
    }
    assert {bytes(image) for image in everything(kept)} == good
    assert len(everything(kept)) == 38
    scaled = kept.split("train").take(slice(None)) / 255
    assert kept.meta.statistics.mean == pytest.approx(scaled.mean((0, 2, 3)))
    checks = read_checks(Folder(kept.path))
    assert checks is not None
    assert [name for name, _ in checks.skipped] == ["cat/0003.png", "dog/1004.png", "dog/gone.png"]


def test_many_bad_files_are_counted(tmp_path: Path, store: Store) -> None:
    folder = write_class_folders(tmp_path / "pets", per_class=30)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"x")
    # Without a size it is the headers that tell.
    for options in (IngestOptions(), IngestOptions(size=(8, 8), channels=3)):
        with pytest.raises(BadImagesError, match=r"^60 of 60 .* and 40 more; mend them") as error:
            ingest(store, read_source(str(folder)), "pets", options)
        assert len(error.value.details["bad"]) == 60


def test_a_path_that_no_file_can_have_is_a_bad_image(tmp_path: Path, store: Store) -> None:
    rows = [f"cat/{number:04}.png,cat\ndog/{1000 + number}.png,dog\n" for number in range(10)]
    write_class_folders(tmp_path)
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(rows) + "a\0b.png,cat\n")
    for options in (IngestOptions(), IngestOptions(size=(8, 8), channels=3)):
        with pytest.raises(BadImagesError, match=r"^1 of 21 .*: embedded null byte"):
            ingest(store, read_source(str(tmp_path / "t.csv")), "pets", options)


def make_source(labels: list[int], num_classes: int) -> Source:
    images = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 1, 2, 2)
    part = Part(PixelPictures(images, "image"), np.array(labels, np.int64))
    return Source("made", tuple(f"class{n}" for n in range(num_classes)), {"train": part})


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
    assert list(dataset_names(store)) == leftovers(store) == []


def test_a_failure_leaves_nothing(
    digits: Source, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.data.ingest.write_contact_sheet", fail)
    with pytest.raises(KeyboardInterrupt):
        ingest(store, digits, "digits")
    assert list(dataset_names(store)) == leftovers(store) == []


def test_a_disk_without_room_is_told_before_the_work(
    digits: Source, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.ingest._ROOM_TO_SPARE", 2**60)
    with pytest.raises(
        ConfigError, match=r"MiB free and the data set needs .* RAYBRIDGE_STORE, or"
    ):
        ingest(store, digits, "digits")
    assert list(dataset_names(store)) == leftovers(store) == []


def test_a_folder_that_is_in_the_way_is_told(digits: Source, store: Store) -> None:
    ingest(store, digits, "digits")
    (store.datasets / "digits" / "2").mkdir()
    with pytest.raises(DataError, match=r"digits/2 holds no data set and is in the way; remove"):
        ingest(store, digits, "digits", IngestOptions(seed=1))
    assert leftovers(store) == []


def test_a_name_must_be_usable_everywhere(digits: Source, store: Store) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        ingest(store, digits, "../digits")


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


def test_encoded_images_are_read_no_more_than_needed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for their headers, once to decode them, once to keep them."""
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    pictures = source.parts["train"].pictures
    read: list[int] = []

    def chunks() -> Iterator[Any]:
        read.append(len(pictures))
        return type(pictures).chunks(pictures)

    monkeypatch.setitem(pictures.__dict__, "chunks", chunks)
    listener = Listener()
    dataset = ingest(store, source, "pets", IngestOptions(storage="encoded"), watcher=listener)
    dataset.verify()
    assert len(read) == 3
    assert listener.steps[-1] == ("writing", 20, 20)


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


def test_sizes_are_read() -> None:
    assert parse_size("32") == (32, 32)
    assert parse_size("320X240") == (320, 240)


@pytest.mark.parametrize("text", ["", "0", "x", "32x", "1x2x3", "5000", "-3", "3.5"])
def test_sizes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DataError, match="expected pixels from 1 to 4096"):
        parse_size(text)


def test_spec_is_what_a_server_uses(tmp_path: Path, store: Store) -> None:
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    dataset = ingest(store, source, "pets", IngestOptions(size=(6, 4), resize="stretch"))
    assert dataset.meta.image == ImageSpec(height=4, width=6, channels=3, resize="stretch")


def test_an_image_takes_some_200_bytes(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.workers.usable_cpus", lambda: 1)
    peaks = []
    for rows in (100, 5_000, 20_000):
        images = np.arange(rows * 4).reshape(-1, 1, 2, 2).astype(np.uint8)
        part = Part(PixelPictures(images, "image"), np.arange(rows) % 2)
        source = Source("made", ("cat", "dog"), {"train": part})
        tracemalloc.start()
        try:
            ingest(store, source, f"of-{rows}")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 15_000 < 230


MEASURE = """
import sys, threading
from pathlib import Path
from cluster.store import Store
from train.data.ingest import ingest
from train.data.options import IngestOptions, Silent
from train.data.sources.recognize import read_source

def private():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

class Peak(Silent):
    peak = 0
    def say(self, text): self.peak = max(self.peak, private())
    def advance(self, what, done, total): self.peak = max(self.peak, private())

def peak(name):
    watcher = Peak()
    options = IngestOptions(size=(64, 64), storage=sys.argv[2])
    ingest(Store(Path(sys.argv[1])), read_source(f"{name}.parquet"), name, options, watcher=watcher)
    return watcher.peak

peak("few")
print(peak("few"), peak("many"))
"""


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, storage: str) -> None:
    """1500 images and 6000, of 12 KiB of pixels each, in a process of its own."""
    blobs = pngs(6000, size=(16, 16))
    for name, rows in (("few", 1500), ("many", 6000)):
        file = write_parquet(tmp_path / f"{name}.parquet", blobs[:rows], [0, 1] * (rows // 2))
        # What Arrow knows of a thousand row groups takes more memory than the images.
        pq.write_table(pq.read_table(file), file, row_group_size=500)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "store"), storage]
    done = run_command(command, cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    few, many = (int(value) / 1024 for value in done.stdout.split())
    assert many - few < 25, "MiB, of 53 MiB of pixels"
