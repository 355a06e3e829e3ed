"""The training loop: plain torch. It knows its peers as a ``Comm`` and its listeners as a sink."""

import hashlib
import json
import math
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.dataset import Dataset, ImageSplit
from cluster.errors import CheckpointError, TrainingError
from cluster.events import EventSink
from cluster.store import Folder
from train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
)
from train.comm import Comm, sync_buffers
from train.config import TrainConfig
from train.data.loader import TrainLoader, shard_batches
from train.losses import loss_sum
from train.models.classifier import Classifier, build_classifier
from train.optim import build_optimizer, set_lr
from train.schedules import lr_multiple
from train.weights import check_state_dict

EVAL_BATCH = 512
PROGRESS_PERIOD_S = 0.5


@dataclass
class Progress:
    """Where a run stands."""

    step: int
    history: list[dict[str, float]]


class Trainer:
    """One worker's side of a run.

    Args:
        config: the run's configuration.
        dataset: what to train on.
        comm: the peers.
        device: where to compute.
        checkpoints: folder of the run's checkpoints; the newest is gone on from.
        events: told of the start, the progress and each epoch, by worker 0.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        comm: Comm,
        device: torch.device,
        checkpoints: Folder,
        events: EventSink,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.comm = comm
        self.device = device
        self.events = events
        self._folder = checkpoints
        self.classifier = build_classifier(config, dataset.meta)
        self.classifier.to(device)
        self.optimizer = build_optimizer(config.optim, self.classifier)
        self.loader = TrainLoader(
            dataset.split("train"),
            config.batch_size,
            config.augment,
            sampling=config.sampling,
            seed=config.seed,
            rank=comm.rank,
            world=comm.world,
        )
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = self.steps_per_epoch * config.epochs
        self._signature = model_signature(self.classifier.net)

    def run(self) -> Progress:
        """Train to the last epoch, from the newest checkpoint if there is one.

        Raises:
            TrainingError: the loss is not finite.
        """
        progress = self._restore()
        workers = self.comm.gather({"host": socket.gethostname(), "pid": os.getpid()})
        self._emit("start", step=progress.step, total_steps=self.total_steps, workers=workers)
        model = self.comm.wrap(self.classifier)
        writer = CheckpointWriter(self._folder, self.config.checkpoint.keep)
        try:
            for epoch in range(progress.step // self.steps_per_epoch, self.config.epochs):
                progress.history.append(self._epoch(model, epoch, progress, writer))
                self._save(progress, writer)
                self._emit("epoch", **progress.history[-1])
        finally:
            writer.close()
        if writer.failures:
            self._emit("checkpoint_failures", count=writer.failures, newest=writer.last_failure)
        sync_buffers(self.classifier, self.comm)
        return progress

    def _epoch(
        self, model: nn.Module, epoch: int, progress: Progress, writer: CheckpointWriter
    ) -> dict[str, float]:
        # After a restart within an epoch its training metrics are those of the steps that are left;
        # the weights, and with them the validation metrics, are those of the whole epoch.
        first = progress.step % self.steps_per_epoch
        meter = Meter(self.device)
        saved_at = told_at = time.monotonic()
        model.train()
        for batch in self.loader.epoch(epoch, first):
            self._step(model, batch.images, batch.labels, progress.step, meter)
            progress.step += 1
            now = time.monotonic()
            if self.comm.rank == 0 and now - told_at > PROGRESS_PERIOD_S:
                told_at = now
                self._tell_progress(epoch, progress.step, meter)
            every_s = self.config.checkpoint.every_s
            # The last step's checkpoint is the epoch's own, which knows the epoch's metrics.
            inside = progress.step % self.steps_per_epoch != 0
            if inside and every_s is not None and now - saved_at > every_s:
                saved_at = now
                self._save(progress, writer)
        train_s = meter.seconds()
        train = self.comm.sum(meter.totals).tolist()
        if not math.isfinite(train[0]):
            raise TrainingError(
                f"the loss is not finite after epoch {epoch + 1}; "
                f"optim.lr={self.config.optim.lr:g} may be too high; "
                "the last good checkpoint is kept"
            )
        val_loss, val_accuracy = self.evaluate(self.dataset.split("val"))
        return {
            "epoch": epoch + 1,
            "step": progress.step,
            "train_loss": train[0] / train[2],
            "train_accuracy": train[1] / train[2],
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": self._lr(progress.step - 1),
            "images_per_s": train[2] / train_s,
        }

    def _step(
        self, model: nn.Module, images: Tensor, labels: Tensor, step: int, meter: "Meter"
    ) -> None:
        images, labels = images.to(self.device), labels.to(self.device)
        set_lr(self.optimizer, self._lr(step))
        torch.manual_seed(step_seed(self.config.seed, step, self.comm.rank))
        self.optimizer.zero_grad(set_to_none=True)
        logits = model(images)
        loss = loss_sum(self.config.loss, logits, labels)
        # Every worker holds the same share of the batch, so the mean of means is the mean.
        (loss / len(labels)).backward()
        self.optimizer.step()
        meter.add(loss.detach(), logits.detach(), labels)

    @torch.inference_mode()
    def evaluate(self, split: ImageSplit) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of a split, each image counted once over all workers."""
        sync_buffers(self.classifier, self.comm)
        self.classifier.eval()
        meter = Meter(self.device)
        shards = shard_batches(split, EVAL_BATCH, rank=self.comm.rank, world=self.comm.world)
        for batch in shards:
            labels = batch.labels.to(self.device)
            logits = self.classifier(batch.images.to(self.device))
            # Plain cross-entropy, as every other evaluation: without the training's smoothing.
            meter.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
        total = self.comm.sum(meter.totals).tolist()
        return total[0] / total[2], total[1] / total[2]

    def predict(self, split: ImageSplit) -> npt.NDArray[np.float32]:
        """Logits of a whole split in its own order, computed by all workers together."""
        sync_buffers(self.classifier, self.comm)
        own = predict_shard(
            self.classifier, split, self.device, rank=self.comm.rank, world=self.comm.world
        )
        logits = np.empty((len(split), own.shape[1]), np.float32)
        for rank, part in enumerate(self.comm.gather(own)):
            logits[rank :: self.comm.world] = part
        return logits

    def _lr(self, step: int) -> float:
        multiple = lr_multiple(self.config.schedule, step, self.total_steps)
        return self.config.optim.lr * multiple

    def _restore(self) -> Progress:
        """Go on from the checkpoint that worker 0 finds, so that all begin at the same step."""
        found = latest_checkpoint(self._folder) if self.comm.rank == 0 else None
        checkpoint: Checkpoint | None = self.comm.gather(found)[0]
        if checkpoint is None:
            if self.config.pretrained is not None:
                raise CheckpointError("the first weights of this run are gone; begin a new run")
            return Progress(0, [])
        if checkpoint.model_signature != self._signature:
            check_state_dict(self.classifier.net, checkpoint.model, "the newest checkpoint")
        self.classifier.net.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        return Progress(checkpoint.step, checkpoint.history)

    def _save(self, progress: Progress, writer: CheckpointWriter) -> None:
        # Weights that are no longer finite must not push out the last good checkpoint.
        if self.comm.rank != 0 or not _is_finite(self.classifier):
            return
        writer.submit(
            Checkpoint(
                step=progress.step,
                epoch=progress.step // self.steps_per_epoch,
                seed=self.config.seed,
                model_signature=self._signature,
                model=_to_cpu(self.classifier.net.state_dict()),
                optimizer=_to_cpu(self.optimizer.state_dict()),
                history=list(progress.history),
            )
        )

    def _tell_progress(self, epoch: int, step: int, meter: "Meter") -> None:
        loss, _, images = meter.totals.tolist()
        self._emit(
            "progress",
            epoch=epoch + 1,
            step=step,
            total_steps=self.total_steps,
            loss=loss / images,
            lr=self._lr(step - 1),
            images_per_s=images * self.comm.world / meter.seconds(),
        )

    def _emit(self, kind: str, **values: Any) -> None:
        if self.comm.rank == 0:
            self.events.emit(kind, **values)


class Meter:
    """Sums of loss, correct predictions and images, kept on the device; and its own age."""

    def __init__(self, device: torch.device) -> None:
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self._began = time.monotonic()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch; ``loss`` is its sum."""
        correct = (logits.argmax(1) == labels).sum()
        images = torch.tensor(len(labels), device=labels.device)
        self.totals += torch.stack([loss.double(), correct.double(), images.double()])

    def seconds(self) -> float:
        """Time since the meter was made."""
        return max(time.monotonic() - self._began, 1e-9)


@torch.inference_mode()
def predict_shard(
    classifier: Classifier,
    split: ImageSplit,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
) -> npt.NDArray[np.float32]:
    """Logits ``[rows, classes]`` of every ``world``-th row of a split, from ``rank`` on."""
    classifier.eval()
    parts = [
        classifier(batch.images.to(device)).float().cpu().numpy()
        for batch in shard_batches(split, EVAL_BATCH, rank=rank, world=world)
    ]
    if not parts:
        return np.empty((0, len(classifier(_blank(split, device))[0])), np.float32)
    return np.concatenate(parts)


def first_checkpoint(config: TrainConfig, classifier: Classifier) -> Checkpoint:
    """What a run begins with whose first weights are not random: a checkpoint before any step."""
    return Checkpoint(
        step=0,
        epoch=0,
        seed=config.seed,
        model_signature=model_signature(classifier.net),
        model=classifier.net.state_dict(),
        optimizer=build_optimizer(config.optim, classifier).state_dict(),
        history=[],
    )


def model_signature(net: nn.Module) -> str:
    """sha256 over the names, shapes and types of a network's tensors."""
    listed = [(k, tuple(v.shape), str(v.dtype)) for k, v in net.state_dict().items()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what one worker draws in one step; different for each, and below 2**63."""
    text = f"{seed}:{step}:{rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _is_finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def _to_cpu(value: Any) -> Any:
    """A deep copy of nested tensors on the CPU, which training will not write to."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_to_cpu(entry) for entry in value]
    return value


def _blank(split: ImageSplit, device: torch.device) -> Tensor:
    shape = split.take(slice(0, 0)).shape[1:]
    return torch.zeros((1, *shape), dtype=torch.uint8, device=device)
