"""What ``status`` finds out: models, their versions, and every replica with its work."""

from dataclasses import dataclass
from typing import Any

from cluster.errors import RaybridgeError
from cluster.settings import Settings
from cluster.store import Store
from serve.deployment import Ingress, ServeCluster
from serve.document import ServedDocument, ServedDocuments
from serve.states import ApplicationState, ReplicaProcess

_STATE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ReplicaStatus:
    """What ``status`` tells of one replica."""

    process: ReplicaProcess
    versions: tuple[str, ...] = ()
    """That it holds; none if it does not answer, because it starts or ends."""
    generation: int | None = None
    requests_in_work: int | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            **vars(self.process),
            "versions": list(self.versions),
            "generation": self.generation,
            "requests_in_work": self.requests_in_work,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class ModelStatus:
    """What ``status`` tells of one model."""

    name: str
    application: ApplicationState
    document: ServedDocument | None
    replicas: tuple[ReplicaStatus, ...]
    problems: tuple[str, ...]

    @property
    def replica_counts(self) -> str:
        """Running and wanted replicas, and what bounds them."""
        counts = f"{self.application.running}/{self.application.target}"
        if self.document is None:
            return counts
        scaling = self.document.config.scaling
        return f"{counts} ({scaling.min_replicas}-{scaling.max_replicas})"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        document = self.document
        scaling = document.config.scaling if document else None
        return {
            "name": self.name,
            "status": self.application.status,
            "message": self.application.message,
            "replicas": {
                "running": self.application.running,
                "target": self.application.target,
                "min": scaling.min_replicas if scaling else None,
                "max": scaling.max_replicas if scaling else None,
                "each": [replica.as_json() for replica in self.replicas],
            },
            "requests_in_work": sum(one.requests_in_work or 0 for one in self.replicas),
            "generation": document.generation if document else None,
            "replica_generations": sorted(
                one.generation for one in self.replicas if one.generation is not None
            ),
            "versions": [
                {"version": one.version, "share": one.share, "digest": one.digest}
                for one in (document.versions if document else ())
            ],
            "config": document.config.model_dump(mode="json") if document else None,
            "problems": list(self.problems),
        }


@dataclass(frozen=True)
class ServingStatus:
    """What ``status`` tells."""

    ingress: Ingress | None
    """None if Ray Serve does not run."""
    models: tuple[ModelStatus, ...] = ()
    metrics_urls: tuple[str, ...] = ()
    """Where Prometheus scrapes each node."""


def serving_status(settings: Settings) -> ServingStatus:
    """The ingress and every model of the connected cluster."""
    cluster = ServeCluster()
    http_ingress = cluster.ingress()
    if http_ingress is None:
        return ServingStatus(None)
    documents = ServedDocuments(Store.open(settings.address))
    models = tuple(
        _model_status(cluster, documents, name, application)
        for name, application in cluster.states().items()
    )
    return ServingStatus(http_ingress, models, tuple(cluster.metrics_urls()))


def _model_status(
    cluster: ServeCluster, documents: ServedDocuments, name: str, application: ApplicationState
) -> ModelStatus:
    problems = []
    told: dict[str, dict[str, Any]] = {}
    document = None
    try:
        document = documents.read(name)
        states = cluster.fleet(name).call_all("state", timeout_s=_STATE_TIMEOUT_S)
        told = {state["replica"]: state for state in states}
    except RaybridgeError as error:
        problems.append(str(error))
    replicas = tuple(_replica_status(one, told.get(one.name)) for one in application.replicas)
    problems += sorted({one.problem for one in replicas if one.problem})
    return ModelStatus(name, application, document, replicas, tuple(problems))


def _replica_status(process: ReplicaProcess, state: dict[str, Any] | None) -> ReplicaStatus:
    if state is None:
        return ReplicaStatus(process)
    return ReplicaStatus(
        process,
        versions=tuple(state["versions"]),
        generation=state["generation"],
        requests_in_work=state["requests_in_work"],
        problem=state["problem"],
    )
