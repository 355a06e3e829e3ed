"""Ray's trainer, less what a run of ours has no use for, and the environment of its workers."""

import asyncio
import contextlib
import logging
import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.constants import (
    ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR,
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
)
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ScalingPolicy
from ray.train.v2._internal.execution.worker_group import (
    RayTrainWorker,
    WorkerGroup,
    WorkerGroupPollStatus,
    WorkerStatus,
)
from ray.train.v2._internal.logging import LoggingManager
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster.errors import DataError, TrainingError
from cluster.events import Event
from train.outbox import OUTBOX

# PyTorch then lays large CPU tensors into pages of 2 MiB, where the kernel has some: steps of
# airbench's network took a tenth less. It is read when a process first imports torch.
_WORKER_ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1"}


class LeanTrainer(TorchTrainer):
    """Ray's trainer without the processes that a run of ours has no use for.

    Each would take seconds of a CPU at the very time when the workers load, and a hundredth of one
    ever after. The controller is in this process, which no run of ours outlives: a worker's end
    comes with that of who started it. Workers read their data themselves, so there are no Ray
    datasets to be shared out. A placement group outlives its controller only until the command's
    end. Machines that say when they will go find a checkpoint that is seconds old. And a fixed
    number of workers is asked for by its placement group, which the autoscaler sees.
    """

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.events: queue.SimpleQueue[list[Event]] = queue.SimpleQueue()
        """What workers have told, in order; nothing is added once :meth:`fit` has ended."""
        self._controller: _Controller | None = None

    def stop(self) -> None:
        """End the run from another thread than the one that is in :meth:`fit`, which then raises.

        Without effect before the run has begun.
        """
        if self._controller is not None:
            self._controller.stop()

    def _initialize_and_run_controller(self, **values: Any) -> Any:
        os.environ.setdefault(ENABLE_PREEMPTION_WATCHER_ENV_VAR, "0")
        # It would replace the handlers of all of this process's loggers.
        os.environ[ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR] = "0"
        values["scaling_policy"] = self._scaling_policy()
        values["failure_policy"] = _FailurePolicy(self.run_config.failure_config)  # type: ignore[arg-type]
        with _log_in_session_folder(str(self.run_config.name)):
            self._controller = _Controller(self.events, **values)
            asyncio.run(self._controller.run())  # type: ignore[no-untyped-call]
            return self._controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in callbacks if not isinstance(one, needless)]

    def _scaling_policy(self) -> ScalingPolicy:
        return _FixedPolicy(self.scaling_config)  # type: ignore[arg-type]


@contextlib.contextmanager
def _log_in_session_folder(name: str) -> Iterator[None]:
    """Keep the controller's log beside those of its workers, in Ray's session folder."""
    logger = logging.getLogger("ray.train")
    saved = logger.handlers, logger.level, logger.propagate
    folder = LoggingManager.get_log_directory()
    assert folder is not None, "there is no connection to Ray"
    Path(folder).mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(Path(folder, f"controller-{name}.log"), delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.close()
        logger.handlers, level, logger.propagate = saved
        logger.setLevel(level)


class _Controller(TrainController):
    """Ray's controller, in a thread of the driver, which another one may stop."""

    def __init__(self, events: "queue.SimpleQueue[list[Event]]", **values: Any) -> None:
        self._stopped = False
        self._room: Any = None
        controller = self

        class Workers(_Workers):
            def _create_placement_group(self, *arguments: Any) -> Any:
                controller._room = super()._create_placement_group(*arguments)
                return controller._room

            def poll_status(self, timeout: float | None = None) -> WorkerGroupPollStatus:
                status = super().poll_status(timeout)
                for worker in status.worker_statuses.values():
                    if isinstance(worker, _Status) and worker.events:
                        events.put(worker.events)
                return status

        self.worker_group_cls = Workers
        super().__init__(**values)

    def stop(self) -> None:
        """Take the workers' room away, by which they end, and any wait for one of them."""
        self._stopped = True
        if self._room is not None:
            self._room.shutdown()

    async def _run_control_loop_iteration(self) -> None:
        if self._stopped:
            raise TrainingError("the run was stopped")
        await super()._run_control_loop_iteration()  # type: ignore[no-untyped-call]


@dataclass
class _Status(WorkerStatus):
    """How a worker is, and what it has told since it was last asked."""

    events: list[Event] = field(default_factory=list)


class _Worker(RayTrainWorker):
    def poll_status(self) -> _Status:
        """Ray's status first: at its end, a worker has told everything."""
        status = super().poll_status()
        return _Status(**vars(status), events=OUTBOX.take())


class _Workers(WorkerGroup):
    """Ray's group of workers, whose controller is no actor."""

    _worker_cls = _Worker

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        # As Ray's own, but for the handle of the controller: it is for checkpoints of Ray's.
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[rank] for name, values in train_context_args.items()},
                )
                for rank, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _FailurePolicy(DefaultFailurePolicy):
    """Ray's policy, which does not start workers anew to find the same data damaged."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if find_data_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def find_data_error(error: TrainingFailedError) -> DataError | None:
    """What was wrong with the data, if it is that by which workers failed."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((cause for cause in failures if isinstance(cause, DataError)), None)


class _FixedPolicy(FixedScalingPolicy):
    """Ray's policy, which asks nobody."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Without Ray's coordinator of such requests."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing to send."""


def worker_environment() -> dict[str, str]:
    """What workers find in their environment, unless the user has set it himself."""
    return {name: os.environ.get(name, value) for name, value in _WORKER_ENVIRONMENT.items()}
