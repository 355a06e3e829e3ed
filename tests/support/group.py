"""Runs of the training loop in processes of their own, joined by gloo, without Ray."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.dataset import Dataset
from cluster.events import NullSink
from cluster.store import Folder
from train.comm import choose_comm
from train.config import TrainConfig
from train.data.loader import Batch
from train.eager import leave_compiler_out
from train.loop import Trainer
from train.meter import Meter
from train.weights import weights_sha256

CPU = torch.device("cpu")
TIMEOUT_S = 240


class Killed(Trainer):
    """A trainer whose process is ended by ``kill -9`` before a step, unless that is None."""

    stop_at: int | None = None

    def _step(self, batches: Iterator[Batch], step: int, meter: Meter) -> None:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._step(batches, step, meter)


def train_in_group(
    config: TrainConfig, dataset: Path, folder: Path, workers: int, *, stop_at: int | None = None
) -> str | None:
    """Train with a number of workers, from the newest checkpoint of a folder on.

    Args:
        config: of the run.
        dataset: folder of the data set.
        folder: of the checkpoints.
        workers: processes, of one thread each.
        stop_at: all of them are killed before this step.

    Returns:
        sha256 of the weights, the same on every worker; None if they were killed.
    """
    # A server that has PyTorch forks them: to import it takes longer than the training.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.loop", "torch.distributed"])
    answers = context.SimpleQueue()
    processes: list[BaseProcess] = [
        context.Process(
            target=_work,
            args=(config, dataset, folder, workers, rank, stop_at, answers),
        )
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
    (folder / "rendezvous").unlink(missing_ok=True)
    codes = [process.exitcode for process in processes]
    if stop_at is not None:
        assert codes == [-signal.SIGKILL] * workers
        return None
    assert codes == [0] * workers
    (digest,) = {answers.get() for _ in processes}
    return str(digest)


def _work(
    config: TrainConfig,
    dataset: Path,
    folder: Path,
    workers: int,
    rank: int,
    stop_at: int | None,
    answers: "multiprocessing.SimpleQueue[str]",
) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    if workers > 1:
        store = f"file://{folder / 'rendezvous'}"
        dist.init_process_group("gloo", store, rank=rank, world_size=workers)
    leave_compiler_out()
    trainer = Killed(config, Dataset.open(dataset), choose_comm(), CPU, Folder(folder), NullSink())
    trainer.stop_at = stop_at
    trainer.run()
    answers.put(weights_sha256(trainer.net))
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()
