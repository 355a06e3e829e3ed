"""IDX files, the form of MNIST and what follows it."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.dataset import SplitName
from cluster.errors import DataError
from train.data.sources.source import Part, PixelPictures, Source

IDX_FILES: dict[SplitName, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx_folder(folder: Path) -> Source:
    """Read a folder of the four files, plain or gzipped. Classes are named by their numbers.

    Raises:
        DataError: a file is missing or damaged, or images and labels do not fit.
    """
    parts: dict[SplitName, Part] = {}
    for split, (images_name, labels_name) in IDX_FILES.items():
        images = read_idx(_idx_path(folder, images_name))
        labels = read_idx(_idx_path(folder, labels_name))
        if images.ndim != 3 or labels.ndim != 1 or not 0 < len(images) == len(labels):
            raise DataError(
                f"{folder}: {images_name} holds {images.shape} and {labels_name} {labels.shape}; "
                "expected [rows, height, width] and [rows]"
            )
        parts[split] = Part(PixelPictures(images[:, None], f"{split} image"), labels.astype("i8"))
    num_classes = int(max(part.labels.max() for part in parts.values())) + 1
    names = tuple(str(index) for index in range(num_classes))
    return Source(f"IDX files of {folder.name}", names, parts)


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


def has_any_idx(folder: Path) -> bool:
    """Whether a folder holds one of the files: then it is meant to hold all of them."""
    return any(
        (folder / f"{name}{suffix}").is_file()
        for names in IDX_FILES.values()
        for name in names
        for suffix in ("", ".gz")
    )


def _idx_path(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder} holds no {name} or {name}.gz")
