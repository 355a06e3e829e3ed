"""The files of a split: Arrow IPC, uncompressed, so that they can be mapped instead of read.

A split of pixels is one file with one record batch, its images fixed-size lists of bytes: one
contiguous array in the page cache. A split of encoded images is several files, the shards, of
bounded size with several record batches each.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import model_validator

from cluster.config import Frozen
from cluster.errors import DataError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

SHARD_BYTES = 256 * 2**20
BATCH_BYTES = 16 * 2**20
"""Encoded bytes of one record batch: what writing holds in memory."""
_ENCODED_SCHEMA = pa.schema({"image": pa.binary(), "label": pa.int64()})


class ShardInfo(Frozen):
    """One Arrow file."""

    file: str
    rows: int
    sha256: str
    """Of the file: detects damage."""
    bytes: int | None = None
    """Size of the file; not known of data sets of schema version 1."""


class SplitInfo(Frozen):
    """The files of one split."""

    rows: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        """Schema version 1 had one file a split, and no list of them."""
        if not isinstance(values, dict) or "file" not in values:
            return values
        kept = {key: value for key, value in values.items() if key not in ("file", "sha256")}
        shard = {key: values.get(key) for key in ("file", "rows", "sha256")}
        return {**kept, "shards": [shard]}


def write_split(
    folder: Path,
    name: SplitName,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    num_classes: int,
) -> SplitInfo:
    """Write one split as pixels: a single file with a single record batch.

    Args:
        folder: where the file goes.
        name: the split, which names the file.
        images: uint8 ``[rows, channels, height, width]``; a ``numpy.memmap`` in C order is written
            without being read into memory.
        labels: int64 ``[rows]``.
        num_classes: how many classes to count.
    """
    rows = len(labels)
    row_bytes = int(np.prod(images.shape[1:]))
    flat = pa.Array.from_buffers(
        pa.uint8(),
        rows * row_bytes,
        [None, pa.py_buffer(np.ascontiguousarray(images).reshape(-1))],
    )
    batch = pa.record_batch(
        {
            "image": pa.FixedSizeListArray.from_arrays(flat, row_bytes),
            "label": pa.array(labels, pa.int64()),
        }
    )
    file = folder / f"{name}.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return _describe_split((_describe_shard(file, rows),), labels, num_classes)


def write_encoded_split(
    folder: Path,
    name: SplitName,
    blobs: Iterable[bytes],
    labels: npt.NDArray[np.int64],
    num_classes: int,
    shard_bytes: int = SHARD_BYTES,
) -> SplitInfo:
    """Write one split of encoded images, in files ``NAME-00000.arrow`` and on.

    At most :data:`BATCH_BYTES` of images, and one more image, are in memory at a time.

    Args:
        folder: where the files go.
        name: the split, which names the files.
        blobs: encoded images, in order; they are not looked into.
        labels: int64 ``[rows]``.
        num_classes: how many classes to count.
        shard_bytes: a file that holds this many bytes of images is full.

    Raises:
        ValueError: there are more images than labels, or fewer.
    """
    shards = []
    batches = _encoded_batches(blobs, labels, min(BATCH_BYTES, shard_bytes))
    for number, first in enumerate(batches):
        file = folder / f"{name}-{number:05}.arrow"
        rows = size = 0
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, _ENCODED_SCHEMA) as writer:
            for batch in itertools.chain([first], batches):
                writer.write_batch(batch)
                rows += batch.num_rows
                size += batch.nbytes
                if size >= shard_bytes:
                    break
        shards.append(_describe_shard(file, rows))
    return _describe_split(tuple(shards), labels, num_classes)


def map_batches(folder: Path, shard: ShardInfo) -> list[pa.RecordBatch]:
    """Map one file; its columns are ``image`` and ``label``.

    Raises:
        DataError: it is missing or damaged, or holds other rows than recorded.
    """
    file = folder / shard.file
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} is damaged: {error}") from None
    rows = sum(batch.num_rows for batch in batches)
    if rows != shard.rows:
        raise DataError(f"{file} holds {rows} rows; meta.json says {shard.rows}")
    return batches


def check_sizes(folder: Path, info: SplitInfo) -> None:
    """Compare the sizes of a split's files with those recorded, which costs nothing.

    Raises:
        DataError: a file is missing, cut short, or longer than it was.
    """
    for shard in info.shards:
        file = folder / shard.file
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None
        if shard.bytes is not None and size != shard.bytes:
            raise DataError(f"{file} has {size} bytes; it was written with {shard.bytes}")


def check_digests(folder: Path, info: SplitInfo, progress: Callable[[Path], None]) -> None:
    """Compare every file of a split with its recorded sha256.

    Raises:
        DataError: a file was changed.
    """
    for shard in info.shards:
        progress(folder / shard.file)
        if file_sha256(folder / shard.file) != shard.sha256:
            raise DataError(f"{folder / shard.file} was changed since it was ingested")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encoded_batches(
    blobs: Iterable[bytes], labels: npt.NDArray[np.int64], limit: int
) -> Iterator[pa.RecordBatch]:
    """Record batches of ``limit`` bytes of images, the last of them smaller."""
    held: list[bytes] = []
    classes: list[int] = []
    size = 0
    for blob, label in zip(blobs, labels, strict=True):
        held.append(blob)
        classes.append(int(label))
        size += len(blob)
        if size >= limit:
            yield _encoded_batch(held, classes)
            held, classes, size = [], [], 0
    if held:
        yield _encoded_batch(held, classes)


def _encoded_batch(blobs: list[bytes], labels: list[int]) -> pa.RecordBatch:
    columns = [pa.array(blobs, pa.binary()), pa.array(labels, pa.int64())]
    return pa.record_batch(columns, schema=_ENCODED_SCHEMA)


def _describe_shard(file: Path, rows: int) -> ShardInfo:
    return ShardInfo(file=file.name, rows=rows, sha256=file_sha256(file), bytes=file.stat().st_size)


def _describe_split(
    shards: tuple[ShardInfo, ...], labels: npt.NDArray[np.int64], num_classes: int
) -> SplitInfo:
    counts = np.bincount(labels, minlength=num_classes)
    return SplitInfo(
        rows=len(labels), class_counts=tuple(int(count) for count in counts), shards=shards
    )
