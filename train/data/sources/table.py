"""A table of image paths and labels: CSV, TSV or Parquet."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.dataset import SplitName
from cluster.errors import DataError
from train.data.sources.source import (
    SPLIT_NAMES,
    FilePictures,
    Part,
    Source,
    order_class_names,
)

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image")
LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "target")
SPLIT_COLUMN = "split"
Columns = Mapping[str, Sequence[object]]


def read_csv_table(path: Path, image_column: str | None, label_column: str | None) -> Source:
    """Read a CSV file (``.tsv``: of tabs) with a header.

    Raises:
        DataError: it cannot be read as such, or see :func:`from_columns`.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        # utf-8-sig: spreadsheets begin their files with a byte order mark.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise DataError(f"{path} is empty; expected a header and rows")
    header, *body = rows
    body = [row for row in body if row]
    for number, row in enumerate(body, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{path} row {number} has {len(row)} fields; its header has {len(header)}"
            )
    columns = {
        name.strip(): [row[index].strip() for row in body] for index, name in enumerate(header)
    }
    return from_columns(path, columns, image_column, label_column)


def from_arrow(
    path: Path, table: pa.Table, image_column: str | None, label_column: str | None
) -> Source:
    """Read paths and labels out of an Arrow table.

    Raises:
        DataError: see :func:`from_columns`.
    """
    wanted = {*PATH_COLUMNS, *LABEL_COLUMNS, SPLIT_COLUMN, image_column, label_column}
    columns = {
        name: table[name].to_pylist() for name in table.column_names if _in(name, wanted)
    } or {name: [] for name in table.column_names}
    return from_columns(path, columns, image_column, label_column)


def from_columns(
    path: Path, columns: Columns, image_column: str | None, label_column: str | None
) -> Source:
    """Make a source of columns.

    Args:
        path: the table's file. Relative paths in it are relative to its folder.
        columns: values by column name, all of one length.
        image_column: holds the paths; else the first of :data:`PATH_COLUMNS` that there is.
        label_column: holds the classes; else the first of :data:`LABEL_COLUMNS` that there is.

    Raises:
        DataError: a column is missing, a field is empty, or a split is unknown.
    """
    paths = _column(path, columns, image_column, PATH_COLUMNS, "--image-column")
    labels = _column(path, columns, label_column, LABEL_COLUMNS, "--label-column")
    split_column = next((name for name in columns if name.lower() == SPLIT_COLUMN), None)
    if not paths:
        raise DataError(f"{path} holds no rows")
    names = order_class_names(set(labels))
    label_of = {name: label for label, name in enumerate(names)}
    rows: dict[SplitName, list[int]] = {}
    splits = columns[split_column] if split_column else ["train"] * len(paths)
    for row, value in enumerate(splits):
        split = SPLIT_NAMES.get(str(value).strip().lower())
        if split is None:
            raise DataError(
                f"{path} row {row + 1}: split {str(value)!r}; expected train, val or test"
            )
        rows.setdefault(split, []).append(row)
    parts = {
        split: Part(
            FilePictures(path.parent, [paths[row] for row in chosen]),
            np.array([label_of[labels[row]] for row in chosen], np.int64),
        )
        for split, chosen in rows.items()
    }
    return Source(f"table {path.name}", names, parts)


def _column(
    path: Path, columns: Columns, wanted: str | None, usual: tuple[str, ...], option: str
) -> list[str]:
    names = (wanted,) if wanted is not None else usual
    found = next((name for want in names for name in columns if name.lower() == want.lower()), None)
    if found is None:
        raise DataError(
            f"{path} has no column {' or '.join(names)}; it has: {', '.join(columns)}; "
            f"name one with {option}"
        )
    values = ["" if value is None else str(value) for value in columns[found]]
    if "" in values:
        raise DataError(f"{path} row {values.index('') + 1}: column {found} is empty")
    return values


def _in(name: str, wanted: set[str | None]) -> bool:
    return any(want is not None and name.lower() == want.lower() for want in wanted)
