"""Reading sources: digits, IDX files, the real Fashion-MNIST."""

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from harness import NeedPackage
from sklearn.datasets import load_digits

from cluster.errors import DataError
from train.data.sources import (
    DEBIAN_FASHION_MNIST,
    FASHION_MNIST_CLASSES,
    IDX_FILES,
    read_idx,
    read_source,
)


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


def test_digits_are_the_scans_of_scikit_learn() -> None:
    source = read_source("digits", root=None, class_names=None)
    part = source.parts["train"]
    assert part.images.shape == (1797, 1, 8, 8)
    assert part.images.dtype == np.uint8
    assert np.array_equal(np.rint(part.images[:, 0] / (255 / 16)), load_digits().images)
    assert source.class_names == tuple("0123456789")
    assert set(source.parts) == {"train"}


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_folder_is_read(tmp_path: Path, zipped: bool) -> None:
    folder = write_idx_folder(tmp_path, zipped=zipped)
    source = read_source(str(folder), root=None, class_names=None)
    assert source.parts["train"].images.shape == (60, 1, 8, 8)
    assert source.parts["test"].labels.tolist() == load_digits().target[60:120].tolist()
    assert source.class_names == tuple("0123456789")


def test_class_names_replace_the_sources_own(tmp_path: Path) -> None:
    names = tuple("abcdefghij")
    source = read_source(str(write_idx_folder(tmp_path)), root=None, class_names=names)
    assert source.class_names == names


@pytest.mark.parametrize("names", [("a", "b"), ("a",) * 10])
def test_class_names_must_be_as_many_and_different(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="10 classes; give that many different names"):
        read_source(str(write_idx_folder(tmp_path)), root=None, class_names=names)


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="expected digits, fashion-mnist, or a folder"):
        read_source("imagenet", root=None, class_names=None)


def test_an_incomplete_idx_folder_names_the_missing_file(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="holds no t10k-labels-idx1-ubyte"):
        read_source(str(folder), root=None, class_names=None)


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
    source = read_source("fashion-mnist", root=DEBIAN_FASHION_MNIST, class_names=None)
    assert source.class_names == FASHION_MNIST_CLASSES
    assert source.parts["train"].images.shape == (60000, 1, 28, 28)
    assert np.bincount(source.parts["test"].labels).tolist() == [1000] * 10
    # The published mean of the training images.
    assert source.parts["train"].images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)


def test_fashion_mnist_without_files_or_network_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    with pytest.raises(DataError, match="give a folder that holds its four IDX files with --root"):
        read_source("fashion-mnist", root=tmp_path, class_names=None)


def test_fashion_mnist_is_downloaded_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(folder: Path, *, train: bool, download: bool) -> None:
        assert train
        assert download
        inner = folder / "FashionMNIST" / "raw"
        inner.mkdir(parents=True)
        write_idx_folder(inner)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    source = read_source("fashion-mnist", root=tmp_path, class_names=None)
    assert source.class_names == FASHION_MNIST_CLASSES
    assert source.parts["train"].images.shape == (60, 1, 8, 8)
