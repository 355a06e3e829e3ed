"""MLflow as run tracker, and with it the model registry, behind the few calls that we make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connection import RUN_TAG, asks, first_line, is_missing
from cluster.errors import NotFoundError
from cluster.registry import CHALLENGER, CHAMPION, ModelVersion, Registry
from cluster.store import NAME_PATTERN

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

__all__ = ["CHALLENGER", "CHAMPION", "ModelVersion", "Run", "RunLog", "Tracking"]

_PAGE = 10_000
_ALL = 10**9


@dataclass(frozen=True)
class Run:
    """One recorded run."""

    run_id: str
    """MLflow's."""
    name: str
    status: str
    """``RUNNING``, ``FINISHED``, ``FAILED``, ``KILLED`` or ``SCHEDULED``."""
    started_ms: int
    ended_ms: int | None
    metrics: dict[str, float]
    """The last value of each."""
    params: dict[str, str]
    tags: dict[str, str]

    @property
    def seconds(self) -> float | None:
        """How long it took, if it has ended."""
        return None if self.ended_ms is None else (self.ended_ms - self.started_ms) / 1000


class Tracking(Registry):
    """MLflow: recorded runs, and the models made of them."""

    @asks
    def start_run(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> "RunLog":
        """Begin the MLflow run that records the run named ``run``."""
        entity = self._client.create_run(
            self._own_experiment(), run_name=run, tags={RUN_TAG: run, **tags}
        )
        log = RunLog(self._client, entity.info.run_id)
        log.params(params)
        return log

    @asks
    def resume_run(self, run_id: str) -> "RunLog":
        """Go on with an MLflow run.

        Raises:
            NotFoundError: MLflow has none of that id.
        """
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._error as error:
            if not is_missing(error):
                raise
            raise NotFoundError(
                f"MLflow at {self.uri} has no run {run_id}; check MLFLOW_TRACKING_URI"
            ) from None
        return RunLog(self._client, run_id)

    @asks
    def runs(self, *, limit: int = 50) -> list[Run]:
        """The runs of our experiment, newest first."""
        return self._search_runs("", limit)

    @asks
    def running(self) -> set[str]:
        """Names of the runs that nobody said the end of: they are at work, or were killed."""
        return {run.name for run in self._search_runs("attributes.status = 'RUNNING'", _ALL)}

    @asks
    def run_ids(self) -> set[str]:
        """MLflow's ids of all runs of our experiment, of those too that were deleted there."""
        return {run.run_id for run in self._search_runs("", _ALL, deleted_too=True)}

    def _search_runs(self, wanted: str, limit: int, *, deleted_too: bool = False) -> list[Run]:
        from mlflow.entities import ViewType

        experiment = self._find_experiment()
        if experiment is None:
            return []
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [experiment],
                filter_string=wanted,
                run_view_type=ViewType.ALL if deleted_too else ViewType.ACTIVE_ONLY,
                max_results=min(limit - len(found), _PAGE),
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += [_to_run(entity) for entity in page]
            token = page.token
            if not token or len(found) >= limit:
                return found

    @asks
    def run(self, name: str) -> Run:
        """The newest run of that name, or the one with that MLflow id.

        Raises:
            NotFoundError: there is none.
        """
        if NAME_PATTERN.fullmatch(name):
            found = self._search_runs(f"attributes.run_name = '{name}'", 1)
            if found:
                return found[0]
        try:
            return _to_run(self._client.get_run(name))
        except self._error as error:
            if not is_missing(error):
                raise
            known = ", ".join(run.name for run in self.runs(limit=5)) or "none yet"
            raise NotFoundError(f"no run {name!r} is recorded; the newest: {known}") from None


@dataclass
class RunLog:
    """Writes to one MLflow run. A write that fails is counted, and training goes on."""

    client: "MlflowClient"
    run_id: str
    failures: int = 0
    last_failure: str = field(default="")

    def params(self, params: Mapping[str, Any]) -> None:
        """Log parameters."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
        self._try(lambda: self.client.log_batch(self.run_id, params=entries))

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metric values at a step."""
        import time

        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        self._try(lambda: self.client.log_batch(self.run_id, metrics=entries))

    def artifact(self, path: Path) -> None:
        """Log one file."""
        self._try(lambda: self.client.log_artifact(self.run_id, str(path)))

    def finish(self, status: str) -> None:
        """End the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._try(lambda: self.client.set_terminated(self.run_id, status))

    def _try(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - a tracking server must not end a training run
            self.failures += 1
            self.last_failure = first_line(error)


def _to_run(entity: "MlflowRun") -> Run:
    info = entity.info
    return Run(
        run_id=info.run_id,
        name=info.run_name or info.run_id,
        status=info.status,
        started_ms=int(info.start_time or 0),
        ended_ms=int(info.end_time) if info.end_time else None,
        metrics=dict(entity.data.metrics),
        params=dict(entity.data.params),
        tags={key: value for key, value in entity.data.tags.items() if "mlflow." not in key},
    )
