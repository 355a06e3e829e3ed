"""Folders of class folders."""

import os
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
    assert chunk[3] == str(tmp_path / "cat" / "more" / "x.JPG")


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
        "left out files that are no images by their names: 2 (1 .heic, 1 .txt), "
        "such as cat/photo.heic",
    )


@pytest.mark.parametrize("split", ["", "train"])
def test_images_beside_class_folders_are_told(tmp_path: Path, split: str) -> None:
    write_class_folders(tmp_path / split, per_class=2)
    for name in ("a\n\udcff.png", "b.png"):
        (tmp_path / split / name).touch()
    source = read_source(str(tmp_path))
    first = str(Path(split, "a\\n\\udcff.png"))
    assert len(source) == 4
    assert source.notes == (f"left out images that lie in no class folder: 2, such as {first}",)


def test_images_beside_split_folders_are_told(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", per_class=2)
    (tmp_path / "x.png").touch()
    assert "no class folder: 1, such as x.png" in read_source(str(tmp_path)).notes[0]


def test_links_to_folders_are_followed_once_and_never_up(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "more", ("wolf",), per_class=2)
    pets = write_class_folders(tmp_path / "pets", ("cat", "dog"), per_class=1)
    (pets / "dog" / "linked").symlink_to(tmp_path / "more" / "wolf")
    (pets / "dog" / "linked too").symlink_to(tmp_path / "more" / "wolf")
    (pets / "dog" / "up").symlink_to(pets)
    (tmp_path / "more" / "wolf" / "round").symlink_to(tmp_path / "more" / "wolf")
    part = read_source(str(pets)).parts["train"]
    assert [part.pictures.name(row) for row in range(len(part))] == [
        *("cat/0000.png", "dog/1000.png", "dog/linked/0000.png", "dog/linked/0001.png")
    ]


def no_train(folder: Path) -> None:
    for name in ("val", "test"):
        write_class_folders(folder / name)


def no_train_but_other(folder: Path) -> None:
    no_train(folder)
    write_class_folders(folder / "Trainset")


def only_test(folder: Path) -> None:
    write_class_folders(folder / "test")


def too_deep(folder: Path) -> None:
    """A folder whose path is longer than a system call takes: not even root can list it."""
    write_class_folders(folder)
    at = os.open(folder / "cat", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=at)
        above, at = at, os.open("x" * 250, os.O_RDONLY, dir_fd=at)
        os.close(above)
    os.close(at)


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
        (no_train, "holds test, val but no train; call the folder of the training split train"),
        (no_train_but_other, "holds test, val, beside Trainset, but no train; call the folder"),
        (only_test, "holds test but no train"),
        (too_deep, "x/x+ cannot be read: File name too long"),
        (lambda folder: write_class_folders(folder, ("Cat", "cat")), "'Cat' and 'cat' differ by"),
        (lambda folder: write_class_folders(folder, ("cat",)), "has one class; a classifier needs"),
    ],
    ids=[
        *("empty", "loose", "empty class", "mixed", "twice", "classes", "flat"),
        *("no train", "Trainset", "only test", "too deep", "case", "one"),
    ],
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
