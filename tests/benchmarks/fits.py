"""What benchmarks of training share: the commands that a user types, in a store of their own."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from record import Series, run_json

from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE

WORKERS = 2


@contextlib.contextmanager
def own_store() -> Iterator[dict[str, str]]:
    """The environment of a store that is gone afterwards, without a tracking server."""
    with tempfile.TemporaryDirectory() as folder:
        yield {STORE_VARIABLE: folder, TRACKING_VARIABLE: ""}


def train(*arguments: str, environment: Mapping[str, str]) -> dict[str, object]:
    """``python -m train ARGUMENTS... --json``: the result, and ``wall_s`` of the whole command."""
    began = time.monotonic()
    result = run_json([sys.executable, "-m", "train", *arguments, "--json"], environment)
    return {**result, "wall_s": time.monotonic() - began}


def ingest(data: str, folder: Path | None, environment: Mapping[str, str], *options: str) -> Path:
    """Make a data set of a folder, or of what is published under the name; where it lies."""
    source = data if folder is None else str(folder)
    made = train("ingest", source, "--name", data, *options, environment=environment)
    return Path(str(made["path"]))


def fit(recipe: str, *options: str, environment: Mapping[str, str]) -> dict[str, object]:
    """``train fit RECIPE`` on two workers of one thread each."""
    return train(
        *("fit", recipe, "--workers", str(WORKERS), "--set", "resources.cpus_per_worker=1"),
        *options,
        environment=environment,
    )


def alternate(
    recipe: str,
    variants: Mapping[str, Sequence[str]],
    rounds: int,
    epochs: int,
    environment: Mapping[str, str],
) -> list[Series]:
    """Train each variant once a round, every second round in the opposite order.

    Args:
        recipe: what all of them begin with.
        variants: name of each, and its options of ``train fit``.
        rounds: how often; the seed is that of the round.
        epochs: of each run.
        environment: of a store with the recipe's data set.

    Returns:
        Images per second of each variant: of each run the median of its epochs.
    """
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds):
        names = list(variants)[:: -1 if index % 2 else 1]
        for name in names:
            run = fit(
                recipe,
                *("--set", f"epochs={epochs}", "--set", f"seed={index}"),
                *variants[name],
                environment=environment,
            )
            speeds[name].append(float(str(run["images_per_s"])))
            print(f"round {index + 1}: {name} {speeds[name][-1]:,.0f} images/s", flush=True)
    return [Series(name, tuple(values)) for name, values in speeds.items()]
