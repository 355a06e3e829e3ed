"""What an ingest reads, and what it holds in memory."""

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from harness import run_command
from ingested import Listener
from pictures import pngs, write_class_folders, write_parquet

from cluster.store import Store
from train.data.ingest import ingest
from train.data.options import IngestOptions
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source

pytestmark = pytest.mark.slow


def test_encoded_images_are_read_no_more_than_needed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for their headers, once to decode them, once to keep them."""
    source = read_source(str(write_class_folders(tmp_path / "pets")))
    pictures = source.parts["train"].pictures
    read: list[int] = []

    def chunks() -> Iterator[Any]:
        read.append(len(pictures))
        return type(pictures).chunks(pictures)

    monkeypatch.setitem(pictures.__dict__, "chunks", chunks)
    listener = Listener()
    dataset = ingest(store, source, "pets", IngestOptions(storage="encoded"), watcher=listener)
    dataset.verify()
    assert len(read) == 3
    assert listener.steps[-1] == ("writing", 20, 20)


def test_an_image_takes_some_200_bytes(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.workers.usable_cpus", lambda: 1)
    peaks = []
    for rows in (100, 5_000, 20_000):
        images = np.arange(rows * 4).reshape(-1, 1, 2, 2).astype(np.uint8)
        part = Part(PixelPictures(images, "image"), np.arange(rows) % 2)
        source = Source("made", ("cat", "dog"), {"train": part})
        tracemalloc.start()
        try:
            ingest(store, source, f"of-{rows}")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 15_000 < 230


MEASURE = """
import sys, threading
from pathlib import Path
from cluster.store import Store
from train.data.ingest import ingest
from train.data.options import IngestOptions, Silent
from train.data.sources.recognize import read_source

def private():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

class Peak(Silent):
    peak = 0
    def say(self, text): self.peak = max(self.peak, private())
    def advance(self, what, done, total): self.peak = max(self.peak, private())

def peak(name):
    watcher = Peak()
    options = IngestOptions(size=(64, 64), storage=sys.argv[2])
    ingest(Store(Path(sys.argv[1])), read_source(f"{name}.parquet"), name, options, watcher=watcher)
    return watcher.peak

peak("few")
print(peak("few"), peak("many"))
"""


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, storage: str) -> None:
    """1500 images and 6000, of 12 KiB of pixels each, in a process of its own."""
    blobs = pngs(6000, size=(16, 16))
    for name, rows in (("few", 1500), ("many", 6000)):
        file = write_parquet(tmp_path / f"{name}.parquet", blobs[:rows], [0, 1] * (rows // 2))
        # What Arrow knows of a thousand row groups takes more memory than the images.
        pq.write_table(pq.read_table(file), file, row_group_size=500)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "store"), storage]
    done = run_command(command, cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    few, many = (int(value) / 1024 for value in done.stdout.split())
    assert many - few < 25, "MiB, of 53 MiB of pixels"
