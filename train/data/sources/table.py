"""A table of image paths and labels: CSV, TSV or Parquet."""

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            rows = [(f"line {reader.line_num}", row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise DataError(f"{path} is empty; expected a header and rows")
    header = [name.strip() for name in rows.pop(0)[1]]
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]}; give each a name of its own")
    for place, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path} {place} has {len(row)} fields; its header has {len(header)}")
    columns = {name: [row[index].strip() for _, row in rows] for index, name in enumerate(header)}
    return from_columns(path, columns, [place for place, _ in rows], image_column, label_column)


def from_arrow(
    path: Path, table: pa.Table, image_column: str | None, label_column: str | None
) -> Source:
    """Read paths and labels out of an Arrow table.

    Raises:
        DataError: paths are no text, or see :func:`from_columns`.
    """
    image = _find(table.column_names, image_column, PATH_COLUMNS)
    if image is not None and not is_text(table.schema.field(image).type):
        raise DataError(
            f"--image-column {image}: {path} has {table.schema.field(image).type}; "
            "images are bytes, or paths as text"
        )
    label = _find(table.column_names, label_column, LABEL_COLUMNS)
    split = _find(table.column_names, None, (SPLIT_COLUMN,))
    # Others are named in errors alone.
    columns = {
        name: table[name].to_pylist() if name in (image, label, split) else []
        for name in table.column_names
    }
    places = [f"row {row}" for row in range(len(table))]
    return from_columns(path, columns, places, image_column, label_column)


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow column holds text, be it as a dictionary of it."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def from_columns(
    path: Path,
    columns: Columns,
    places: Sequence[str],
    image_column: str | None,
    label_column: str | None,
) -> Source:
    """Make a source of columns.

    Args:
        path: the table's file. Relative paths in it are relative to its folder.
        columns: values by column name.
        places: what a person finds each row by.
        image_column: holds the paths; else the first of :data:`PATH_COLUMNS` that there is.
        label_column: holds the classes; else the first of :data:`LABEL_COLUMNS` that there is.

    Raises:
        DataError: a column is missing, a field is empty, or a split is unknown.
    """
    paths = _column(path, columns, places, image_column, PATH_COLUMNS, "--image-column")
    labels = _column(path, columns, places, label_column, LABEL_COLUMNS, "--label-column")
    split_column = _find(columns, None, (SPLIT_COLUMN,))
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
                f"{path} {places[row]}: split {str(value)!r}; expected train, val or test"
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
    path: Path,
    columns: Columns,
    places: Sequence[str],
    wanted: str | None,
    usual: tuple[str, ...],
    option: str,
) -> list[str]:
    found = _find(columns, wanted, usual)
    if found is None:
        names = " or ".join(usual) if wanted is None else wanted
        raise DataError(
            f"{path} has no column {names}; it has: {', '.join(columns)}; name one with {option}"
        )
    values = ["" if value is None else str(value) for value in columns[found]]
    if "" in values:
        raise DataError(f"{path} {places[values.index('')]}: column {found} is empty")
    return values


def _find(columns: Collection[str], wanted: str | None, usual: tuple[str, ...]) -> str | None:
    """The column that was named, or the first of the usual ones, whatever their case."""
    names = usual if wanted is None else (wanted,)
    if wanted in columns:
        return wanted
    by_name = {name.lower(): name for name in reversed(list(columns))}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)
