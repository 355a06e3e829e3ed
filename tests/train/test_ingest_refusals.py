"""What ingest refuses, and that nothing is left of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingested import everything, leftovers
from pictures import encode, picture, write_class_folders
from PIL import Image

from cluster.dataset import dataset_names
from cluster.errors import ConfigError, DataError, UserError
from cluster.store import Folder, Store
from train.data.duplicates import read_checks
from train.data.gathering import BadImagesError
from train.data.ingest import ingest
from train.data.options import IngestOptions, parse_size
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source


@pytest.fixture(scope="module")
def digits() -> Source:
    return read_source("digits")


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
    # The first one is larger than what a model takes, which is not what is wrong.
    (folder / "cat" / "0.png").write_bytes(encode(picture(0, (4097, 2))))
    with pytest.raises(DataError, match="images of 3 sizes"):
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


@pytest.mark.parametrize("text", ["", "0", "x", "32x", "1x2x3", "5000", "-3", "3.5"])
def test_sizes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DataError, match="expected pixels from 1 to 4096"):
        parse_size(text)
