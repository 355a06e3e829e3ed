"""Ray's trainer, less what a run of ours has no use for, and the environment of its workers."""

import os
from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.torch.torch_trainer import TorchTrainer

# PyTorch then lays large CPU tensors into pages of 2 MiB, where the kernel has some: steps of
# airbench's network took a tenth less. It is read when a process first imports torch.
_WORKER_ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}


class LeanTrainer(TorchTrainer):
    """Workers read their data themselves: there are no Ray datasets to be shared out.

    What would share them is a process that loads at the very time when the workers do.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, DatasetsCallback)]


def worker_environment() -> dict[str, str]:
    """What workers find in their environment, unless the user has set it himself."""
    return {name: os.environ.get(name, value) for name, value in _WORKER_ENVIRONMENT.items()}
