"""Checkpoints: one file a save, written whole or not at all, and read without unpickling code.

What a step draws at random (dropout) is seeded from (seed, step, part of the batch), the order of
an epoch from (seed, epoch), the augmentation from (seed, epoch, sample), and the learning rate
follows from the step and the history. So the seed and the step are the whole state of the random
generators, and a run that goes on from any step ends with the bits of one that was never stopped.
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import CheckpointError
from cluster.store import Folder
from train.hardware import MemoryFormat
from train.weights import StateDict, load_weights_only, save_atomic

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimizer steps."""

    step: int
    seed: int
    model_signature: str
    """Names the network, so that a checkpoint of another is refused."""
    model: StateDict
    """``state_dict`` of the network, without the wrapper that normalises."""
    optimizer: dict[str, Any] | None
    """None before the first step."""
    history: list[dict[str, float]]
    """Metrics of the epochs that are done."""
    ema: dict[str, Any] | None = None
    """State of the moving average of the weights, if there is one."""
    best: StateDict | None = None
    """Weights of the best epoch so far, if early stopping may go back to them."""
    scaler: dict[str, Any] | None = None
    """State of the loss scale of fp16."""
    memory_format: MemoryFormat | None = None
    """The one that was chosen by timing, so that it is not chosen again."""


def list_checkpoints(folder: Folder) -> list[str]:
    """File names of a run's checkpoints, oldest first."""
    return [name for name in folder.names() if name.startswith("step-") and name.endswith(".pt")]


def save_checkpoint(folder: Folder, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint, and remove those of later steps and all but the newest ``keep``.

    One of a later step could not be read, or training would have gone on from it.
    """
    name = f"step-{checkpoint.step:08d}.pt"
    folder.path.mkdir(parents=True, exist_ok=True)
    save_atomic({"schema_version": SCHEMA_VERSION, **vars(checkpoint)}, folder.path / name)
    folder.push(name)
    folder.drop_copy(name)
    names = list_checkpoints(folder)
    known = names[: names.index(name) + 1]
    for other in {*names} - {*known[-keep:]}:
        folder.delete(other)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this version.
    """
    values = load_weights_only(path)
    if not isinstance(values, dict) or values.pop("schema_version", None) != SCHEMA_VERSION:
        raise CheckpointError(f"{path} is not a checkpoint of schema version {SCHEMA_VERSION}")
    try:
        return Checkpoint(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is not a checkpoint: {error}") from None


def latest_checkpoint(folder: Folder) -> Checkpoint | None:
    """The newest checkpoint that can be read. A damaged one is passed over, and said.

    Raises:
        CheckpointError: there are some, and none can be read.
    """
    problem: Exception | None = None
    for name in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(folder.pull(name))
        except FileNotFoundError as error:  # Removed meanwhile, by who writes newer ones.
            logger.warning("%s; going back to the one before", error)
        except CheckpointError as error:
            logger.warning("%s; going back to the one before", error)
            problem = error
        finally:
            folder.drop_copy(name)
    if problem is not None:
        raise CheckpointError(f"no checkpoint of this run can be read; the oldest: {problem}")
    return None


class CheckpointWriter:
    """Writes checkpoints from a thread, so that training goes on while disk and network work.

    A checkpoint handed over while another is being written replaces one that still waits.
    A write that fails is counted and the newest failure kept; training goes on.
    """

    def __init__(self, folder: Folder, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._changed = threading.Condition()
        self._pending: Checkpoint | None = None
        self._closed = False
        self.failures = 0
        self.last_failure = ""
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Hand over a checkpoint whose tensors nobody will write to again."""
        with self._changed:
            self._pending = checkpoint
            self._changed.notify()

    def close(self) -> None:
        """Wait until what was handed over is in the store."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                checkpoint, self._pending = self._pending, None
            if checkpoint is None:
                return
            try:
                save_checkpoint(self._folder, checkpoint, self._keep)
            except Exception as error:  # noqa: BLE001 - torch.save hides a full disk in its own kinds
                self.failures += 1
                self.last_failure = str(error)
                logger.warning("a checkpoint was not written: %s", error)
