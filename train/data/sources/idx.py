"""IDX files, the form of MNIST and what follows it."""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.dataset import SplitName
from cluster.errors import DataError
from train.data.sources.source import Part, PixelPictures, Source
from train.data.sources.tree import listed

_NAME = re.compile(r"(.*)(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?", re.IGNORECASE)
"""As MNIST, EMNIST (``emnist-letters-train-images-...``) and Kaggle (``.idx3``) name files."""
_SPLIT_WORDS: tuple[tuple[str, SplitName], ...] = (
    ("train", "train"),
    ("t10k", "test"),
    ("test", "test"),
)


def read_idx_folder(folder: Path) -> Source:
    """Read a folder of IDX files, plain or gzipped. Classes are named by their numbers.

    Each file of images has one of labels. Their names say whether they are for training or
    testing; a single pair whose names do not is for training.

    Raises:
        DataError: a file is missing or damaged, images and labels do not fit, or there are several
            files for one split.
    """
    parts: dict[SplitName, Part] = {}
    for split, (images_file, labels_file) in _pairs(folder).items():
        images, labels = read_idx(images_file), read_idx(labels_file)
        if images.ndim != 3 or labels.ndim != 1 or not 0 < len(images) == len(labels):
            raise DataError(
                f"{folder}: {images_file.name} holds {images.shape} and {labels_file.name} "
                f"{labels.shape}; expected [rows, height, width] and [rows]"
            )
        parts[split] = Part(PixelPictures(images[:, None], f"{split} image"), labels.astype("i8"))
    # Numbers may begin at 1, as those of EMNIST's letters do.
    numbers = np.unique(np.concatenate([part.labels for part in parts.values()]))
    parts = {
        split: Part(part.pictures, np.searchsorted(numbers, part.labels))
        for split, part in parts.items()
    }
    return Source(f"IDX files of {folder.name}", tuple(map(str, numbers)), parts)


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
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] > 3:
        raise DataError(f"{path} is not an IDX file of unsigned bytes in up to three dimensions")
    num_dims = data[3]
    start = 4 + 4 * num_dims
    if len(data) < start:
        raise DataError(f"{path} is cut short in its header")
    shape = struct.unpack(f">{num_dims}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path} holds {len(data) - start} bytes; its header promises {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_files(folder: Path) -> list[Path]:
    """The files of a folder that are IDX files by their names; none if there is no such folder.

    Raises:
        DataError: the folder cannot be listed.
    """
    if not folder.is_dir():
        return []
    return [file for file in listed(folder)[1] if _NAME.fullmatch(file.name)]


def _pairs(folder: Path) -> dict[SplitName, tuple[Path, Path]]:
    """Images and labels of each split, by the names of the files."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    # Plain files last: where there are both, they need no unpacking.
    for file in sorted(idx_files(folder), key=lambda file: file.suffix != ".gz"):
        if match := _NAME.fullmatch(file.name):
            of = images if match[2].lower().startswith("images") else labels
            of[match[1]] = file
    for stem in sorted(images.keys() ^ labels.keys()):
        missing = "labels-idx1-ubyte" if stem in images else "images-idx3-ubyte"
        raise DataError(
            f"{folder} holds {(images | labels)[stem].name} "
            f"but no {stem}{missing} or {stem}{missing}.gz"
        )
    found: dict[SplitName, str] = {}
    for stem in sorted(images):
        split = next((split for word, split in _SPLIT_WORDS if word in stem.lower()), None)
        if split is None and len(images) == 1:
            split = "train"
        if split is None:
            raise DataError(
                f"{folder}: no split can be told of {images[stem].name}; "
                "names hold train, test or t10k"
            )
        if split in found:
            raise DataError(
                f"{folder} holds two files of {split} images, {images[found[split]].name} and "
                f"{images[stem].name}; give each data set a folder of its own"
            )
        found[split] = stem
    return {split: (images[stem], labels[stem]) for split, stem in found.items()}
