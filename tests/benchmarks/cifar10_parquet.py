"""CIFAR-10 the whole way: Parquet -> data set -> training -> bundle -> 1,000 answers over HTTP.

    python tests/benchmarks/cifar10_parquet.py FOLDER [--ingests 3] [--seeds 1]

FOLDER holds CIFAR-10 as Hugging Face has it: Parquet files of PNG images, ``train-*`` and
``test-*``. Every step is the command that a user types; each answer is compared with what the
bundle gives in this process, opened from its folder.
"""

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from record import run_json, write_facts

from cluster.bundle import Bundle
from cluster.images import decode_image
from cluster.runtime import open_session, softmax
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE
from serve.client import Client

WORKERS = 2
IMAGES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ingests", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        environment = {STORE_VARIABLE: store, TRACKING_VARIABLE: ""}
        ingests = [ingest(options.folder, index, environment) for index in range(options.ingests)]
        fits = [fit(seed, environment) for seed in range(options.seeds)]
        with serving(environment) as url:
            asked = ask(url, Path(fits[-1]["bundle"]), options.folder)
    accuracies = [run["accuracy"] for run in fits]
    file = write_facts(
        "cifar10_parquet",
        title="CIFAR-10 from Parquet to HTTP",
        what=(
            "The real CIFAR-10, 60,000 PNG images in two Parquet files: `train ingest` with every "
            "image decoded, checked and compared with all others; `train fit cifar10` with two "
            "data-parallel workers, its defaults else; the bundle served by `serve deploy`; the "
            f"first {IMAGES:,} test images asked for one by one, as raw tensors and as the PNG "
            "bytes of the Parquet file."
        ),
        facts={
            f"ingest, seconds, n = {len(ingests)}": spread(ingests, ".1f"),
            f"`train fit cifar10`, seconds, n = {len(fits)}": spread(
                [run["wall_s"] for run in fits], ".0f"
            ),
            f"images/s, n = {len(fits)}": spread([run["images_per_s"] for run in fits], ",.0f"),
            f"test accuracy, n = {len(fits)}": spread(accuracies, ".4f"),
            "tensors: logits equal to the bit": f"{asked['equal_logits']} of {IMAGES}",
            "PNG: all probabilities equal as printed": f"{asked['equal_answers']} of {IMAGES}",
            "right": f"{asked['correct']} of {IMAGES}",
        },
        command=f"python tests/benchmarks/cifar10_parquet.py FOLDER --ingests {options.ingests} "
        f"--seeds {options.seeds}",
        details={
            "ingest_s": ingests,
            "fits": [{**run, "bundle": Path(run["bundle"]).name} for run in fits],
            "asked": asked,
        },
    )
    print(file.read_text("utf-8"))


def spread(values: list[float], form: str) -> str:
    """Median, and lowest to highest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} - {high:{form}})"


def ingest(folder: Path, index: int, environment: dict[str, str]) -> float:
    """Seconds of the whole command; the first makes the data set of the recipe."""
    began = time.monotonic()
    name = f"other{index}" if index else "cifar10"
    data = command("train", "ingest", str(folder), "--name", name, environment=environment)
    seconds = time.monotonic() - began
    print(f"ingest {index + 1}: {sum(data['splits'].values()):,} images in {seconds:.1f} s")
    return seconds


def fit(seed: int, environment: dict[str, str]) -> dict[str, Any]:
    """What ``train fit`` says at its end, with the seconds that it took."""
    began = time.monotonic()
    result = command(
        *("train", "fit", "cifar10", "--workers", str(WORKERS), "--set", f"seed={seed}"),
        *("--register", "cifar10"),
        environment=environment,
    )
    wanted = ("accuracy", "images_per_s", "weights_sha256", "bundle", "version")
    kept = {name: result[name] for name in wanted}
    kept["wall_s"] = time.monotonic() - began
    print(f"seed {seed}: accuracy {kept['accuracy']:.4f} in {kept['wall_s']:.0f} s")
    return kept


@contextlib.contextmanager
def serving(environment: dict[str, str]) -> Iterator[str]:
    """The newest version, served on a cluster of its own."""
    ports = [str(free_port()) for _ in range(3)]
    command(
        "cluster", "up", "--port", ports[0], "--dashboard-port", ports[1], environment=environment
    )
    try:
        deployed = command(
            "serve", "deploy", "cifar10", "--port", ports[2], environment=environment
        )
        yield deployed["url"]
    finally:
        command("cluster", "down", environment=environment)


def ask(url: str, folder: Path, data: Path) -> dict[str, int]:
    """Compare answers over HTTP with those of the bundle in this process."""
    (file,) = sorted(data.glob("test-*.parquet"))
    rows = pq.read_table(file).slice(0, IMAGES).to_pylist()
    bundle = Bundle.open(folder)
    session = open_session(bundle)
    names = bundle.manifest.class_names
    equal_logits = equal_answers = correct = 0
    with Client(url) as client:
        for row in rows:
            encoded, label = row["img"]["bytes"], row["label"]
            images = decode_image(encoded, bundle.manifest.image)[None]
            here = session.run(images)
            logits = client.infer("cifar10", images)
            equal_logits += bool(np.array_equal(logits, here))
            answer = client.classify("cifar10", encoded)
            chances = [f"{answer.probabilities[name]:.6g}" for name in names]
            equal_answers += chances == [f"{value:.6g}" for value in softmax(here)[0].tolist()]
            correct += answer.index == label
    return {"equal_logits": equal_logits, "equal_answers": equal_answers, "correct": correct}


def command(*arguments: str, environment: dict[str, str]) -> dict[str, Any]:
    """``python -m ARGUMENTS... --json``: the result."""
    return run_json([sys.executable, "-m", *arguments, "--json"], environment)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
