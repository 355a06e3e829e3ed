"""Ray's trainer, less what a run of ours has no use for, and the environment of its workers."""

import os
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray._raylet import RAY_NODE_ID_KEY
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.constants import (
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer

# PyTorch then lays large CPU tensors into pages of 2 MiB, where the kernel has some: steps of
# airbench's network took a tenth less. It is read when a process first imports torch.
_WORKER_ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}


class LeanTrainer(TorchTrainer):
    """Ray's trainer without the processes that a run of ours has no use for.

    Each would take seconds of a CPU at the very time when the workers load, and a hundredth of one
    ever after. Workers read their data themselves, so there are no Ray datasets to be shared out. A
    placement group outlives its controller only until the command's end. Machines that say when
    they will go find a checkpoint that is seconds old. And a fixed number of workers is asked for
    by its placement group, which the autoscaler sees.
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
        lean = {
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0",
            ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0",
        }
        environment = {"env_vars": {**lean, **get_env_vars_to_propagate()}}
        values["scaling_policy"] = self._scaling_policy()
        kind = ray.remote(num_cpus=0, label_selector=here, runtime_env=environment)(TrainController)
        self._controller = kind.remote(**values)
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in callbacks if not isinstance(one, needless)]

    def _scaling_policy(self) -> ScalingPolicy:
        return _FixedPolicy(self.scaling_config)  # type: ignore[arg-type]


class _FixedPolicy(FixedScalingPolicy):
    """Ray's policy, which asks nobody."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Without Ray's coordinator of such requests."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing to send."""


def worker_environment() -> dict[str, str]:
    """What workers find in their environment, unless the user has set it himself."""
    return {name: os.environ.get(name, value) for name, value in _WORKER_ENVIRONMENT.items()}
