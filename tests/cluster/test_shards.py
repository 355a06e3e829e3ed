"""The files of a split: bounded in size, written in bounded memory, and checked."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import CLASS_NAMES, SPEC, write_photos

from cluster.dataset import META_FILE, Dataset, EncodedSplit, content_digest
from cluster.errors import DataError
from cluster.shards import BATCH_BYTES, EncodedWriter
from cluster.splits import open_split


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    return write_photos(tmp_path / "photos", {"train": 50, "test": 7})


def test_a_file_has_several_batches_and_the_digest_knows_of_neither(tmp_path: Path) -> None:
    digests = []
    for shard_bytes in (BATCH_BYTES // 2, 10 * BATCH_BYTES):
        folder = tmp_path / str(shard_bytes)
        folder.mkdir()
        with EncodedWriter(folder, "train", 2, shard_bytes=shard_bytes) as writer:
            for row in range(5):
                writer.add(b"x" * (BATCH_BYTES // 2), row % 2)
            info = writer.finish()
        assert (info.rows, info.class_counts) == (5, (3, 2))
        split = open_split(folder, info, SPEC, "encoded")
        assert isinstance(split, EncodedSplit)
        assert split.labels.tolist() == [0, 1, 0, 1, 0]
        assert [len(split.encoded(row)) for row in range(5)] == [BATCH_BYTES // 2] * 5
        digests.append((len(info.shards), content_digest(SPEC, CLASS_NAMES, {"train": split})))
    assert [count for count, _ in digests] == [5, 1]
    assert digests[0][1] == digests[1][1]


def test_a_split_without_images(tmp_path: Path) -> None:
    info = EncodedWriter(tmp_path, "val", 3).finish()
    assert (info.shards, info.class_counts) == ((), (0, 0, 0))
    assert len(open_split(tmp_path, info, SPEC, "encoded")) == 0


def test_images_are_written_as_they_come(tmp_path: Path) -> None:
    written = []
    with EncodedWriter(tmp_path, "train", 1, first=7, shard_bytes=2000) as writer:
        for _ in range(8):
            writer.add(b"x" * 1000, 0)
            written.append(len(list(tmp_path.glob("train-*.arrow"))))
        info = writer.finish()
    assert written == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [shard.file for shard in info.shards] == [f"train-{n:05}.arrow" for n in range(7, 11)]


@pytest.mark.parametrize("change", [b"", b"more"])
def test_a_file_of_another_size_is_found_when_the_data_set_is_opened(
    photos: Dataset, change: bytes
) -> None:
    file = photos.path / photos.meta.splits["train"].shards[1].file
    content = file.read_bytes()
    file.write_bytes(content + change if change else content[:-100])
    with pytest.raises(DataError, match=r"train-00001\.arrow has \d+ bytes; it was written with"):
        Dataset.open(photos.path)


def test_a_missing_file_is_found_when_the_data_set_is_opened(photos: Dataset) -> None:
    (photos.path / "train-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"train-00002\.arrow cannot be read: No such file"):
        Dataset.open(photos.path)


def test_a_changed_byte_in_any_file_is_found_when_asked(photos: Dataset) -> None:
    seen: list[Path] = []
    photos.verify(seen.append)
    assert len(seen) == sum(len(info.shards) for info in photos.meta.splits.values())
    file = photos.path / "train-00001.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001\.arrow was changed since it was ingested"):
        Dataset.open(photos.path).verify()


def test_a_file_with_other_rows_than_recorded(photos: Dataset) -> None:
    file = photos.path / META_FILE
    values = json.loads(file.read_text())
    values["splits"]["train"]["shards"][0]["rows"] += 1
    file.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"train-00000\.arrow holds \d+ rows; meta.json says"):
        Dataset.open(photos.path).split("train")


COPY = """
import resource, sys
from pathlib import Path
import numpy as np
from cluster.shards import write_split

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
images = np.memmap(folder / "raw", np.uint8, "r", shape=(rows, 3, 64, 64))
# Once before, for what the libraries take for themselves.
write_split(folder, "val", images[:1], np.zeros(1, np.int64), 1)
status = Path("/proc/self/status").read_text()
data = int(status.split("VmData:")[1].split()[0]) * 1024
# Of private memory 24 MiB more than now, for 96 MiB of images.
resource.setrlimit(resource.RLIMIT_DATA, (data + 24 * 2**20,) * 2)
print(write_split(folder, "train", images, np.zeros(rows, np.int64), 1).rows)
"""


def test_pixels_larger_than_memory_are_written(tmp_path: Path) -> None:
    rows = 8192
    np.memmap(tmp_path / "raw", np.uint8, "w+", shape=(rows, 3, 64, 64)).flush()
    done = subprocess.run(
        [sys.executable, "-c", COPY, str(tmp_path), str(rows)], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(rows), done.stderr
