"""Ray's trainer, less what a run of ours has no use for, and the environment of its workers."""

import os
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray._raylet import RAY_NODE_ID_KEY
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.torch.torch_trainer import TorchTrainer

# PyTorch then lays large CPU tensors into pages of 2 MiB, where the kernel has some: steps of
# airbench's network took a tenth less. It is read when a process first imports torch.
_WORKER_ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}


class LeanTrainer(TorchTrainer):
    """Workers read their data themselves: there are no Ray datasets to be shared out.

    What would share them is a process that loads at the very time when the workers do.
    """

    _controller: Any = None

    def stop(self) -> None:
        """End the run from another thread than the one that is in :meth:`fit`, which then raises.

        Without effect before the run has begun.
        """
        if self._controller is not None:
            ray.kill(self._controller)

    def _initialize_and_run_controller(self, **values: Any) -> Any:
        # Ray's own keeps the controller to itself.
        here = {RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        # It is an async actor that waits for others in plain calls, and would warn of each.
        quiet = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0"}
        environment = {"env_vars": {**quiet, **get_env_vars_to_propagate()}}
        kind = ray.remote(num_cpus=0, label_selector=here, runtime_env=environment)(TrainController)
        self._controller = kind.remote(**values)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, DatasetsCallback)]


def worker_environment() -> dict[str, str]:
    """What workers find in their environment, unless the user has set it himself."""
    return {name: os.environ.get(name, value) for name, value in _WORKER_ENVIRONMENT.items()}
