"""Checkpoints: one file a save, written whole or not at all, and read without unpickling code.

What a step draws at random (dropout) is seeded from (seed, step, worker), the order of an epoch
from (seed, epoch), the augmentation from (seed, epoch, sample), and the learning rate follows from
the step. So the seed and the step are the whole state of the random generators, and a run that goes
on from any step ends with the bits of one that was never stopped.
"""

import hashlib
import logging
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.errors import CheckpointError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimizer steps."""

    step: int
    epoch: int
    """Epoch that the next step belongs to."""
    seed: int
    model_signature: str
    """Names the network, so that a checkpoint of another is refused."""
    model: StateDict
    """``state_dict`` of the network, without the wrapper that normalises."""
    optimizer: dict[str, Any]
    history: list[dict[str, float]]
    """Metrics of the epochs that are done."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is kept."""
    return folder / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*.pt")) if folder.is_dir() else []


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``."""
    path = checkpoint_path(folder, checkpoint.step)
    folder.mkdir(parents=True, exist_ok=True)
    _save_atomic({"schema_version": SCHEMA_VERSION, **vars(checkpoint)}, path)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this version.
    """
    values = _load_weights_only(path)
    if not isinstance(values, dict) or values.pop("schema_version", None) != SCHEMA_VERSION:
        raise CheckpointError(f"{path} is not a checkpoint of schema version {SCHEMA_VERSION}")
    try:
        return Checkpoint(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is not a checkpoint: {error}") from None


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None. A damaged one is passed over, and said."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; going back to the one before", error)
    return None


def save_state_dict(net: nn.Module, path: Path) -> None:
    """Write a plain ``state_dict``, as ``torch.save(net.state_dict(), path)`` does, atomically."""
    _save_atomic({name: tensor.cpu() for name, tensor in net.state_dict().items()}, path)


def load_state_dict(net: nn.Module, path: Path) -> None:
    """Load a plain ``state_dict`` (.pth, .pt) or a safetensors file into a network.

    A ``module.`` in front of every name, as DistributedDataParallel leaves it, is taken off.

    Raises:
        CheckpointError: the file is missing or damaged, holds something else than tensors, or
            its tensors are not those of the network.
    """
    if path.suffix == ".safetensors":
        try:
            values: Any = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
    else:
        values = _load_weights_only(path)
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise CheckpointError(f"{path} does not hold a state_dict of named tensors")
    if values and all(name.startswith("module.") for name in values):
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    check_state_dict(net, values, str(path))
    net.load_state_dict(values)


def weights_sha256(net: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a network's tensors, in order."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_state_dict(net: nn.Module, values: StateDict, where: str) -> None:
    """Compare names and shapes with the network's.

    Raises:
        CheckpointError: names the first tensor that does not fit.
    """
    own = net.state_dict()
    for name, tensor in own.items():
        if name not in values:
            raise CheckpointError(f"{where} has no tensor {name}; it is of another model")
        if values[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(values[name].shape)}, "
                f"the model's is {tuple(tensor.shape)}; another model or image size"
            )
    for name in values:
        if name not in own:
            raise CheckpointError(f"{where} has a tensor {name}; the model has none of that name")


class CheckpointWriter:
    """Writes checkpoints from a thread, so that training goes on while the disk works.

    A checkpoint handed over while another is being written replaces one that still waits.
    A write that fails is counted and the newest failure kept; training goes on.
    """

    def __init__(self, folder: Path, keep: int) -> None:
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
        """Wait until what was handed over is on disk."""
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


def _save_atomic(values: Any, path: Path) -> None:
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}.draft"
    try:
        with draft.open("wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _load_weights_only(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # noqa: BLE001 - a damaged file raises many kinds in torch.load
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as weights: {reason[:200]}") from None
