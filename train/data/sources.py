"""Where images come from. A source is read once, by ingest."""

import contextlib
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.dataset import Split, SplitName
from cluster.errors import DataError

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
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the four files."""
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class Source:
    """What ingest splits and writes."""

    description: str
    class_names: tuple[str, ...]
    parts: dict[SplitName, Split]
    """``train`` alone if the source has no split of its own, else ``train`` and ``test``."""


def read_source(source: str, *, root: Path | None, class_names: tuple[str, ...] | None) -> Source:
    """Read a source by name, or a folder of IDX files.

    Args:
        source: ``digits``, ``fashion-mnist``, or a folder that holds the four IDX files of an
            MNIST-like data set.
        root: for a named source, the folder that holds its files (or takes its download).
        class_names: names in label order, in place of the source's own.

    Raises:
        DataError: the source is unknown, incomplete or damaged.
    """
    named = NAMED_SOURCES.get(source)
    if named is not None:
        found = named(root)
    elif Path(source).expanduser().is_dir():
        found = _read_idx_source(Path(source).expanduser())
    else:
        raise DataError(
            f"no source {source!r}: expected {', '.join(sorted(NAMED_SOURCES))}, "
            "or a folder that holds IDX files"
        )
    if class_names is None:
        return found
    num_classes = len(found.class_names)
    if len(class_names) != num_classes or len(set(class_names)) != num_classes:
        raise DataError(
            f"--class-names: {source} has {num_classes} classes; "
            f"give that many different names, not {', '.join(class_names)}"
        )
    return Source(found.description, class_names, found.parts)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, plain or gzipped.

    The format is described at the foot of the MNIST page: two zero bytes, a type code, the number
    of dimensions, each dimension as a big-endian uint32, then the data in row-major order.

    Raises:
        DataError: the file is damaged, or not of unsigned bytes.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    num_dims = data[3]
    start = 4 + 4 * num_dims
    if len(data) < start:
        raise DataError(f"{path} is cut short in its header")
    shape = struct.unpack(f">{num_dims}I", data[4:start])
    if len(data) - start != int(np.prod(shape)):
        raise DataError(f"{path} holds {len(data) - start} bytes; its header promises {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_digits(root: Path | None) -> Source:
    if root is not None:
        raise DataError("--root: digits come with scikit-learn and are read from no folder")
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The scans have 17 levels, 0 to 16; 255/16 spreads them over the byte.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    names = tuple(str(name) for name in digits.target_names)
    return Source("digits (scikit-learn)", names, {"train": Split(images, labels)})


def _read_fashion_mnist(root: Path | None) -> Source:
    if root is not None and not root.expanduser().is_dir():
        raise DataError(f"--root {root}: no such folder")
    if root is None and _has_idx(DEBIAN_FASHION_MNIST):
        root = DEBIAN_FASHION_MNIST
    folder = (root or Path("~/.cache/raybridge")).expanduser()
    inner = folder / "FashionMNIST" / "raw"
    if not _has_idx(folder) and not _has_idx(inner):
        _download_fashion_mnist(folder)
    read = _read_idx_source(folder if _has_idx(folder) else inner)
    return Source("fashion-mnist", FASHION_MNIST_CLASSES, read.parts)


def _download_fashion_mnist(folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision prints a progress bar of its own; ours is the only voice of a command.
        with (
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            FashionMNIST(folder, train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"fashion-mnist is not in {folder} and its download failed "
            f"({str(error).strip().splitlines()[-1]}); "
            "give a folder that holds its four IDX files with --root"
        ) from None


def _read_idx_source(folder: Path) -> Source:
    parts: dict[SplitName, Split] = {}
    for split, (images_name, labels_name) in IDX_FILES.items():
        images = read_idx(_idx_path(folder, images_name))
        labels = read_idx(_idx_path(folder, labels_name))
        if images.ndim != 3 or labels.ndim != 1 or not 0 < len(images) == len(labels):
            raise DataError(
                f"{folder}: {images_name} holds {images.shape} and {labels_name} {labels.shape}; "
                "expected [rows, height, width] and [rows]"
            )
        parts["train" if split == "train" else "test"] = Split(
            images[:, None], labels.astype(np.int64)
        )
    num_classes = int(max(part.labels.max() for part in parts.values())) + 1
    names = tuple(str(index) for index in range(num_classes))
    return Source(f"IDX files of {folder.name}", names, parts)


def _has_idx(folder: Path) -> bool:
    try:
        return all(_idx_path(folder, name) for names in IDX_FILES.values() for name in names)
    except DataError:
        return False


def _idx_path(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder} holds no {name} or {name}.gz")


NAMED_SOURCES: dict[str, Callable[[Path | None], Source]] = {
    "digits": _read_digits,
    "fashion-mnist": _read_fashion_mnist,
}
