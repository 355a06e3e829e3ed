"""How the applications of models stand, as Serve's controller tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve.schema import ApplicationStatus, ReplicaState  # type: ignore[attr-defined]

from serve.replica import APP_PREFIX


@dataclass(frozen=True)
class ReplicaProcess:
    """A replica as Serve's controller knows it."""

    name: str
    """As ``x-raybridge-replica`` says it."""
    state: str
    """Ray's word: STARTING, RUNNING, STOPPING, UPDATING, RECOVERING, PENDING_MIGRATION."""
    node: str
    """Address of its machine; empty until it has one."""
    pid: int | None


@dataclass(frozen=True)
class ApplicationState:
    """A model's application."""

    status: str
    """Ray's word: RUNNING, DEPLOYING, UNHEALTHY, DEPLOY_FAILED, DELETING."""
    message: str
    target: int
    """Replicas that there should be."""
    replicas: tuple[ReplicaProcess, ...]

    @property
    def running(self) -> int:
        """Replicas that answer."""
        return sum(replica.state == "RUNNING" for replica in self.replicas)

    @property
    def serves(self) -> bool:
        """Whether it answers, or sleeps until it is asked."""
        return self.status == "RUNNING" or (self.running > 0 and self.status != "DELETING")


def read_states(applications: Mapping[str, Any]) -> dict[str, ApplicationState]:
    """Applications of ours by model, from Serve's details of all of them."""
    return {
        name.removeprefix(APP_PREFIX): _read_state(application)
        for name, application in sorted(applications.items())
        if name.startswith(APP_PREFIX)
    }


def _read_state(application: Mapping[str, Any]) -> ApplicationState:
    deployments = application["deployments"].values()
    return ApplicationState(
        status=ApplicationStatus(application["status"]).value,
        message=str(application["message"]),
        target=sum(one["target_num_replicas"] for one in deployments),
        replicas=tuple(
            ReplicaProcess(
                name=replica["replica_id"],
                state=ReplicaState(replica["state"]).value,
                node=replica.get("node_ip") or "",
                pid=replica.get("pid"),
            )
            for one in deployments
            for replica in one["replicas"]
        ),
    )
