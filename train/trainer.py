"""Ray's trainer, less the helpers that a run of ours has no use for, and its switches."""

import os
from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.torch.torch_trainer import TorchTrainer

# PyTorch then lays large CPU tensors into pages of 2 MiB, where the kernel has some: a tenth faster
# for convolutions. It is read when a process first imports torch.
_WORKER_ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}


class LeanTrainer(TorchTrainer):
    """Workers read their data themselves: there are no Ray datasets to be shared out.

    Each helper is a process that loads for seconds, at the very time when the workers do.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, DatasetsCallback)]


def set_switches(machines: int, start_timeout_s: int) -> None:
    """Set what Ray's controller reads in the environment, unless the user has.

    Args:
        machines: of the cluster. A single one is not looked after for being taken away.
        start_timeout_s: how long workers may take to be placed.
    """
    switches = {
        # The period of polling the workers, two seconds by default.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_timeout_s),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if machines > 1 else "0",
    }
    for name, value in switches.items():
        os.environ.setdefault(name, value)


def worker_environment() -> dict[str, str]:
    """What workers find in their environment, unless the user has set it himself."""
    return {name: os.environ.get(name, value) for name, value in _WORKER_ENVIRONMENT.items()}
