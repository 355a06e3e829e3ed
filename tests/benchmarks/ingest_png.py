"""Images per second: `train ingest` of 50,000 PNG files, beside the decoder alone.

    python tests/benchmarks/ingest_png.py [--rounds 3]

The decoder alone is what a server calls for each request, on the bytes of each file, in as many
processes as there are cores, which keep nothing. Rounds alternate between the two.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from record import Series, run_json, write_result

from cluster.dataset import Dataset
from cluster.images import ImageSpec, decode_image, encode_png
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE
from cluster.store import Store

IMAGES = 50_000
SPEC = ImageSpec(height=28, width=28, channels=1)
_CHUNK = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    alone: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {STORE_VARIABLE: f"{folder}/store", TRACKING_VARIABLE: ""}
        files = write_files(Path(folder), environment)
        for index in range(rounds):
            alone.append(IMAGES / decode_all(files))
            began = time.monotonic()
            run_json(
                [
                    *(sys.executable, "-m", "train", "ingest", f"{folder}/images"),
                    *("--name", f"png{index}", "--json"),
                ],
                environment,
            )
            whole.append(IMAGES / (time.monotonic() - began))
            print(f"round {index + 1}: decoder {alone[-1]:,.0f}, ingest {whole[-1]:,.0f} images/s")
    file = write_result(
        "ingest_png",
        title="Ingest of PNG files beside the decoder alone",
        what=(
            f"{IMAGES:,} training images of Fashion-MNIST (28x28, gray) as PNG files in class "
            "folders, in the page cache. `train ingest` is timed as a whole command: start of "
            "Python, walk through the folders, decoding, splits, statistics, digest, search for "
            "copies and near copies, writing. The decoder alone opens and decodes every file in "
            f"{len(os.sched_getaffinity(0))} processes that are running already, and keeps nothing."
        ),
        unit="images/s",
        command=f"python tests/benchmarks/ingest_png.py --rounds {rounds}",
        reference=Series("decoder alone", tuple(alone)),
        others=[Series("train ingest", tuple(whole))],
        notes=["The machine is shared: the ratio is what counts."],
    )
    print(file.read_text("utf-8"))


def write_files(folder: Path, environment: dict[str, str]) -> list[str]:
    """Fashion-MNIST's training images as ``images/CLASS/NUMBER.png``."""
    command = [sys.executable, "-m", "train", "ingest", "fashion-mnist", "--name", "source"]
    run_json([*command, "--json"], environment)
    train = Dataset.find(Store(Path(environment[STORE_VARIABLE])), "source").split("train")
    files = []
    for row in range(IMAGES):
        file = folder / "images" / f"class{train.labels[row]}" / f"{row:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(train.take(np.array([row]))[0]))
        files.append(str(file))
    return files


def decode_all(files: Sequence[str]) -> float:
    """Seconds in which all are decoded, on all cores."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(decode, [chunks[0]] * 8, chunksize=1)  # Every process has its imports.
        began = time.monotonic()
        pool.map(decode, chunks, chunksize=1)
        return time.monotonic() - began


def decode(files: Sequence[str]) -> None:
    """Decode some files."""
    for file in files:
        decode_image(Path(file).read_bytes(), SPEC)


if __name__ == "__main__":
    main()
