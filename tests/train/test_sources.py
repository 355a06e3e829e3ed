"""Reading sources by name, and IDX files: digits, the real Fashion-MNIST, CIFAR's form."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from harness import NeedPackage
from sklearn.datasets import load_digits

from cluster.errors import DataError
from train.data.sources.idx import IDX_FILES, read_idx
from train.data.sources.named import DEBIAN_FASHION_MNIST, FASHION_MNIST_CLASSES
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source, check_source


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx_folder(folder: Path, *, rows: int = 60, zipped: bool = False) -> Path:
    """An MNIST-like folder made of real digits."""
    digits = load_digits()
    images = np.rint(digits.images * 15.9375).astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    for part, (images_name, labels_name) in enumerate(IDX_FILES.values()):
        rows_of_part = slice(part * rows, (part + 1) * rows)
        for name, array in ((images_name, images), (labels_name, labels)):
            data = idx_bytes(array[rows_of_part])
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


def pixels(source: Source, split: Literal["train", "test"]) -> npt.NDArray[np.uint8]:
    pictures = source.parts[split].pictures
    assert isinstance(pictures, PixelPictures)
    return pictures.images


def test_digits_are_the_scans_of_scikit_learn() -> None:
    source = read_source("digits")
    images = pixels(source, "train")
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.uint8
    assert np.array_equal(np.rint(images[:, 0] / (255 / 16)), load_digits().images)
    assert source.class_names == tuple("0123456789")
    assert set(source.parts) == {"train"}


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_folder_is_read(tmp_path: Path, zipped: bool) -> None:
    folder = write_idx_folder(tmp_path, zipped=zipped)
    source = read_source(str(folder))
    assert pixels(source, "train").shape == (60, 1, 8, 8)
    assert source.parts["test"].labels.tolist() == load_digits().target[60:120].tolist()
    assert source.class_names == tuple("0123456789")


def test_class_names_replace_the_sources_own(tmp_path: Path) -> None:
    names = tuple("abcdefghij")
    source = read_source(str(write_idx_folder(tmp_path)), class_names=names)
    assert source.class_names == names


@pytest.mark.parametrize("names", [("a", "b"), ("a",) * 10])
def test_class_names_must_be_as_many_and_different(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="10 classes; give that many different names"):
        read_source(str(write_idx_folder(tmp_path)), class_names=names)


def test_an_unknown_source_lists_the_known_ones() -> None:
    known = "no such file or folder, nor one of digits, mnist, fashion-mnist, cifar10, cifar100, a"
    with pytest.raises(DataError, match=known):
        read_source("imagenet")


def test_an_incomplete_idx_folder_names_the_missing_file(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="holds no t10k-labels-idx1-ubyte"):
        read_source(str(folder))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01" + bytes(4), "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "cut short in its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3 bytes; its header promises"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a")[:-6], "cannot be read"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_fashion_mnist_from_a_folder_of_its_files(need_debian_package: NeedPackage) -> None:
    need_debian_package("dataset-fashion-mnist", path=str(DEBIAN_FASHION_MNIST))
    source = read_source("fashion-mnist", root=DEBIAN_FASHION_MNIST)
    assert source.class_names == FASHION_MNIST_CLASSES
    assert pixels(source, "train").shape == (60000, 1, 28, 28)
    assert np.bincount(source.parts["test"].labels).tolist() == [1000] * 10
    # The published mean of the training images.
    assert pixels(source, "train").mean() / 255 == pytest.approx(0.2860, abs=1e-4)


def test_fashion_mnist_without_files_or_network_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match="give a folder that holds its files with --root"):
        read_source("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("inner", [".", "MNIST/raw"])
def test_mnist_from_a_folder_of_its_files(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / inner
    folder.mkdir(parents=True, exist_ok=True)
    write_idx_folder(folder)
    source = read_source("mnist", root=tmp_path)
    assert pixels(source, "train").shape == (60, 1, 8, 8)
    assert source.class_names == tuple("0123456789")


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set in the authors' form, with MD5 sums of its own."""
    rng = np.random.default_rng(0)

    def write(name: str, value: Any) -> str:
        data = pickle.dumps(value)
        (tmp_path / "cifar-10-batches-py").mkdir(exist_ok=True)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch() -> dict[str, Any]:
        images = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        return {"data": images, "labels": [row % 10 for row in range(20)]}

    cifar = "torchvision.datasets.CIFAR10"
    train = [[name, write(name, batch())] for name in ("data_batch_1", "data_batch_2")]
    monkeypatch.setattr(f"{cifar}.train_list", train)
    monkeypatch.setattr(f"{cifar}.test_list", [["test_batch", write("test_batch", batch())]])
    md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5}
    monkeypatch.setattr(f"{cifar}.meta", meta)
    monkeypatch.setattr(f"{cifar}.url", "http://127.0.0.1:9/cifar")
    return tmp_path


def test_cifar_in_the_form_of_its_authors(cifar_folder: Path) -> None:
    source = read_source("cifar10", root=cifar_folder)
    assert source.class_names == tuple("abcdefghij")
    assert pixels(source, "train").shape == (40, 3, 32, 32)
    assert source.parts["test"].labels.tolist() == [row % 10 for row in range(20)]
    raw = pickle.loads((cifar_folder / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert np.array_equal(pixels(source, "test").reshape(20, 3072), raw["data"])


def test_a_pickle_that_is_not_the_authors_is_not_opened(cifar_folder: Path) -> None:
    evil = cifar_folder / "cifar-10-batches-py" / "test_batch"
    evil.write_bytes(b"cos\nsystem\n(S'touch /tmp/raybridge-evil'\ntR.")
    with pytest.raises(DataError, match=r"download failed \(.*\); give a folder that holds"):
        read_source("cifar10", root=cifar_folder)
    assert not Path("/tmp/raybridge-evil").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "digits", "root": Path()}, "digits come with scikit-learn"),
        ({"source": "mnist", "root": Path("/nowhere")}, "--root /nowhere: no such folder"),
        ({"source": "digits", "label_column": "x"}, "--label-column: digits has no columns"),
        (
            {"source": ".", "root": Path()},
            r"--root: it is for digits, mnist.*; \. is none of these",
        ),
    ],
)
def test_options_that_do_not_apply(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source(**arguments)


def source_of(names: tuple[str, ...], labels: list[int]) -> Source:
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    part = Part(PixelPictures(images, "image"), np.array(labels, np.int64))
    return Source("made", names, {"train": part})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "made has one class; a classifier needs two or more"),
        (("cat", "dog", "cat"), "classes 'cat' and 'cat' differ by nothing, or by case and spaces"),
        (("Cat", "dog", "cat"), "classes 'Cat' and 'cat' differ"),
        (("hot dog", "hot  dog"), "differ by nothing, or by case and spaces"),
        (("\u212b ngstrom", "\xc5 ngstrom"), "differ by nothing"),
        (("cat", " "), "a class has an empty name"),
        (("cat", "d\udcff"), "the name of class 'd\ufffd' is no UTF-8"),
    ],
)
def test_class_names_that_would_be_taken_for_one_another(
    names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_source(source_of(names, [0, 1]))


def test_letters_of_both_cases_are_classes() -> None:
    check_source(source_of(("A", "a"), [0, 1]))


def test_labels_outside_of_the_classes_name_the_row() -> None:
    with pytest.raises(DataError, match=r"image 1 of split train has label -1; .*\(and 1 more\)"):
        check_source(source_of(("a", "b"), [0, -1, 2]))
