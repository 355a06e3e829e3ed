"""Images per second: `train ingest` of PNG files, beside the decoder alone.

    python tests/benchmarks/ingest_png.py [--images 50000] [--side 28] [--rounds 3]

The decoder alone is what a server calls for each request, on the bytes of each file, in as many
processes as there are cores, which keep nothing. Rounds alternate between the two.
"""

import argparse
import functools
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
from cluster.images import ImageSpec, decode_image, encode_png, fit_pixels
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE
from cluster.store import Store

_SIDE = 28
_CHUNK = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=_SIDE, help="pixels; others are scaled up")
    given = parser.parse_args()
    rounds, images, side = given.rounds, given.images, given.side
    spec = ImageSpec(height=side, width=side, channels=1, resize="stretch")
    alone: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {STORE_VARIABLE: f"{folder}/store", TRACKING_VARIABLE: ""}
        files = write_files(Path(folder), environment, images, spec)
        for index in range(rounds):
            alone.append(images / decode_all(files, spec))
            began = time.monotonic()
            run_json(
                [
                    *(sys.executable, "-m", "train", "ingest", f"{folder}/images"),
                    *("--name", f"png{index}", "--json"),
                ],
                environment,
            )
            whole.append(images / (time.monotonic() - began))
            print(f"round {index + 1}: decoder {alone[-1]:,.0f}, ingest {whole[-1]:,.0f} images/s")
    file = write_result(
        "ingest_png" if side == _SIDE else f"ingest_png_{side}",
        title="Ingest of PNG files beside the decoder alone",
        what=(
            f"{images:,} training images of Fashion-MNIST ({side}x{side}, gray) as PNG files in "
            "class folders, in the page cache. `train ingest` is timed as a whole command: start "
            "of Python, walk through the folders, decoding, splits, statistics, digest, search for "
            "copies and near copies, writing. The decoder alone opens and decodes every file in "
            f"{len(os.sched_getaffinity(0))} processes that are running already, and keeps nothing."
        ),
        unit="images/s",
        command=(
            "python tests/benchmarks/ingest_png.py "
            f"--images {images} --side {side} --rounds {rounds}"
        ),
        reference=Series("decoder alone", tuple(alone)),
        others=[Series("train ingest", tuple(whole))],
        notes=["The machine is shared: the ratio is what counts."],
    )
    print(file.read_text("utf-8"))


def write_files(
    folder: Path, environment: dict[str, str], images: int, spec: ImageSpec
) -> list[str]:
    """Fashion-MNIST's training images as ``images/CLASS/NUMBER.png``."""
    command = [sys.executable, "-m", "train", "ingest", "fashion-mnist", "--name", "source"]
    run_json([*command, "--json"], environment)
    train = Dataset.find(Store(Path(environment[STORE_VARIABLE])), "source").split("train")
    files = []
    for row in range(images):
        file = folder / "images" / f"class{train.labels[row]}" / f"{row:05}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = train.take(np.array([row]))[0]
        file.write_bytes(encode_png(fit_pixels(pixels, spec)))
        files.append(str(file))
    return files


def decode_all(files: Sequence[str], spec: ImageSpec) -> float:
    """Seconds in which all are decoded, on all cores."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        work = functools.partial(decode, spec=spec)
        pool.map(work, [chunks[0]] * 8, chunksize=1)  # Every process has its imports.
        began = time.monotonic()
        pool.map(work, chunks, chunksize=1)
        return time.monotonic() - began


def decode(files: Sequence[str], spec: ImageSpec) -> None:
    """Decode some files."""
    for file in files:
        decode_image(Path(file).read_bytes(), spec)


if __name__ == "__main__":
    main()
