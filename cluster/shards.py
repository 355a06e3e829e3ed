"""The files of a split: Arrow IPC, uncompressed, so that they can be mapped instead of read.

A split of pixels is one file with one record batch, its images fixed-size lists of bytes: one
contiguous array in the page cache. A split of encoded images is several files, the shards, of
bounded size with several record batches each.
"""

import contextlib
import hashlib
from collections.abc import Callable
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
BATCH_BYTES = 8 * 2**20
"""Encoded bytes of one record batch: what writing a split holds in memory."""
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
    return SplitInfo(
        rows=rows,
        class_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
        shards=(_describe_shard(file, rows),),
    )


class EncodedWriter:
    """Writes one split of encoded images, in files ``NAME-00000.arrow`` and on.

    At most :data:`BATCH_BYTES` of images, and one more image, are in memory at a time.

    Args:
        folder: where the files go.
        name: the split, which names the files.
        num_classes: how many classes to count.
        first: number of the first file.
        shard_bytes: a file that holds this many bytes of images is full.
    """

    def __init__(
        self,
        folder: Path,
        name: SplitName,
        num_classes: int,
        *,
        first: int = 0,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._folder, self._name, self._first = folder, name, first
        self._shard_bytes = shard_bytes
        self._counts = np.zeros(num_classes, np.int64)
        self._shards: list[ShardInfo] = []
        self._images: list[bytes] = []
        self._labels: list[int] = []
        self._held_bytes = 0
        self._open = contextlib.ExitStack()
        self._writer: pa.RecordBatchFileWriter | None = None
        self._file_rows = self._file_bytes = 0

    def __enter__(self) -> "EncodedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, image: bytes, label: int) -> None:
        """Write the next image; it is not looked into."""
        self._images.append(image)
        self._labels.append(label)
        self._counts[label] += 1
        self._held_bytes += len(image)
        if self._held_bytes >= min(BATCH_BYTES, self._shard_bytes):
            self._write_batch()

    def finish(self) -> SplitInfo:
        """Write what is held, and tell what was written."""
        if self._images:
            self._write_batch()
        self._close_file()
        return SplitInfo(
            rows=int(self._counts.sum()),
            class_counts=tuple(self._counts.tolist()),
            shards=tuple(self._shards),
        )

    def _write_batch(self) -> None:
        if self._writer is None:
            sink = self._open.enter_context(pa.OSFile(str(self._file), "wb"))
            self._writer = self._open.enter_context(pa.ipc.new_file(sink, _ENCODED_SCHEMA))
        columns = [pa.array(self._images, pa.binary()), pa.array(self._labels, pa.int64())]
        batch = pa.record_batch(columns, schema=_ENCODED_SCHEMA)
        self._images, self._labels, self._held_bytes = [], [], 0
        self._writer.write_batch(batch)
        self._file_rows += batch.num_rows
        self._file_bytes += batch.nbytes
        if self._file_bytes >= self._shard_bytes:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._open.close()
            self._shards.append(_describe_shard(self._file, self._file_rows))
            self._writer, self._file_rows, self._file_bytes = None, 0, 0

    @property
    def _file(self) -> Path:
        return self._folder / f"{self._name}-{self._first + len(self._shards):05}.arrow"


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


def _describe_shard(file: Path, rows: int) -> ShardInfo:
    return ShardInfo(file=file.name, rows=rows, sha256=file_sha256(file), bytes=file.stat().st_size)
