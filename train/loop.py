"""The training loop: plain torch. It knows its peers as a ``Comm`` and its listeners as a sink."""

import functools
import hashlib
import itertools
import math
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cluster.dataset import Dataset, ImageSplit
from cluster.errors import CheckpointError, DivergedError
from cluster.events import EventSink
from cluster.store import Folder
from train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    list_checkpoints,
)
from train.comm import Comm, sync_buffers
from train.config import TrainConfig
from train.data.loader import Batch, Mix
from train.gradients import Gradients
from train.hardware import lay_out
from train.inference import measure, predict
from train.meter import Meter
from train.models.freezing import apply_freeze, frozen_eval
from train.optim.build import set_lr
from train.regularization import add_l1, clip_gradients, gradient_norm
from train.schedules import Clock, lr_multiple
from train.setup import Setup, choose_gradients, prepare_memory, set_up
from train.state import TrainingState, to_cpu
from train.stopping import best_epoch, should_stop

PROGRESS_PERIOD_S = 0.5
GPU_CHECK_STEPS = 50
"""To read a number from a GPU waits for all that it was given; a CPU's is read in every step."""


class Trainer:
    """One worker's side of a run.

    Args:
        config: the run's configuration.
        dataset: what to train on.
        comm: the peers.
        device: where to compute.
        checkpoints: folder of the run's checkpoints; the newest is gone on from.
        events: told of the start, the progress and each epoch, by worker 0.

    Raises:
        ConfigError: a part of the configuration does not fit the data set or the device.
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
        self.dataset = dataset
        self.comm = comm
        self.device = device
        self.events = events
        self._folder = checkpoints
        self._setup: Setup = set_up(config, dataset, comm, device)
        self.config = self._setup.config
        self.state: TrainingState = self._setup.state
        self.steps_per_epoch = self._setup.loader.steps_per_epoch
        self.clock = Clock(epochs=config.epochs, steps_per_epoch=self.steps_per_epoch)
        self._gradients: Gradients

    @property
    def net(self) -> nn.Module:
        """The network, without its normalisation."""
        return self.state.classifier.net

    def run(self) -> TrainingState:
        """Train to the last epoch, or until early stopping, from the newest checkpoint on.

        Raises:
            DivergedError: the loss is not finite.
        """
        self._begin()
        writer = CheckpointWriter(self._folder, self.config.checkpoint.keep)
        stopping = self.config.early_stopping
        try:
            while self.state.step < self.clock.total_steps:
                if stopping is not None and should_stop(self.state.history, stopping):
                    break
                self._epoch(writer)
        except DivergedError as error:
            writer.close()
            raise DivergedError(f"{error}; {self._what_is_kept()}") from None
        finally:
            writer.close()
        if writer.failures:
            self._emit("checkpoint_failures", count=writer.failures, newest=writer.last_failure)
        self.state.end_with(self.state.best)
        sync_buffers(self.state.classifier, self.comm)
        return self.state

    def predict(self, split: ImageSplit) -> npt.NDArray[np.float32]:
        """Logits of a whole split in its own order, computed by all workers together."""
        sync_buffers(self.state.classifier, self.comm)
        return predict(self.state.classifier, split, self.device, self.comm)

    def _begin(self) -> None:
        """Go on from the checkpoint that worker 0 finds, so that all begin at the same step."""
        checkpoint = self.comm.gather(self._find_checkpoint())[0]
        if isinstance(checkpoint, CheckpointError):
            raise checkpoint
        if checkpoint is not None:
            self.state.restore(checkpoint)
        elif self.config.pretrained is not None:
            raise CheckpointError("the first weights of this run are gone; begin a new run")
        prepare_memory(self._setup, self.comm)
        self._prepare_layers(self.state.step // self.steps_per_epoch)
        self._gradients = choose_gradients(self._setup, self.comm)
        workers = self.comm.gather({"host": socket.gethostname(), "pid": os.getpid()})
        for note in self._setup.notes:
            self._emit("note", text=note)
        self._emit(
            "start",
            step=self.state.step,
            total_steps=self.clock.total_steps,
            workers=workers,
            history=list(self.state.history),
        )
        self._began = time.monotonic()
        self._first_step = self.state.step

    def _epoch(self, writer: CheckpointWriter) -> None:
        # After a restart within an epoch its training metrics are those of the steps that are left;
        # the weights, and with them the validation metrics, are those of the whole epoch.
        began = time.monotonic()
        epoch, first = divmod(self.state.step, self.steps_per_epoch)
        if self._prepare_layers(epoch):
            self._gradients.rewrap()
        meter = self._train(epoch, first, writer)
        self._check_finite(meter.grad_norm, self.state.step)
        totals = meter.totals.clone()
        loss, correct, images = self.comm.reduce(totals).tolist()
        speed = images / meter.seconds()
        with self.state.evaluated():
            sync_buffers(self.state.classifier, self.comm)
            val_loss, val_accuracy = measure(
                self.state.classifier, self.dataset.split("val"), self.device, self.comm
            )
            entry = {
                "epoch": epoch + 1,
                "step": self.state.step,
                "train_loss": loss / images,
                "train_accuracy": correct / images,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": self._lr(self.state.step - 1),
                "images_per_s": speed,
                "grad_norm": meter.grad_norm,
                "seconds": time.monotonic() - began,
            }
            self.state.history.append(entry)
            stopping = self.config.early_stopping
            if (
                stopping is not None
                and stopping.restore_best
                and best_epoch(self.state.history, stopping) == epoch + 1
            ):
                self.state.best = to_cpu(self.net.state_dict())
        self._save(writer)
        self._emit("epoch", **entry)

    def _find_checkpoint(self) -> Checkpoint | CheckpointError | None:
        """Worker 0's, which the others are told of."""
        if self.comm.rank != 0:
            return None
        try:
            return latest_checkpoint(self._folder)
        except CheckpointError as error:
            return error

    def _prepare_layers(self, epoch: int) -> bool:
        """Freeze what an epoch does not train, all else ready to learn; whether that changed."""
        changed = apply_freeze(self.net, self.config.freeze, epoch)
        self.state.classifier.train()
        frozen_eval(self.net)
        return changed

    def _train(self, epoch: int, first: int, writer: CheckpointWriter) -> Meter:
        """The steps of an epoch from ``first`` on."""
        meter = Meter(self.device, skipping=self.state.scaler is not None)
        saved_at = told_at = time.monotonic()
        batches = self._setup.loader.epoch(epoch, first)
        for _ in range(first, self.steps_per_epoch):
            own = itertools.islice(batches, len(self._setup.parts))
            self._step(own, self.state.step, meter)
            self.state.step += 1
            now = time.monotonic()
            if self.comm.rank == 0 and now - told_at > PROGRESS_PERIOD_S:
                told_at = now
                self._tell_progress(epoch, meter)
            # The last step's checkpoint is the epoch's own, which knows the epoch's metrics.
            if self.state.step % self.steps_per_epoch and self._is_due(now - saved_at):
                saved_at = now
                self._save(writer)
        return meter

    def _step(self, batches: Iterator[Batch], step: int, meter: Meter) -> None:
        state, config = self.state, self.config
        set_lr(state.optimizer, self._lr(step))
        state.optimizer.zero_grad(set_to_none=True)
        forward = functools.partial(self._forward, step=step, meter=meter)
        self._gradients.compute(batches, self._setup.batch_size, forward)
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        if config.l1:
            add_l1(config.l1, state.optimizer.param_groups)
        norm = gradient_norm(self.net.parameters())
        meter.add_norm(norm)
        if self.device.type == "cpu" or (step + 1) % GPU_CHECK_STEPS == 0:
            self._check_finite(meter.grad_norm, step + 1)
        if config.clip is not None:
            clip_gradients(config.clip, self.net.parameters(), norm)
        if state.scaler is not None:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            state.optimizer.step()
        if state.ema is not None:
            state.ema.update(step + 1)

    def _forward(
        self, model: nn.Module, batch: Batch, part: int, *, step: int, meter: Meter
    ) -> Tensor:
        images = lay_out(batch.images.to(self.device), self.state.memory_format or "contiguous")
        labels = batch.labels.to(self.device)
        mix = batch.mix
        if mix is not None and self.device.type != "cpu":
            mix = Mix(mix.labels.to(self.device), mix.share.to(self.device))
        torch.manual_seed(step_seed(self.config.seed, step, part))
        with self._setup.autocast():
            logits = model(images)
        logits = logits.float()
        loss = self._setup.loss(logits, labels, mix)
        meter.add(loss.detach(), logits.detach(), labels)
        return loss if self.state.scaler is None else self.state.scaler.scale(loss)

    def _check_finite(self, norm: float, step: int) -> None:
        """Stop if gradients are no numbers; their norm is the same on every worker.

        On a CPU that is before the step that would ruin the weights, on a GPU soon after it, and
        weights that are ruined are never saved. With fp16 single steps may overflow: the scale is
        lowered and they are left out, until there is no lower one.
        """
        scaler = self.state.scaler
        if scaler is not None:
            if scaler.get_scale() >= 1:
                return
        elif math.isfinite(norm):
            return
        when = "in" if self.device.type == "cpu" else "by"
        raise DivergedError(
            f"the loss is not finite {when} step {step} (epoch "
            f"{(step - 1) // self.steps_per_epoch + 1}); optim.lr={self.config.optim.lr:g} may be "
            "too high"
        )

    def _what_is_kept(self) -> str:
        """Where a run that diverged can be gone on from, for the message; asked of worker 0."""
        names = list_checkpoints(self._folder) if self.comm.rank == 0 else []
        newest: list[str] = self.comm.gather(names[-1:])[0]
        if not newest:
            return "no checkpoint was written before"
        file = f"{self._folder.address}/{newest[0]}"
        return f"the last good checkpoint can be begun with: --pretrained {file}"

    def _lr(self, step: int) -> float:
        multiple = lr_multiple(self.config.schedule, step, self.clock, self.state.history)
        return self.config.optim.lr * multiple

    def _is_due(self, age_s: float) -> bool:
        """Whether a checkpoint is, within an epoch."""
        wanted = self.config.checkpoint
        if wanted.every_steps is not None and self.state.step % wanted.every_steps == 0:
            return True
        # By the clock only worker 0 decides, which cannot be where all must take part.
        return wanted.every_s is not None and not self._setup.sharded and age_s > wanted.every_s

    def _save(self, writer: CheckpointWriter) -> None:
        if self.comm.rank != 0 and not self._setup.sharded:
            return
        # Weights that are no longer finite must not push out the last good checkpoint.
        finite = self.device.type == "cpu" or self.state.is_finite()
        checkpoint = self.state.capture()
        if self.comm.rank == 0 and finite:
            writer.submit(checkpoint)

    def _tell_progress(self, epoch: int, meter: Meter) -> None:
        loss, correct, images = meter.totals.tolist()
        step = self.state.step
        per_step_s = (time.monotonic() - self._began) / max(1, step - self._first_step)
        self._emit(
            "progress",
            epoch=epoch + 1,
            step=step,
            total_steps=self.clock.total_steps,
            loss=loss / images,
            accuracy=correct / images,
            lr=self._lr(step - 1),
            images_per_s=images * self.comm.world / meter.seconds(),
            eta_s=per_step_s * (self.clock.total_steps - step),
        )

    def _emit(self, kind: str, **values: Any) -> None:
        if self.comm.rank == 0:
            self.events.emit(kind, **values)


def step_seed(seed: int, step: int, part: int) -> int:
    """Seed of what one part of one step draws; different for each, and below 2**63."""
    text = f"{seed}:{step}:{part}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
