"""A split: images and labels, mapped, and decoded where they are stored encoded.

Memory grows neither with the data nor with the number of workers on a host; only the
labels of encoded images are held, eight bytes each.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DataError
from cluster.images import (
    OWN_MAX_BYTES,
    OWN_MAX_PIXELS,
    Crop,
    ImageError,
    ImageSpec,
    crop_pixels,
    decode_crop,
    decode_image,
)
from cluster.shards import SplitInfo, map_batches

Storage = Literal["pixels", "encoded"]
"""``pixels``: at the model's size; ``encoded``: as they were found (JPEG, PNG, ...)."""
Rows = slice | npt.NDArray[np.int64]


class ImageSplit(Protocol):
    """The images and labels of a split, wherever they come from."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 ``[rows]``."""

    def __len__(self) -> int: ...

    def take(self, rows: Rows, crops: Sequence[Crop] | None = None) -> npt.NDArray[np.uint8]:
        """Images as a model takes them: uint8 ``[n, channels, height, width]``.

        Args:
            rows: which.
            crops: for training: for each of them, the part that fills the frame.

        Raises:
            DataError: an image is damaged; the message names its file and row.
        """

    def content(self) -> Iterator[Any]:
        """The images as byte buffers, in order: what a digest covers."""


@dataclass(frozen=True)
class Split:
    """A split as pixels, in memory or mapped. Mapped arrays are read-only views of the file."""

    images: npt.NDArray[np.uint8]
    """uint8 ``[rows, channels, height, width]``."""
    labels: npt.NDArray[np.int64]
    """int64 ``[rows]``."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows, crops: Sequence[Crop] | None = None) -> npt.NDArray[np.uint8]:
        """Images of some rows; for a slice a view of the split, not to be written to."""
        # For an array of rows, take is a third quicker than indexing.
        images = self.images[rows] if isinstance(rows, slice) else self.images.take(rows, axis=0)
        if crops is None:
            return images
        cropped = np.empty_like(images)
        for place, (image, crop) in enumerate(zip(images, crops, strict=True)):
            cropped[place] = crop_pixels(image, crop)
        return cropped

    def content(self) -> Iterator[Any]:
        """The pixels, a thousand images at a time."""
        for start in range(0, len(self), 1024):
            yield np.ascontiguousarray(self.images[start : start + 1024]).reshape(-1).data


@dataclass(frozen=True)
class _MappedBatch:
    """One mapped record batch."""

    file: Path
    first: int
    """Its first row's place in the file."""
    images: pa.BinaryArray


class EncodedSplit:
    """A split of encoded images, decoded by the decoder that serves HTTP when they are taken.

    Args:
        image: what an image becomes.
        batches: the mapped record batches, in order.
        labels: int64 ``[rows]``.
    """

    def __init__(
        self, image: ImageSpec, batches: Sequence[_MappedBatch], labels: npt.NDArray[np.int64]
    ) -> None:
        self.image = image
        self.labels = labels
        self._batches = batches
        ends = np.cumsum([0, *(len(batch.images) for batch in batches)])
        self._starts = ends[:-1]

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, row: int) -> bytes:
        """The bytes of one image as they are stored."""
        batch, index = self._find(row)
        stored: bytes = batch.images[index].as_py()
        return stored

    def decode(self, row: int, crop: Crop | None = None) -> npt.NDArray[np.uint8]:
        """Decode one image to uint8 ``[channels, height, width]``.

        Raises:
            DataError: the image is damaged; the message names its file and row.
        """
        try:
            stored = self.encoded(row)
            if crop is None:
                return decode_image(
                    stored, self.image, max_bytes=OWN_MAX_BYTES, max_pixels=OWN_MAX_PIXELS
                )
            return decode_crop(
                stored, self.image, crop, max_bytes=OWN_MAX_BYTES, max_pixels=OWN_MAX_PIXELS
            )
        except ImageError as error:
            batch, index = self._find(row)
            raise DataError(f"{batch.file}: row {batch.first + index}: {error}") from None

    def take(self, rows: Rows, crops: Sequence[Crop] | None = None) -> npt.NDArray[np.uint8]:
        """Decode some rows to uint8 ``[n, channels, height, width]``.

        Raises:
            DataError: an image is damaged; the message names its file and row.
        """
        wanted = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        images = np.empty((len(wanted), *self.image.shape), np.uint8)
        parts = itertools.repeat(None, len(wanted)) if crops is None else crops
        for place, (row, crop) in enumerate(zip(wanted, parts, strict=True)):
            images[place] = self.decode(row, crop)
        return images

    def content(self) -> Iterator[Any]:
        """Length and bytes of each image."""
        for batch in self._batches:
            for image in batch.images:
                stored = image.as_buffer()
                yield stored.size.to_bytes(8, "little")
                yield stored

    def _find(self, row: int) -> tuple[_MappedBatch, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a split of {len(self)}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[number], row - int(self._starts[number])


def open_split(folder: Path, info: SplitInfo, image: ImageSpec, storage: Storage) -> ImageSplit:
    """Map the files of a split.

    Args:
        folder: where they are.
        info: what they hold.
        image: what an image is, or becomes.
        storage: how they hold it.

    Raises:
        DataError: a file is missing or damaged, or holds other rows than recorded.
    """
    batches, labels = [], []
    for shard in info.shards:
        rows = 0
        for batch in map_batches(folder, shard):
            batches.append(_MappedBatch(folder / shard.file, rows, batch.column("image")))
            labels.append(batch.column("label").to_numpy(zero_copy_only=True))
            rows += batch.num_rows
    if storage == "encoded":
        return EncodedSplit(image, batches, np.concatenate([*labels, np.empty(0, np.int64)]))
    pixels = batches[0].images.flatten().to_numpy(zero_copy_only=True)
    return Split(pixels.reshape(-1, *image.shape), labels[0])
