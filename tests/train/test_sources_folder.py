"""Folders of class folders."""

from pathlib import Path

import pytest
from pictures import encode, picture, write_class_folders

from cluster.errors import DataError
from train.data.sources.folder import read_class_folders
from train.data.sources.recognize import read_source


def test_classes_are_the_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ("dog", "cat"), per_class=3)
    (tmp_path / "cat" / "more").mkdir()
    (tmp_path / "cat" / "more" / "x.JPG").write_bytes(encode(picture(1), "JPEG"))
    source = read_source(str(tmp_path))
    part = source.parts["train"]
    assert source.class_names == ("cat", "dog")
    assert part.labels.tolist() == [0] * 4 + [1] * 3
    assert part.pictures.name(3) == "cat/more/x.JPG"
    (chunk,) = part.pictures.chunks()
    assert chunk[3] == tmp_path / "cat" / "more" / "x.JPG"


def test_numbered_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ("10", "9", "2"), per_class=1)
    assert read_source(str(tmp_path)).class_names == ("2", "9", "10")


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "Test")])
def test_folders_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_class_folders(tmp_path / name, per_class=number + 1)
    source = read_source(str(tmp_path))
    assert {split: len(part) for split, part in source.parts.items()} == {
        "test": 6,
        "train": 2,
        "val": 4,
    }


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ("test", "exam"), per_class=2)
    assert read_source(str(tmp_path)).class_names == ("exam", "test")


def test_what_systems_leave_is_passed_over_and_the_rest_is_told(tmp_path: Path) -> None:
    write_class_folders(tmp_path, per_class=2)
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / "photo.heic").touch()
    (tmp_path / "dog" / "notes.txt").touch()
    source = read_source(str(tmp_path))
    assert len(source) == 4
    assert source.notes == (
        "left out 2 files that are no images by their names (1 .heic, 1 .txt), "
        "such as cat/photo.heic",
    )


def loose_images(folder: Path) -> None:
    (folder / "a.png").touch()


def empty_class(folder: Path) -> None:
    write_class_folders(folder)
    (folder / "bird").mkdir()
    (folder / "bird" / "readme.md").touch()


def mixed(folder: Path) -> None:
    write_class_folders(folder / "train")
    write_class_folders(folder, ("cat",))


def twice(folder: Path) -> None:
    for name in ("train", "val", "dev"):
        write_class_folders(folder / name)


def other_classes(folder: Path) -> None:
    write_class_folders(folder / "train")
    write_class_folders(folder / "test", ("cat", "cow"))


def flat_test(folder: Path) -> None:
    write_class_folders(folder / "train")
    (folder / "test").mkdir()
    (folder / "test" / "1.png").touch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.touch, "holds no class folders; expected FOLDER/CLASS/IMAGE"),
        (loose_images, "holds images but no class folders"),
        (empty_class, "class folder bird holds no image"),
        (mixed, "holds cat beside train; it must hold either split folders alone or class folders"),
        (twice, "holds dev and val, which mean the same"),
        (other_classes, "test holds class folders that train lacks: cow"),
        (flat_test, "test holds images but no class folders"),
        (lambda folder: write_class_folders(folder, ("Cat", "cat")), "'Cat' and 'cat' differ by"),
        (lambda folder: write_class_folders(folder, ("cat",)), "has one class; a classifier needs"),
    ],
    ids=["empty", "loose", "empty class", "mixed", "twice", "classes", "flat", "case", "one"],
)
def test_folders_that_cannot_be_read(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        read_source(str(tmp_path))
    assert str(tmp_path) in str(error.value) or tmp_path.name in str(error.value)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere cannot be read: No such file"):
        read_class_folders(tmp_path / "nowhere")
