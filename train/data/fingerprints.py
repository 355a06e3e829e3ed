"""What tells images apart, and what tells nearly equal ones together.

Each image has three: a digest of its pixels (64 bits); a difference hash (dHash, 64 bits): the
image is averaged down to 8 rows of 9 gray cells, and each bit says whether a cell is darker than
the one to its right; and a gray thumbnail of 16x16, by which those of like hashes are compared.
Light, contrast and compression change little of the last two.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.dataset import SPLITS, SplitName

FINGERPRINTS_FILE = "fingerprints.arrow"
THUMBNAIL_SIDE = 16
THUMBNAIL_SHAPE = (THUMBNAIL_SIDE * THUMBNAIL_SIDE,)
_HASH_ROWS, _HASH_COLUMNS = 8, 9
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, as Pillow converts to gray."""


@dataclass(frozen=True)
class Fingerprints:
    """One row an image."""

    digests: npt.NDArray[np.uint64]
    """uint64 ``[rows]``."""
    hashes: npt.NDArray[np.uint64]
    """uint64 ``[rows]``."""
    thumbnails: npt.NDArray[np.uint8]
    """uint8 ``[rows, 256]``; may be mapped."""

    def __len__(self) -> int:
        return len(self.digests)


def fingerprint(images: npt.NDArray[np.uint8]) -> Fingerprints:
    """Fingerprints of a batch.

    Args:
        images: uint8 ``[n, channels, height, width]``.
    """
    digests = [
        int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "big")
        for image in images
    ]
    _, channels, height, width = images.shape
    gray: npt.NDArray[np.float32] = (
        np.einsum("nchw,c->nhw", images, _LUMA)
        if channels == 3
        else images[:, 0].astype(np.float32)
    )
    side = _averages(height, THUMBNAIL_SIDE), _averages(width, THUMBNAIL_SIDE)
    thumbnails = np.rint(side[0] @ gray @ side[1].T).astype(np.uint8)
    return Fingerprints(
        np.array(digests, np.uint64),
        _difference_hashes(gray),
        thumbnails.reshape(len(images), *THUMBNAIL_SHAPE),
    )


def write_fingerprints(folder: Path, splits: Mapping[SplitName, Fingerprints]) -> None:
    """Write the fingerprints of a data set beside it, a record batch a split."""
    thumbnail = pa.list_(pa.uint8(), THUMBNAIL_SHAPE[0])
    schema = pa.schema(
        {"split": pa.int8(), "digest": pa.uint64(), "dhash": pa.uint64(), "thumbnail": thumbnail}
    )
    path = str(folder / FINGERPRINTS_FILE)
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for split, part in splits.items():
            pixels = pa.array(part.thumbnails.reshape(-1), pa.uint8())
            columns = [
                pa.array(np.full(len(part), SPLITS.index(split), np.int8)),
                pa.array(part.digests),
                pa.array(part.hashes),
                pa.FixedSizeListArray.from_arrays(pixels, THUMBNAIL_SHAPE[0]),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_fingerprints(folder: Path) -> dict[SplitName, Fingerprints]:
    """Map what :func:`write_fingerprints` wrote; empty if the data set has none."""
    try:
        with pa.memory_map(str(folder / FINGERPRINTS_FILE)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid):
        return {}
    found: dict[SplitName, Fingerprints] = {}
    for batch in batches:
        if batch.num_rows:
            split = SPLITS[batch.column("split")[0].as_py()]
            thumbnails = batch.column("thumbnail").flatten().to_numpy()
            found[split] = Fingerprints(
                batch.column("digest").to_numpy(),
                batch.column("dhash").to_numpy(),
                thumbnails.reshape(-1, *THUMBNAIL_SHAPE),
            )
    return found


def _difference_hashes(gray: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """The dHash of each image, as https://www.hackerfactor.com/blog/index.php?/archives/529 has it.

    Args:
        gray: float32 ``[n, height, width]``.

    Returns:
        uint64 ``[n]``.
    """
    _, height, width = gray.shape
    cells = _averages(height, _HASH_ROWS) @ gray @ _averages(width, _HASH_COLUMNS).T
    # A margin of a tenth of a level, so that rounding in flat areas decides no bit.
    bits = (cells[:, :, :-1] + 0.1 < cells[:, :, 1:]).reshape(len(gray), 64)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


@functools.cache
def _averages(size: int, cells: int) -> npt.NDArray[np.float32]:
    """Weights float32 ``[cells, size]`` that average ``size`` pixels into ``cells`` equal areas."""
    edges = np.linspace(0, size, cells + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    averages: npt.NDArray[np.float32] = weights / weights.sum(1, keepdims=True)
    return averages.astype(np.float32)
