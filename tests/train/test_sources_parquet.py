"""Hugging Face image Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import pngs, write_parquet

from cluster.errors import DataError
from train.data.sources import source as source_module
from train.data.sources.recognize import read_source


def all_pictures(source: source_module.Source) -> list[Any]:
    return [picture for chunk in source.parts["train"].pictures.chunks() for picture in chunk]


@pytest.mark.parametrize("struct", [True, False])
def test_one_file(tmp_path: Path, struct: bool) -> None:
    blobs = pngs(20)
    file = write_parquet(tmp_path / "pets.parquet", blobs, [0, 1] * 10, struct=struct)
    source = read_source(str(file))
    assert source.class_names == ("cat", "dog")
    assert source.parts["train"].labels.tolist() == [0, 1] * 10
    assert all_pictures(source) == blobs
    assert source.parts["train"].pictures.name(8) == "pets.parquet row 8"


@pytest.mark.parametrize(
    "names",
    [
        (
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-0.parquet",
        ),
        ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
    ],
)
def test_shards_and_splits_by_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_parquet(tmp_path / name, pngs(8, number * 8), [0, 1] * 4)
    source = read_source(str(tmp_path))
    assert {split: len(part) for split, part in source.parts.items()} == {"test": 8, "train": 16}
    assert all_pictures(source) == pngs(16)
    assert source.parts["train"].pictures.name(9) == f"{Path(names[1]).name} row 1"


def test_chunks_are_bounded_in_rows_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = pngs(20)
    file = write_parquet(tmp_path / "a.parquet", blobs, [0, 1] * 10)
    monkeypatch.setattr("train.data.sources.parquet.CHUNK_BYTES", 3 * len(blobs[0]))
    chunks = [len(chunk) for chunk in read_source(str(file)).parts["train"].pictures.chunks()]
    assert sum(chunks) == 20
    assert max(chunks) <= 4


def test_paths_where_there_are_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(pngs(1)[0])
    paths: list[str | None] = ["x.png", None]
    file = write_parquet(tmp_path / "a.parquet", [None, *pngs(1)], [0, 1], paths=paths)
    assert all_pictures(read_source(str(file))) == [str(tmp_path / "x.png"), *pngs(1)]


def test_labels_without_class_names(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pngs(4), [0, 2, 1, 0], names=None)
    assert read_source(str(file)).class_names == ("0", "1", "2")


def test_labels_as_text(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pngs(3), ["dog", "cat", "dog"], names=None)
    source = read_source(str(file))
    assert source.class_names == ("cat", "dog")
    assert source.parts["train"].labels.tolist() == [1, 0, 1]


def test_several_label_columns_are_chosen_from(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "a.parquet", pngs(4), [0, 1, 0, 1], extra={"coarse": [0, 0, 1, 1]}
    )
    with pytest.raises(DataError, match="several columns of labels: label, coarse; choose one wi"):
        read_source(str(file))
    source = read_source(str(file), label_column="coarse")
    assert source.class_names == ("0", "1")
    assert source.parts["train"].labels.tolist() == [0, 0, 1, 1]


def test_folders_below_a_split_are_shards_of_it(tmp_path: Path) -> None:
    for name in ("a/0.parquet", "b/0.parquet", ".cache/a.parquet"):
        write_parquet(tmp_path / "train" / name, pngs(4), [0, 1] * 2)
    assert len(read_source(str(tmp_path))) == 8


def test_a_column_of_paths_may_be_named_beside_images(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    columns = {"img": pngs(2), "where": ["a.png", "b.png"], "label": ["cat", "dog"], "id": [1, 2]}
    pq.write_table(pa.table(columns), file)
    source = read_source(str(file), image_column="where")
    assert all_pictures(source) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    says = f"--image-column id: {file} has int64; images are bytes, or paths as text"
    with pytest.raises(DataError, match=f"^{says}$"):
        read_source(str(file), image_column="id")
    pq.write_table(pa.table(columns).drop_columns("img"), file)
    with pytest.raises(DataError, match=f"^{says}$"):
        read_source(str(file), image_column="id")


def no_parquet(folder: Path) -> None:
    (folder / "a.parquet").write_bytes(b"no parquet")


def no_labels(folder: Path) -> None:
    pq.write_table(pa.table({"image": pngs(2), "x": [1, 2]}), folder / "a.parquet")


def null_label(folder: Path) -> None:
    write_parquet(folder / "a.parquet", pngs(3), [0, None, 1])


def float_labels(folder: Path) -> None:
    write_parquet(folder / "a.parquet", pngs(2), [0.5, 1.5], names=None)


def unlabelled_test(folder: Path) -> None:
    write_parquet(folder / "train.parquet", pngs(4), [0, 1] * 2)
    write_parquet(folder / "test.parquet", pngs(2), [-1, -1])


def other_names(folder: Path) -> None:
    write_parquet(folder / "train.parquet", pngs(4), [0, 1] * 2)
    write_parquet(folder / "test.parquet", pngs(2), [0, 1], names=("dog", "cat"))


def no_split(folder: Path) -> None:
    write_parquet(folder / "train.parquet", pngs(4), [0, 1] * 2)
    write_parquet(folder / "extra.parquet", pngs(4), [0, 1] * 2)


def two_sets(folder: Path) -> None:
    for name in ("fine", "coarse"):
        write_parquet(folder / name / "train-0.parquet", pngs(4), [0, 1] * 2)
        write_parquet(folder / name / "test" / "0.parquet", pngs(4), [0, 1] * 2)


def damaged_paths(folder: Path) -> None:
    table = pa.table({"path": ["a.png"] * 99, "label": ["cat", "dog", "cow"] * 33})
    pq.write_table(table, folder / "a.parquet", compression="none")
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data[:4] + bytes([255]) * 60 + data[64:])


def only_test(folder: Path) -> None:
    write_parquet(folder / "test-00000-of-00001.parquet", pngs(4), [0, 1] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_parquet, "a.parquet is no Parquet file that can be read"),
        (no_labels, "has no column of labels; it has: image, x; name one with --label-column"),
        (null_label, "a.parquet row 1: no label$"),
        (float_labels, "column label is of double; expected whole numbers or text"),
        (
            unlabelled_test,
            "test.parquet row 0 of split test has label -1; the 2 classes are 0 to 1",
        ),
        (other_names, "has other columns or class names than"),
        (no_split, "no split can be told of extra.parquet; names begin with train, validation or"),
        (two_sets, "holds test files of several data sets, in the folders coarse, fine; name one"),
        (damaged_paths, r"a.parquet is damaged: [^\n]+$"),
        (only_test, "brings test, but no images to train on"),
    ],
)
def test_parquet_that_cannot_be_read(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_source(str(tmp_path))


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pngs(300), [0, 1] * 150)
    source = read_source(str(file))
    data = file.read_bytes()
    # Columns are found by the footer; this damages what they hold.
    file.write_bytes(data[:4] + bytes(20_000) + data[20_004:])
    with pytest.raises(DataError, match="parquet is damaged"):
        list(source.parts["train"].pictures.chunks())
