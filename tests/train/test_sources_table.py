"""Tables of paths and labels."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encode, picture

from cluster.errors import DataError
from train.data.sources.recognize import read_source


def test_a_csv_of_paths_labels_and_splits(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(encode(picture(1)))
    table = tmp_path / "pets.csv"
    table.write_text(
        "\ufeffFile,Label,split\r\nimages/1.png,dog,train\r\n\r\n"
        f'{tmp_path}/images/1.png,cat,TRAIN\r\n"a, b.png",cat,validation\r\n',
        newline="",
    )
    source = read_source(str(table))
    assert source.class_names == ("cat", "dog")
    assert source.parts["train"].labels.tolist() == [1, 0]
    assert source.parts["val"].pictures.name(0) == "a, b.png"
    (chunk,) = source.parts["train"].pictures.chunks()
    assert list(chunk) == [str(tmp_path / "images" / "1.png")] * 2


def test_tabs_and_numbers(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("label\tpath\n10\ta.png\n9\tb.png\n10\tc.png\n")
    source = read_source(str(table))
    assert source.class_names == ("9", "10")
    assert source.parts["train"].labels.tolist() == [1, 0, 1]


def test_columns_by_name(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,label,where,what\nx,y,a.png,cat\nx,y,b.png,dog\n")
    source = read_source(str(table), image_column="where", label_column="what")
    assert source.class_names == ("cat", "dog")
    assert source.parts["train"].pictures.name(1) == "b.png"


def test_a_parquet_table_of_paths(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    columns = {"filename": ["a.png", "b.png"], "class": ["cat", "dog"], "size": [1, 2]}
    pq.write_table(pa.table(columns), table)
    source = read_source(str(table))
    assert source.class_names == ("cat", "dog")
    assert source.parts["train"].pictures.name(0) == "a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty; expected a header and rows"),
        ("path,label\n", "t.csv holds no rows"),
        ("path,kind\na.png,cat\n", "has no column label or class or .*; it has: path, kind; name "),
        ("path,label\na.png\n", "t.csv line 2 has 1 fields; its header has 2"),
        ('path,label\n\n"a\n.png",cat\nb.png,\n', "t.csv line 5: column label is empty"),
        ("path,label,label\na.png,cat,dog\n", "t.csv has two columns label; give each a name of"),
        (
            "path,label,split\na.png,cat,holdout\n",
            "line 2: split 'holdout'; expected train, val or",
        ),
        ('path,label\n"a.png,cat\n', "cannot be read as CSV"),
        ("path,label\na.png,cat\nb.png,cat\n", "has one class"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        read_source(str(table))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(DataError, match=r"t.xlsx': not one of digits.* a .parquet file, or a .csv"):
        read_source(str(tmp_path / "t.xlsx"))
