"""Data sets that everybody knows, by name: scikit-learn's digits, and what torchvision fetches."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.dataset import SplitName
from cluster.errors import DataError
from train.data.sources.idx import idx_files, read_idx_folder
from train.data.sources.source import Part, PixelPictures, Source

_IDX_STEMS = {
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
}
DOWNLOADS = Path("~/.cache/raybridge")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the four files."""
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
Say = Callable[[str], None]
Reader = Callable[[Path | None, Say], Source]


def read_digits(root: Path | None, say: Say) -> Source:  # noqa: ARG001 - as every reader
    """1,797 scans of handwritten digits, 8x8, that scikit-learn carries."""
    if root is not None:
        raise DataError("--root: digits come with scikit-learn and are read from no folder")
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The scans have 17 levels, 0 to 16; 255/16 spreads them over the byte.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    names = tuple(str(name) for name in digits.target_names)
    part = Part(PixelPictures(images, "scan"), labels)
    return Source("digits (scikit-learn)", names, {"train": part})


@dataclass(frozen=True)
class IdxDownload:
    """A data set of four IDX files that torchvision can fetch."""

    name: str
    torchvision_class: str
    class_names: tuple[str, ...]
    installed: Path | None = None
    """Where a package of the system keeps the files."""

    def __call__(self, root: Path | None, say: Say) -> Source:
        """Read the files of ``root``, or of the folder that torchvision makes below it.

        What a broken download left in our own folder is fetched again.
        """
        if root is None and self.installed is not None and idx_files(self.installed):
            root = self.installed
        folder = _root_folder(root)
        if idx_files(folder):
            return self._read(folder)
        inner = folder / self.torchvision_class / "raw"
        if _stems(inner) >= _IDX_STEMS:
            try:
                return self._read(inner)
            except DataError as error:
                if root is not None:
                    raise
                say(f"{error}; fetching it again")
            # The archives stay: torchvision fetches those whose MD5 sums are wrong.
            for file in idx_files(inner):
                if file.suffix != ".gz":
                    file.unlink()
        _from_torchvision(self.name, self.torchvision_class, folder, say)
        return self._read(inner)

    def _read(self, folder: Path) -> Source:
        read = read_idx_folder(folder)
        missing = {"train", "test"} - set(read.parts)
        if missing:
            raise DataError(f"{folder} holds no {missing.pop()} images of {self.name}")
        numbers = [int(name) for name in read.class_names]
        if max(numbers) >= len(self.class_names):
            raise DataError(
                f"{folder} holds labels up to {max(numbers)}; "
                f"{self.name} has {len(self.class_names)} classes"
            )
        names = tuple(self.class_names[number] for number in numbers)
        return replace(read, description=self.name, class_names=names)


@dataclass(frozen=True)
class CifarDownload:
    """CIFAR in the form of its authors: Python pickles, whose MD5 torchvision checks first."""

    name: str
    torchvision_class: str

    def __call__(self, root: Path | None, say: Say) -> Source:
        """Read ``root``, which holds the authors' archive or the folder that was in it."""
        folder = _root_folder(root)
        parts: dict[SplitName, Part] = {}
        names: tuple[str, ...] = ()
        splits: tuple[SplitName, ...] = ("train", "test")
        for split in splits:
            found = _from_torchvision(
                self.name, self.torchvision_class, folder, say, train=split == "train"
            )
            images = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
            parts[split] = Part(
                PixelPictures(images, f"{split} image"), np.array(found.targets, np.int64)
            )
            names = tuple(str(name) for name in found.classes)
        return Source(self.name, names, parts)


NAMED_SOURCES: dict[str, Reader] = {
    "digits": read_digits,
    "mnist": IdxDownload("mnist", "MNIST", tuple("0123456789")),
    "fashion-mnist": IdxDownload(
        "fashion-mnist", "FashionMNIST", FASHION_MNIST_CLASSES, DEBIAN_FASHION_MNIST
    ),
    "cifar10": CifarDownload("cifar10", "CIFAR10"),
    "cifar100": CifarDownload("cifar100", "CIFAR100"),
}


def _stems(folder: Path) -> set[str]:
    return {file.name.removesuffix(".gz") for file in idx_files(folder)}


def _root_folder(root: Path | None) -> Path:
    if root is not None and not root.expanduser().is_dir():
        raise DataError(f"--root {root}: no such folder")
    return (root or DOWNLOADS).expanduser()


def _from_torchvision(
    name: str, torchvision_class: str, folder: Path, say: Say, *, train: bool = True
) -> Any:
    """A data set of torchvision, fetched into ``folder`` if it is not there."""
    import torchvision.datasets

    build = getattr(torchvision.datasets, torchvision_class)
    with contextlib.suppress(OSError, RuntimeError):
        return build(folder, train=train, download=False)
    say(f"{name} is not in {folder}; fetching it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision prints a progress bar of its own; ours is the only voice of a command.
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            return build(folder, train=train, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise DataError(
            f"{name} is not in {folder} and its download failed ({reason}); "
            "give a folder that holds its files with --root"
        ) from None
