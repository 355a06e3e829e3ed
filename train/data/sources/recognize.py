"""Which kind of source it is: a name, or what lies at a path."""

from collections.abc import Callable
from pathlib import Path

from cluster.errors import DataError
from train.data.sources.folder import read_class_folders
from train.data.sources.idx import idx_files, read_idx_folder
from train.data.sources.named import NAMED_SOURCES
from train.data.sources.parquet import holds_parquet, read_parquet
from train.data.sources.source import Source, check_source
from train.data.sources.table import read_csv_table

_TABLE_SUFFIXES = (".csv", ".tsv")


def read_source(
    source: str,
    *,
    root: Path | None = None,
    class_names: tuple[str, ...] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Source:
    """Find out what a source is and read its labels; encoded images are read by ingest.

    Args:
        source: a name of :data:`NAMED_SOURCES`, a folder (of IDX files, of Parquet files, or of
            class folders), a Parquet file, or a CSV file of paths and labels. A name wins over a
            folder of that name; write ``./NAME`` for the folder.
        root: for a named source, the folder that holds its files (or takes its download).
        class_names: names in label order, in place of the source's own.
        image_column: of a table or Parquet file, where it is not clear.
        label_column: likewise.
        say: told of a download.

    Raises:
        DataError: the source is unknown, incomplete or damaged, or an option does not apply.
    """
    found = _read(source, root, image_column, label_column, say)
    if class_names is not None:
        found = found.renamed(class_names)
    check_source(found)
    return found


def _read(
    source: str,
    root: Path | None,
    image_column: str | None,
    label_column: str | None,
    say: Callable[[str], None],
) -> Source:
    path = Path(source).expanduser()
    named = NAMED_SOURCES.get(source)
    table = not named and (path.is_file() or (path.is_dir() and holds_parquet(path)))
    if not table and (image_column or label_column):
        option = "--image-column" if image_column else "--label-column"
        raise DataError(f"{option}: {source} has no columns; it is for tables and Parquet files")
    if named is not None:
        if path.is_dir() and root is None:
            say(f"{source} is the data set of that name; the folder is ./{source}")
        return named(root, say)
    if root is not None:
        raise DataError(f"--root: it is for {', '.join(NAMED_SOURCES)}; {source} is none of these")
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return read_parquet(path, image_column, label_column)
        if path.suffix.lower() in _TABLE_SUFFIXES:
            return read_csv_table(path, image_column, label_column)
    elif path.is_dir():
        if idx_files(path):
            return read_idx_folder(path)
        if table:
            return read_parquet(path, image_column, label_column)
        return read_class_folders(path)
    what = "no such file or folder, nor" if not path.exists() else "not"
    raise DataError(
        f"source {source!r}: {what} one of {', '.join(NAMED_SOURCES)}, a folder (of class folders, "
        "Parquet or IDX files), a .parquet file, or a .csv or .tsv of paths and labels"
    )
