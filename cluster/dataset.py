"""A data set: uncompressed Arrow IPC files that every worker maps instead of reading.

Images are one fixed-size list of bytes each, in a single record batch a split, so that a whole
split is one contiguous array in the page cache: memory grows neither with the data nor with the
number of workers on a host.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.config import Frozen
from cluster.errors import DataError, NotFoundError
from cluster.images import ImageSpec
from cluster.store import NAME_PATTERN, Store, write_json_atomic

SCHEMA_VERSION = 1
META_FILE = "meta.json"
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class ChannelStatistics(Frozen):
    """Per-channel statistics of the training split, with pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class SplitInfo(Frozen):
    """One Arrow file."""

    file: str
    rows: int
    class_counts: tuple[int, ...]
    sha256: str
    """Of the file: detects damage."""


class DatasetMeta(Frozen):
    """What ``meta.json`` holds."""

    schema_version: Literal[1] = 1
    name: str
    version: int
    source: str
    created_at: str
    image: ImageSpec
    class_names: tuple[str, ...]
    statistics: ChannelStatistics
    splits: dict[SplitName, SplitInfo]
    seed: int
    digest: str
    """:func:`content_digest` of the splits."""


@dataclass(frozen=True)
class Split:
    """A mapped split. Both arrays are read-only views of the file."""

    images: npt.NDArray[np.uint8]
    """uint8 ``[rows, channels, height, width]``."""
    labels: npt.NDArray[np.int64]
    """int64 ``[rows]``."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """One version of a data set on disk."""

    path: Path
    meta: DatasetMeta

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Read ``meta.json``; files are mapped when a split is asked for.

        Raises:
            DataError: the folder is not a data set, or of another schema version.
        """
        try:
            values = json.loads((path / META_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a data set: {error}") from None
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{path}: schema version {values.get('schema_version')}; "
                f"this Raybridge reads {SCHEMA_VERSION}; ingest the source again"
            )
        return cls(path, DatasetMeta.decode(values, str(path / META_FILE)))

    @classmethod
    def find(cls, store: Store, reference: str) -> "Dataset":
        """Open ``NAME`` (its newest version) or ``NAME@VERSION``.

        Raises:
            NotFoundError: there is no such data set or version.
        """
        name, _, wanted = reference.partition("@")
        versions = dataset_versions(store, name)
        if not versions:
            known = ", ".join(sorted(dataset_names(store))) or "none yet"
            raise NotFoundError(
                f"no data set {name!r} in {store.datasets}; there are: {known}; "
                f"make one with: python -m train ingest SOURCE --name {name}"
            )
        if wanted and wanted not in {str(version) for version in versions}:
            listed = ", ".join(str(version) for version in versions)
            raise NotFoundError(f"data set {name!r} has no version {wanted}; there are: {listed}")
        return cls.open(store.datasets / name / (wanted or str(versions[-1])))

    @property
    def reference(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.meta.name}@{self.meta.version}"

    def split(self, name: SplitName) -> Split:
        """Map one split.

        Raises:
            DataError: the split is missing, or its file is damaged.
        """
        info = self.meta.splits.get(name)
        if info is None:
            raise DataError(f"data set {self.reference} has no split {name!r}")
        file = self.path / info.file
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
                batch = reader.get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file} is damaged: {error}") from None
        pixels = batch.column("image").flatten().to_numpy(zero_copy_only=True)
        images = pixels.reshape(-1, *self.meta.image.shape)
        labels = batch.column("label").to_numpy(zero_copy_only=True)
        if len(labels) != info.rows:
            raise DataError(f"{file} holds {len(labels)} rows; {META_FILE} says {info.rows}")
        return Split(images, labels)

    def verify(self) -> None:
        """Compare every file with its recorded sha256.

        Raises:
            DataError: a file was changed.
        """
        for info in self.meta.splits.values():
            if file_sha256(self.path / info.file) != info.sha256:
                raise DataError(f"{self.path / info.file} was changed since it was ingested")


def dataset_names(store: Store) -> Iterator[str]:
    """Names of all data sets in a store."""
    if store.datasets.is_dir():
        for folder in store.datasets.iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                yield folder.name


def dataset_versions(store: Store, name: str) -> list[int]:
    """Version numbers of one data set, oldest first."""
    folder = store.datasets / name
    if not NAME_PATTERN.fullmatch(name) or not folder.is_dir():
        return []
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit())


def write_split(
    folder: Path,
    name: SplitName,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    num_classes: int,
) -> SplitInfo:
    """Write one split as a single uncompressed record batch.

    Args:
        folder: where the file goes.
        name: the split, which names the file.
        images: uint8 ``[rows, channels, height, width]``; may be a ``numpy.memmap``.
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
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    counts = np.bincount(labels, minlength=num_classes)
    return SplitInfo(
        file=file.name,
        rows=rows,
        class_counts=tuple(int(count) for count in counts),
        sha256=file_sha256(file),
    )


def content_digest(
    image: ImageSpec, class_names: tuple[str, ...], splits: Mapping[SplitName, Split]
) -> str:
    """sha256 over pixels, labels, class names and image specification.

    It names what is trained on: whatever the data set is called, whatever wrote its files.
    """
    header = {"image": image.model_dump(), "class_names": class_names}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(splits):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(splits[name].images).reshape(-1).data)
        digest.update(np.ascontiguousarray(splits[name].labels, dtype="<i8").data)
    return digest.hexdigest()


def write_meta(folder: Path, meta: DatasetMeta) -> None:
    """Write ``meta.json``, the file that makes a folder a data set."""
    write_json_atomic(folder / META_FILE, meta.model_dump(mode="json"))


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
