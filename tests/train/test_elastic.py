"""How many workers an elastic run asks for, by what is free and what its own workers hold."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import state as ray_state
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision
from ray.train.v2.api.config import ScalingConfig

from train import elastic
from train.elastic import FreeRoomPolicy

RUNNING = SimpleNamespace(
    workers=[SimpleNamespace(metadata=SimpleNamespace(node_id="a"))] * 2,
    num_workers=2,
    start_time=float("-inf"),
)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What is free on the cluster's one machine; a test changes it."""
    room = {"CPU": 2.0}
    monkeypatch.setattr(ray_state, "available_resources_per_node", lambda: {"a": room})
    monkeypatch.setattr(elastic, "SETTLE_S", 0.0)
    for asked in ("_maybe_send_resource_request", "_get_reserved_resources"):
        monkeypatch.setattr(ElasticScalingPolicy, asked, lambda _: {})
    return room


@pytest.fixture
def policy() -> FreeRoomPolicy:
    scaling = ScalingConfig(
        num_workers=(1, 4),
        resources_per_worker={"CPU": 1},
        elastic_resize_monitor_interval_s=0,
    )
    return FreeRoomPolicy(scaling)


def workers(decision: Any) -> int:
    assert isinstance(decision, ResizeDecision)
    return decision.num_workers


def grow(policy: FreeRoomPolicy) -> int:
    state: Any = RUNNING
    status: Any = None
    return workers(policy.make_decision_for_running_worker_group(state, status))


def test_a_run_takes_what_is_free(policy: FreeRoomPolicy, free: dict[str, float]) -> None:
    assert workers(policy.make_decision_for_non_running_worker_group()) == 2
    free["CPU"] = 9.0
    assert workers(policy.make_decision_for_non_running_worker_group()) == 4
    # Too few are asked for all the same, since Ray waits for them.
    free["CPU"] = 0.0
    assert workers(policy.make_decision_for_non_running_worker_group()) == 1


def test_its_own_workers_make_room_for_the_next_ones(
    policy: FreeRoomPolicy, free: dict[str, float]
) -> None:
    assert grow(policy) == 4
    free["CPU"] = 1.0
    assert grow(policy) == 3


def test_workers_that_have_ended_hold_nothing(
    policy: FreeRoomPolicy, free: dict[str, float]
) -> None:
    assert grow(policy) == 4
    # The old ones have ended, but somebody else took two of the CPUs: four found no room.
    assert workers(policy.make_decision_for_non_running_worker_group()) == 2
    # The same after a worker's death, when the others end after the decision.
    free["CPU"] = 0.0
    state: Any = RUNNING
    status: Any = None
    policy.make_decision_for_running_worker_group(state, status)
    assert workers(policy.make_decision_for_non_running_worker_group()) == 2
    assert workers(policy.make_decision_for_non_running_worker_group()) == 1
