"""How many workers an elastic run gets: as many as there is room for.

Ray's own policy takes what the machines have for what is free, so that a run which shares its
cluster with anything but other training would wait for CPUs that somebody holds, and give up.
"""

import time

from ray._private import state as ray_state
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig

from train.ray_trainer import LeanTrainer

# What a run that has just ended held is free a little later.
SETTLE_S = 3.0


class ElasticTrainer(LeanTrainer):
    """A trainer for a range of workers, by the policy below."""

    def _scaling_policy(self) -> ScalingPolicy:
        return FreeRoomPolicy(self.scaling_config)  # type: ignore[arg-type]


class FreeRoomPolicy(ElasticScalingPolicy):
    """Ray's policy, which goes by what is free. Ray's autoscaler is still asked for all of them."""

    def __init__(self, scaling_config: ScalingConfig) -> None:
        super().__init__(scaling_config)
        self._machines: list[str] = []
        self._since: float | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many as there is room for; where that is too few, Ray waits for the fewest."""
        self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        workers = self._count_possible_workers({})
        if workers < self.scaling_config.max_workers and now - self._since < SETTLE_S:
            return NoopDecision()
        self._since = None
        self._machines = []  # Their workers end before the next ones begin.
        return self._get_resize_decision(max(workers, self.scaling_config.min_workers))

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        """Take more once there is room."""
        self._machines = [worker.metadata.node_id for worker in worker_group_state.workers]
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if not isinstance(decision, NoopDecision):
            self._machines = []
        return decision

    def _count_possible_workers(self, _reserved: dict[str, dict[str, float]]) -> int:
        """Room for workers: what is free, and what the run's own hold on machines that live."""
        room: dict[str, dict[str, float]] = {
            machine: dict(free)
            for machine, free in ray_state.available_resources_per_node().items()
        }
        each = self.scaling_config._resources_per_worker_not_none
        for machine in self._machines:
            if machine in room:
                for name, amount in each.items():
                    room[machine][name] = room[machine].get(name, 0.0) + amount
        return int(super()._count_possible_workers(room))
