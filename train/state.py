"""Everything that a training step changes, and how it becomes a checkpoint and comes back."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.ema import Ema
from train.hardware import MemoryFormat
from train.models.classifier import Classifier
from train.weights import StateDict, check_state_dict


class TrainingState:
    """The network, what moves it, and how far it has come.

    Args:
        config: of the run.
        classifier: what is trained.
        make_optimizer: of its parameters, when it is first asked for.
        device: where it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        classifier: Classifier,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self._seed = config.seed
        self._sharded = config.hardware.shard_optimizer
        self._signature = model_signature(classifier.net)
        self.classifier = classifier
        self._make_optimizer = make_optimizer
        self.ema = Ema(classifier.net, config.ema) if config.ema is not None else None
        scaled = config.hardware.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type) if scaled else None
        self.best: StateDict | None = None
        """Weights of the best epoch so far, if they may be gone back to."""
        self.memory_format: MemoryFormat | None = None
        self.step = 0
        self.history: list[dict[str, float]] = []

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made by who trains: PyTorch loads its compiler for the first one, which takes seconds."""
        return self._make_optimizer()

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within, the network has the weights that are evaluated: the average, if there is one."""
        with self.ema.swapped() if self.ema is not None else contextlib.nullcontext():
            yield

    def end_with(self, weights: StateDict | None) -> None:
        """Put the run's last weights into the network: those given, or those that are evaluated."""
        if weights is None:
            with self.evaluated():
                weights = to_cpu(self.classifier.net.state_dict())
        self.classifier.net.load_state_dict(weights)

    def capture(self) -> Checkpoint:
        """A checkpoint that shares no memory with the state.

        With a sharded optimizer every worker must call it, and worker 0's is whole.
        """
        whole = True
        if self._sharded:
            sharded: Any = self.optimizer
            sharded.consolidate_state_dict(to=0)
            whole = sharded.rank == 0
        return Checkpoint(
            step=self.step,
            seed=self._seed,
            model_signature=self._signature,
            model=to_cpu(self.classifier.net.state_dict()),
            optimizer=to_cpu(self.optimizer.state_dict()) if whole else None,
            history=list(self.history),
            ema=None if self.ema is None else to_cpu(self.ema.state_dict()),
            best=self.best,
            scaler=None if self.scaler is None else self.scaler.state_dict(),
            memory_format=self.memory_format,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it is of another network.
        """
        net = self.classifier.net
        if checkpoint.model_signature != self._signature:
            check_state_dict(net, checkpoint.model, "the newest checkpoint")
        net.load_state_dict(checkpoint.model)
        if checkpoint.optimizer is not None:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.load_state_dict(checkpoint.ema)
        elif self.ema is not None:
            self.ema.load_state_dict(net.state_dict())  # Of first weights that are not random.
        if self.scaler is not None and checkpoint.scaler is not None:
            self.scaler.load_state_dict(checkpoint.scaler)
        self.best = checkpoint.best
        self.memory_format = checkpoint.memory_format
        self.step, self.history = checkpoint.step, list(checkpoint.history)

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(one.isfinite().all()) for one in self.classifier.parameters())


def first_checkpoint(config: TrainConfig, classifier: Classifier) -> Checkpoint:
    """What a run begins with whose first weights are not random: a checkpoint before any step."""
    return Checkpoint(
        step=0,
        seed=config.seed,
        model_signature=model_signature(classifier.net),
        model=classifier.net.state_dict(),
        optimizer=None,
        history=[],
    )


def model_signature(net: nn.Module) -> str:
    """sha256 over the names, shapes and types of a network's tensors."""
    listed = [(k, tuple(v.shape), str(v.dtype)) for k, v in net.state_dict().items()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def to_cpu(value: Any) -> Any:
    """A deep copy of nested tensors on the CPU, which training will not write to."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [to_cpu(entry) for entry in value]
    return value
