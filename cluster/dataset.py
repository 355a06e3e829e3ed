"""A data set: a folder of ``meta.json`` and the Arrow files of its splits.

A split's files are written by :mod:`cluster.shards`, and read through :mod:`cluster.splits`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from cluster.atomic import write_json_atomic
from cluster.config import Frozen
from cluster.errors import ConfigError, DataError, NotFoundError
from cluster.images import ImageSpec
from cluster.shards import (
    SPLITS,
    EncodedWriter,
    ShardInfo,
    SplitInfo,
    SplitName,
    check_digests,
    check_sizes,
    file_sha256,
    write_split,
)
from cluster.splits import EncodedSplit, ImageSplit, Split, Storage, open_split
from cluster.store import NAME_PATTERN, Folder, Store

__all__ = [
    "META_FILE",
    "SPLITS",
    "ChannelStatistics",
    "Dataset",
    "DatasetMeta",
    "EncodedSplit",
    "EncodedWriter",
    "ImageSplit",
    "ShardInfo",
    "Split",
    "SplitInfo",
    "SplitName",
    "Storage",
    "content_digest",
    "dataset_meta",
    "dataset_names",
    "dataset_versions",
    "file_sha256",
    "find_version",
    "open_split",
    "publish_dataset",
    "write_meta",
    "write_split",
]

SCHEMA_VERSION: Literal[2] = 2
READABLE_VERSIONS = (1, 2)
META_FILE = "meta.json"


class ChannelStatistics(Frozen):
    """Per-channel statistics of the training split, with pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class DatasetMeta(Frozen):
    """What ``meta.json`` holds."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    """2 has several files a split, and knows of encoded images."""
    name: str
    version: int
    source: str
    created_at: str
    image: ImageSpec
    """What an image is, or, of encoded images, what it becomes."""
    class_names: tuple[str, ...]
    statistics: ChannelStatistics
    splits: dict[SplitName, SplitInfo]
    seed: int
    digest: str
    """:func:`content_digest` of the splits."""
    storage: Storage = "pixels"
    normalization: ChannelStatistics = Field(default_factory=lambda data: data["statistics"])
    """What a model subtracts and divides by. A version made from another one keeps its parent's,
    so that weights go on from one version to the next; by default this version's statistics."""
    parent: str | None = None
    """``NAME@VERSION`` of the version that this one was made from."""
    parent_digest: str | None = None


@dataclass(frozen=True)
class Dataset:
    """One version of a data set on disk."""

    path: Path
    meta: DatasetMeta

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Read ``meta.json`` and look at the sizes of the files it names.

        Files are mapped when a split is asked for, and read when something of it is used.

        Raises:
            DataError: the folder is not a data set, is of another schema version, or a file is
                missing or of another size than recorded.
        """
        try:
            content = (path / META_FILE).read_bytes()
        except OSError as error:
            raise DataError(f"{path} is not a data set: {error}") from None
        meta = _decode_meta(content, str(path))
        for info in meta.splits.values():
            check_sizes(path, info)
        return cls(path, meta)

    @classmethod
    def find(cls, store: Store, reference: str) -> "Dataset":
        """Open ``NAME`` (its newest version) or ``NAME@VERSION``.

        Raises:
            NotFoundError: there is no such data set or version.
        """
        name, version = find_version(store, reference)
        if store.remote is None:
            return cls.open(store.datasets / name / str(version))
        # Of an object store, this node's copy.
        meta = dataset_meta(store, name, version)
        copy = cls.open(_version_folder(store, meta).fetch(META_FILE, _verify_copy))
        # The same content under another name may have been written to other files.
        layout = ("schema_version", "splits", "storage")
        changes = {field: getattr(copy.meta, field) for field in layout}
        return cls(copy.path, meta.model_copy(update=changes))

    @property
    def reference(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.meta.name}@{self.meta.version}"

    def split(self, name: SplitName) -> ImageSplit:
        """Map one split.

        Raises:
            DataError: the split is missing, or a file of it is damaged.
        """
        info = self.meta.splits.get(name)
        if info is None:
            raise DataError(f"data set {self.reference} has no split {name!r}")
        return open_split(self.path, info, self.meta.image, self.meta.storage)

    def verify(self, progress: Callable[[Path], None] = lambda _: None) -> None:
        """Read every file and compare it with its recorded sha256.

        Args:
            progress: told of each file before it is read.

        Raises:
            DataError: a file was changed.
        """
        for info in self.meta.splits.values():
            check_digests(self.path, info, progress)


def publish_dataset(store: Store, draft: Path) -> Dataset:
    """Make a finished folder the version that its ``meta.json`` says.

    Args:
        store: where data sets live.
        draft: a folder on the store's disk, such as :func:`cluster.atomic.drafting` gives; it is
            moved.

    Raises:
        FileExistsError: there is such a version already.
    """
    meta = Dataset.open(draft).meta
    _version_folder(store, meta).publish(draft, META_FILE)
    return Dataset.find(store, f"{meta.name}@{meta.version}")


def dataset_names(store: Store) -> list[str]:
    """Names of all data sets in a store."""
    return store.folder("datasets").folders()


def dataset_versions(store: Store, name: str) -> list[int]:
    """Version numbers of one data set, oldest first."""
    if not NAME_PATTERN.fullmatch(name):
        return []
    versions = store.folder(f"datasets/{name}").whole(META_FILE)
    return sorted(int(version) for version in versions if version.isdigit())


def find_version(store: Store, reference: str) -> tuple[str, int]:
    """Name and version of ``NAME`` (its newest version) or ``NAME@VERSION``.

    Raises:
        NotFoundError: there is no such data set or version.
    """
    name, _, wanted = reference.partition("@")
    versions = dataset_versions(store, name)
    if not versions:
        known = ", ".join(sorted(dataset_names(store))) or "none yet"
        raise NotFoundError(
            f"no data set {name!r} in {store.address}; there are: {known}; "
            f"make one with: python -m train ingest SOURCE --name {name}"
        )
    if wanted and wanted not in {str(version) for version in versions}:
        listed = ", ".join(str(version) for version in versions)
        raise NotFoundError(f"data set {name!r} has no version {wanted}; there are: {listed}")
    return name, int(wanted or versions[-1])


def dataset_meta(store: Store, name: str, version: int) -> DatasetMeta:
    """``meta.json`` of a version that exists; its files stay where they are.

    Raises:
        DataError: it cannot be read, or is of another schema version.
    """
    folder = store.folder(f"datasets/{name}/{version}")
    return _decode_meta(folder.read(META_FILE) or b"", folder.address)


def _version_folder(store: Store, meta: DatasetMeta) -> Folder:
    """Where a version is; of an object store, a node keeps each content once, by its digest."""
    folder = store.folder(f"datasets/{meta.name}/{meta.version}")
    if store.remote is None:
        return folder
    return replace(folder, path=store.dataset_cache / meta.digest)


def _verify_copy(folder: Path) -> None:
    Dataset.open(folder).verify()


def _decode_meta(content: bytes, where: str) -> DatasetMeta:
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: {META_FILE} is damaged: {error}") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version not in READABLE_VERSIONS:
        raise DataError(
            f"{where}: schema version {version}; this Raybridge reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; ingest the source again"
        )
    try:
        return DatasetMeta.decode(values, f"{where}: {META_FILE}")
    except ConfigError as error:
        raise DataError(str(error)) from None


def content_digest(
    image: ImageSpec, class_names: tuple[str, ...], splits: Mapping[SplitName, ImageSplit]
) -> str:
    """sha256 over pixels or encoded images, labels, class names and image specification.

    It names what is trained on: whatever the data set is called, whatever wrote its files, and
    however many there are.
    """
    header = {"image": image.model_dump(), "class_names": class_names}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(splits):
        digest.update(name.encode())
        for buffer in splits[name].content():
            digest.update(buffer)
        digest.update(np.ascontiguousarray(splits[name].labels, dtype="<i8").data)
    return digest.hexdigest()


def write_meta(folder: Path, meta: DatasetMeta) -> None:
    """Write ``meta.json``, the file that makes a folder a data set."""
    write_json_atomic(folder / META_FILE, meta.model_dump(mode="json"))
