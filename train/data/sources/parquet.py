"""Hugging Face image Parquet: encoded images and labels, in one file or in shards."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.dataset import SplitName
from cluster.errors import DataError
from train.data.sources.source import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    SPLIT_NAMES,
    Part,
    Payload,
    Source,
    and_more,
    order_class_names,
    shorten,
)
from train.data.sources.table import from_arrow, is_text
from train.data.sources.tree import files_below

_LABEL_NAMES = ("label", "labels", "class", "fine_label", "target")


@dataclass(frozen=True)
class _Columns:
    """Which columns hold what, by a file's schema."""

    image: str
    label: str
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class ParquetPictures:
    """The image column of some files, read a batch at a time."""

    files: Sequence[Path]
    column: str
    rows: Sequence[int]
    """Of each file."""

    def __len__(self) -> int:
        return sum(self.rows)

    def chunks(self) -> Iterator[Payload]:
        """Encoded bytes, or paths where a row has only a path."""
        for file in self.files:
            chunk: list[bytes | str] = []
            size = 0
            try:
                with pq.ParquetFile(file) as reader:
                    for batch in reader.iter_batches(CHUNK_ROWS, columns=[self.column]):
                        for picture in _pictures(batch.column(0), file.parent):
                            chunk.append(picture)
                            size += len(picture) if isinstance(picture, bytes) else 0
                            if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
                                yield chunk
                                chunk, size = [], 0
            except (OSError, pa.ArrowException) as error:
                raise _damaged(file, error) from None
            if chunk:
                yield chunk

    def name(self, row: int) -> str:
        """The file, and the row in it."""
        for file, rows in zip(self.files, self.rows, strict=True):
            if row < rows:
                return f"{file.name} row {row}"
            row -= rows
        raise IndexError(row)


def holds_parquet(folder: Path) -> bool:
    """Whether there is a Parquet file below a folder."""
    return any(_is_parquet(file) for file in files_below(folder))


def read_parquet(path: Path, image_column: str | None, label_column: str | None) -> Source:
    """Read one file, or all Parquet files below a folder.

    Names of files (``train-00000-of-00002.parquet``), else of their folders
    (``train/0000.parquet``), give the splits; one without any is all for training. A file whose
    images are paths is read as a table.

    Raises:
        DataError: a file is damaged, columns are missing or ambiguous, files disagree, or they
            are of several data sets.
    """
    files = [path]
    if path.is_dir():
        files = sorted(path / file for file in files_below(path) if _is_parquet(file))
    schemas = {file: _schema(file) for file in files}
    first = schemas[files[0]]
    if len(files) == 1 and _holds_paths(first, image_column):
        return from_arrow(files[0], _read(files[0]), image_column, label_column)
    columns = _find_columns(files[0], first, image_column, label_column)
    for file in files[1:]:
        if _find_columns(file, schemas[file], image_column, label_column) != columns:
            raise DataError(f"{file} has other columns or class names than {files[0]}")
    by_split = _files_by_split(path, files)
    read = {split: [_labels(file, columns.label) for file in of] for split, of in by_split.items()}
    labels, names = _number_labels(path, columns, read)
    parts = {
        split: Part(
            ParquetPictures(by_split[split], columns.image, [len(part) for part in read[split]]),
            labels[split],
        )
        for split in by_split
    }
    return Source(f"Parquet {path.resolve().name}", names, parts)


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file} is no Parquet file that can be read: {reason}") from None


def _read(file: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        # Not `read_table`: it adds columns by the names of folders, such as `year=2024`.
        with pq.ParquetFile(file) as reader:
            return reader.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is damaged: {str(error).splitlines()[0]}")


def _find_columns(
    file: Path, schema: pa.Schema, image_column: str | None, label_column: str | None
) -> _Columns:
    features = _features(schema)
    images = _image_columns(schema)
    labels = [name for name, value in features.items() if value.get("_type") == "ClassLabel"]
    labels = labels or [name for name in schema.names if name.lower() in _LABEL_NAMES]
    image = _choose(file, schema, image_column, images, "images", "--image-column")
    label = _choose(file, schema, label_column, labels, "labels", "--label-column")
    kind = schema.field(image).type
    if not _holds_bytes(kind):
        several = " (of a single file)" if is_text(kind) else ""
        raise DataError(
            f"--image-column {image}: {file} has {kind}; "
            f"images are bytes, or paths as text{several}"
        )
    names = features.get(label, {}).get("names")
    if isinstance(names, Mapping):  # Older files number them: {"0": "cat", "1": "dog"}.
        names = [names[key] for key in sorted(names, key=int)]
    return _Columns(image, label, tuple(str(name) for name in names) if names else None)


def _choose(
    file: Path, schema: pa.Schema, wanted: str | None, found: list[str], what: str, option: str
) -> str:
    if wanted is not None:
        if wanted not in schema.names:
            raise DataError(
                f"{option} {wanted}: {file} has no such column; it has: {', '.join(schema.names)}"
            )
        return wanted
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{file} has no column of {what}; it has: {', '.join(schema.names)}; "
            f"name one with {option}"
        )
    raise DataError(
        f"{file} has several columns of {what}: {', '.join(found)}; choose one with {option}"
    )


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the ``datasets`` library wrote about the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _image_columns(schema: pa.Schema) -> list[str]:
    """Columns that hold encoded images, by the metadata, else by their types."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    features = _features(schema)
    return [name for name in found if features.get(name, {}).get("_type") == "Image"] or found


def _holds_paths(schema: pa.Schema, image_column: str | None) -> bool:
    """Whether a file is a table of paths: by the column that was named, else for want of bytes."""
    if image_column in schema.names:
        return is_text(schema.field(image_column).type)
    return not _image_columns(schema)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _pictures(column: pa.Array, folder: Path) -> Iterator[bytes | str]:
    """Bytes of each row; where there are none, its path. An empty row is an image of no bytes."""
    if not pa.types.is_struct(column.type):
        yield from (value or b"" for value in column.to_pylist())
        return
    fields = [field.name for field in column.type]
    blobs = column.field("bytes").to_pylist()
    paths = column.field("path").to_pylist() if "path" in fields else [None] * len(blobs)
    for valid, blob, path in zip(column.is_valid().to_pylist(), blobs, paths, strict=True):
        yield (blob or (os.path.join(folder, path) if path else b"")) if valid else b""


def _files_by_split(path: Path, files: list[Path]) -> dict[SplitName, list[Path]]:
    by_split: dict[SplitName, list[Path]] = {}
    unnamed = []
    root = path if path.is_dir() else path.parent
    folders: dict[SplitName, set[str]] = {}
    for file in files:
        inside = file.relative_to(root)
        # The file's own name tells first, then its folder's, and so on.
        tells = [
            (split, part.parent)
            for part in (inside, *inside.parents)
            if (split := _split_in(part.name))
        ]
        if tells:
            split, folder = tells[0]
            by_split.setdefault(split, []).append(file)
            folders.setdefault(split, set()).add(str(folder))
        else:
            unnamed.append(file)
    for split, found in folders.items():
        if len(found) > 1:
            raise DataError(
                f"{path} holds {split} files of several data sets, in the folders "
                f"{shorten(sorted(found))}; name one of them"
            )
    if not unnamed:
        return by_split
    if by_split:
        raise DataError(
            f"{path}: no split can be told of {shorten([file.name for file in unnamed])}; "
            "names begin with train, validation or test"
        )
    return {"train": unnamed}


def _split_in(name: str) -> SplitName | None:
    word = re.match(r"[a-z]+", name.lower())
    return SPLIT_NAMES.get(word.group()) if word else None


def _labels(file: Path, column: str) -> pa.ChunkedArray:
    labels = _read(file, [column])[column]
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    text = is_text(kind)
    if not (text or pa.types.is_integer(kind)):
        raise DataError(
            f"{file}: column {column} is of {labels.type}; expected whole numbers or text"
        )
    if labels.null_count:
        row = pc.index(pc.is_null(labels), True).as_py()
        raise DataError(f"{file.name} row {row}: no label{and_more(labels.null_count - 1)}")
    return labels.cast(pa.string() if text else pa.int64())


def _number_labels(
    path: Path, columns: _Columns, read: Mapping[SplitName, Sequence[pa.ChunkedArray]]
) -> tuple[dict[SplitName, np.ndarray[Any, np.dtype[np.int64]]], tuple[str, ...]]:
    """Labels as numbers, and the names in that order."""
    arrays = {split: [part.to_numpy() for part in parts] for split, parts in read.items()}
    joined = {split: np.concatenate(parts) for split, parts in arrays.items()}
    if all(part.dtype.kind in "iu" for part in joined.values()):
        names = columns.class_names
        if names is None:
            highest = max((int(part.max(initial=0)) for part in joined.values()), default=0)
            if highest >= 100_000:
                raise DataError(
                    f"{path}: label {highest} in column {columns.label}; no class names"
                )
            names = tuple(str(index) for index in range(highest + 1))
        return {split: part.astype(np.int64) for split, part in joined.items()}, names
    found = order_class_names({str(name) for part in joined.values() for name in set(part)})
    names = columns.class_names or found
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise DataError(f"{path}: labels that are no class of its metadata: {shorten(unknown)}")
    number = {name: index for index, name in enumerate(names)}
    return {
        split: np.array([number[str(name)] for name in part], np.int64)
        for split, part in joined.items()
    }, names
