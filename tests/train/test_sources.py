"""Reading sources by name, and IDX files: digits, the real Fashion-MNIST, CIFAR's form."""

import functools
import gzip
import hashlib
import pickle
import struct
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from harness import NeedPackage
from sklearn.datasets import load_digits

from cluster.errors import DataError
from train.data.sources.idx import read_idx
from train.data.sources.named import DEBIAN_FASHION_MNIST, FASHION_MNIST_CLASSES
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source, check_source


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx_folder(
    folder: Path,
    stems: tuple[str, ...] = ("train-", "t10k-"),
    *,
    dot: str = "-",
    zipped: bool = False,
    first_label: int = 0,
) -> Path:
    """An MNIST-like folder made of real digits, 60 a pair of files."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = np.rint(digits.images * 15.9375).astype(np.uint8)
    labels = (digits.target + first_label).astype(np.uint8)
    for part, stem in enumerate(stems):
        for name, array in (("images{}idx3", images), ("labels{}idx1", labels)):
            data = idx_bytes(array[part * 60 : (part + 1) * 60])
            path = folder / f"{stem}{name.format(dot)}-ubyte{'.gz' * zipped}"
            path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
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


def test_idx_files_by_kaggles_names(tmp_path: Path) -> None:
    # Kaggle's archive has folders of the usual names beside them.
    (tmp_path / "train-images-idx3-ubyte").mkdir()
    source = read_source(str(write_idx_folder(tmp_path, dot=".")))
    assert {split: len(part) for split, part in source.parts.items()} == {"test": 60, "train": 60}


def test_idx_files_by_emnists_names_and_numbers(tmp_path: Path) -> None:
    stems = ("emnist-letters-train-", "emnist-letters-test-")
    source = read_source(str(write_idx_folder(tmp_path, stems, zipped=True, first_label=1)))
    assert source.class_names == tuple(str(number) for number in range(1, 11))
    assert source.parts["test"].labels.tolist() == load_digits().target[60:120].tolist()


@pytest.mark.parametrize("stem", ["train-", "", "mine-"])
def test_a_single_pair_of_idx_files_is_for_training(tmp_path: Path, stem: str) -> None:
    source = read_source(str(write_idx_folder(tmp_path, (stem,))))
    assert {split: len(part) for split, part in source.parts.items()} == {"train": 60}


@pytest.mark.parametrize(
    ("stems", "message"),
    [
        (("a-", "b-"), "no split can be told of a-images-idx3-ubyte; names hold train, test or"),
        (
            ("a-train-", "b-train-"),
            "two files of train images, a-train-images-idx3-ubyte and b-train-images-idx3-ubyte",
        ),
    ],
)
def test_idx_files_of_several_data_sets(
    tmp_path: Path, stems: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_source(str(write_idx_folder(tmp_path, stems)))


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
    with pytest.raises(DataError, match="holds t10k-images-idx3-ubyte but no t10k-labels-idx1-ub"):
        read_source(str(folder))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01" + bytes(4), "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "cut short in its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "holds 3 bytes; its header promises"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-6], "cannot be read"),
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
    write_idx_folder(tmp_path / inner)
    source = read_source("mnist", root=tmp_path)
    assert pixels(source, "train").shape == (60, 1, 8, 8)
    assert source.class_names == tuple("0123456789")


def test_a_named_set_has_both_of_its_splits(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, ("train-",))
    with pytest.raises(DataError, match="holds no test images of mnist"):
        read_source("mnist", root=tmp_path)


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mnist_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Our own folder, empty, and a site on this machine from which torchvision fetches."""
    mnist = "torchvision.datasets.MNIST"
    site = write_idx_folder(tmp_path / "site", zipped=True)
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in site.iterdir()]
    monkeypatch.setattr(f"{mnist}.resources", sums)
    monkeypatch.setattr("train.data.sources.named.DOWNLOADS", tmp_path / "cache")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(QuietFiles, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(f"{mnist}.mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield tmp_path / "cache" / "MNIST" / "raw"
        server.shutdown()


def only_images(raw: Path) -> None:
    write_idx_folder(raw, ("train-",))
    (raw / "train-labels-idx1-ubyte").unlink()


def cut_short(raw: Path) -> None:
    write_idx_folder(raw)
    file = raw / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])


def archives_cut_short(raw: Path) -> None:
    for file in write_idx_folder(raw, zipped=True).iterdir():
        file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [only_images, cut_short, archives_cut_short])
def test_a_broken_download_is_fetched_again(mnist_cache: Path, damage: Any) -> None:
    damage(mnist_cache)
    said: list[str] = []
    source = read_source("mnist", say=said.append)
    assert {split: len(part) for split, part in source.parts.items()} == {"test": 60, "train": 60}
    assert any("fetching it" in text for text in said)
    said.clear()
    read_source("mnist", say=said.append)
    assert said == []


def test_a_damaged_file_of_the_users_own_stays(mnist_cache: Path) -> None:
    cut_short(mnist_cache)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte holds 84 bytes"):
        read_source("mnist", root=mnist_cache.parents[1])
    assert (mnist_cache / "t10k-images-idx3-ubyte").stat().st_size == 100


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
