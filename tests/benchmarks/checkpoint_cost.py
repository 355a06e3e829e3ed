"""What checkpoints in the middle of an epoch cost at most: how long each one keeps anybody busy.

    python tests/benchmarks/checkpoint_cost.py [RECIPE] [--every-s 0.5]

RECIPE, by default `fashion_mnist`, is one for Fashion-MNIST. One epoch of one worker of one thread,
in this process: the loop is the one of `train fit`, and worker 0 is the only one that writes.
Speeds with and without checkpoints differ by far less than the speed of a shared machine from one
epoch to the next, so the time is counted where it is spent.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from fits import ingest, own_store
from record import write_facts

import train.checkpoint
from cluster.dataset import Dataset
from cluster.events import NullSink
from cluster.store import Folder
from train.checkpoint import Checkpoint, CheckpointWriter, save_checkpoint
from train.comm import Alone
from train.config import CheckpointConfig
from train.loop import Trainer
from train.recipes import get_recipe

DEFAULT = "fashion_mnist"
BOUND_PERIOD_S = 5.0


class Timed(Trainer):
    """Notes how long the training thread is held up by each checkpoint."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.held_s: list[float] = []

    def _save(self, writer: CheckpointWriter) -> None:
        began = time.monotonic()
        super()._save(writer)
        self.held_s.append(time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=DEFAULT)
    parser.add_argument("--every-s", type=float, default=0.5)
    given = parser.parse_args()
    changes = {"epochs": 1, "checkpoint": {"every_s": given.every_s}}
    config = get_recipe(given.recipe).with_changes(changes, "the benchmark")
    written_s: list[float] = []

    def timed_save(folder: Folder, checkpoint: Checkpoint, keep: int) -> None:
        began = time.monotonic()
        save_checkpoint(folder, checkpoint, keep)
        written_s.append(time.monotonic() - began)

    torch.set_num_threads(1)
    with own_store() as environment, tempfile.TemporaryDirectory() as folder:
        data = Dataset.open(ingest(config.data, None, environment))
        store = Folder(Path(folder))
        trainer = Timed(config, data, Alone(), torch.device("cpu"), store, NullSink())
        with mock.patch.object(train.checkpoint, "save_checkpoint", timed_save):
            trainer.run()
    each_s = statistics.median(trainer.held_s) + statistics.median(written_s)
    default_s = CheckpointConfig().every_s
    assert default_s is not None
    file = write_facts(
        "checkpoint_cost" if given.recipe == DEFAULT else f"checkpoint_cost_{given.recipe}",
        title="What checkpoints cost",
        what=(
            f"One epoch of `{given.recipe}`, one worker of one thread, with a checkpoint every "
            f"{given.every_s:g} s. The training thread copies the state; another one writes it. "
            "Training cannot lose more than both together take: the share of an epoch below is "
            "that bound, as if nothing were trained while a checkpoint is written."
        ),
        facts={
            "checkpoints": str(len(written_s)),
            "milliseconds of the training thread": milliseconds(trainer.held_s),
            "milliseconds from first to last byte": milliseconds(written_s),
            f"share of an epoch at most, every {default_s:g} s (the default)": (
                f"{each_s / default_s:.2%}"
            ),
            f"share of an epoch at most, every {BOUND_PERIOD_S:g} s": (
                f"{each_s / BOUND_PERIOD_S:.2%}"
            ),
        },
        notes=["Median, and lowest to highest; the shares are of the medians."],
        command=f"python tests/benchmarks/checkpoint_cost.py {given.recipe} "
        f"--every-s {given.every_s:g}",
        details={"held_s": trainer.held_s, "written_s": written_s},
    )
    print(file.read_text("utf-8"))


def milliseconds(seconds: list[float]) -> str:
    """Median and range."""
    low, high = min(seconds), max(seconds)
    return f"{1000 * statistics.median(seconds):.1f} ({1000 * low:.1f} - {1000 * high:.1f})"


if __name__ == "__main__":
    main()
