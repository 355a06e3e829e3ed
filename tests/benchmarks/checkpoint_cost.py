"""What checkpoints in the middle of an epoch cost: epochs of one run with and without, in turns.

    python tests/benchmarks/checkpoint_cost.py [RECIPE] [--pairs 10] [--every-s 5]

RECIPE, by default `fashion_mnist`, is one for Fashion-MNIST. Two workers of one thread each, in
processes of this program's own: the loop is the one of `train fit`, without Ray, so that the one
run can be told when to write. Machines change their speed within minutes, by more than is to be
measured; epochs beside one another hardly do.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
from fits import WORKERS, ingest, own_store
from record import Series, write_result

from cluster.dataset import Dataset
from cluster.events import NullSink
from cluster.store import Folder
from train.comm import choose_comm
from train.config import TrainConfig
from train.loop import Trainer
from train.recipes import get_recipe

DEFAULT = "fashion_mnist"
WARM_UP = 1
"""Epochs that are left out: threads start, and what Python compiles is compiled."""


class Alternating(Trainer):
    """Writes checkpoints within the second and third of each four epochs alone."""

    def _is_due(self, age_s: float) -> bool:
        return with_checkpoints(self.state.step // self.steps_per_epoch) and super()._is_due(age_s)


def with_checkpoints(epoch: int) -> bool:
    """Whether an epoch writes them; so that each side comes first as often as the other."""
    return (epoch - WARM_UP) % 4 in (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=DEFAULT)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--every-s", type=float, default=5)
    given = parser.parse_args()
    changes = {"epochs": WARM_UP + 2 * given.pairs, "checkpoint": {"every_s": given.every_s}}
    config = get_recipe(given.recipe).with_changes(changes, "the benchmark")
    with own_store() as environment:
        speeds = measure(config, ingest(config.data, None, environment))
    name = f"every {given.every_s:g} s"
    sides: dict[bool, list[float]] = {False: [], True: []}
    for epoch, speed in enumerate(speeds[WARM_UP:], start=WARM_UP):
        sides[with_checkpoints(epoch)].append(speed)
    costs = [1 - mine / other for mine, other in zip(sides[True], sides[False], strict=True)]
    low, _, high = statistics.quantiles(costs, n=4)
    file = write_result(
        "checkpoint_cost" if given.recipe == DEFAULT else f"checkpoint_cost_{given.recipe}",
        title="What checkpoints cost",
        what=(
            f"One run of `{given.recipe}` with two workers, {given.pairs} times two epochs of "
            "54,000 images: one with a checkpoint at its end alone, the one beside it with "
            f"further ones {name}. The default is one every 30 seconds."
        ),
        unit="images/s",
        command=f"python tests/benchmarks/checkpoint_cost.py {given.recipe} "
        f"--pairs {given.pairs} --every-s {given.every_s:g}",
        reference=Series("epoch ends alone", tuple(sides[False])),
        others=[Series(name, tuple(sides[True]))],
        notes=[
            f"Share of an epoch that a checkpoint {name} takes: median "
            f"{statistics.median(costs):+.2%}, quartiles {low:+.2%} and {high:+.2%} of "
            f"{len(costs)} pairs.",
        ],
        details={"share_of_epoch": costs},
    )
    print(file.read_text("utf-8"))


def measure(config: TrainConfig, dataset: Path) -> list[float]:
    """Images per second of each epoch."""
    context = multiprocessing.get_context("spawn")
    answers: SimpleQueue[list[float]] = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(target=work, args=(config, dataset, Path(folder), rank, answers))
            for rank in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker has failed; it says above why")
    return answers.get()


def work(
    config: TrainConfig, dataset: Path, folder: Path, rank: int, answers: "SimpleQueue[list[float]]"
) -> None:
    """One worker; the first one answers."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORKERS
    )
    checkpoints = Folder(folder / "checkpoints")
    trainer = Alternating(
        config, Dataset.open(dataset), choose_comm(), torch.device("cpu"), checkpoints, NullSink()
    )
    history = trainer.run().history
    if rank == 0:
        answers.put([entry["images_per_s"] for entry in history])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
