"""MLflow as run tracker and model registry, behind the few calls that we make.

MLflow is slow to import (about two seconds), so it is imported when a :class:`Tracking` is made:
drivers pay for it, workers and replicas never do.
"""

import functools
import hashlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import requests

from cluster.bundle import (
    MANIFEST_FILE,
    Bundle,
    Manifest,
    bundle_folder,
    decode_manifest,
    find_bundle,
    publish_bundle,
)
from cluster.errors import BundleError, NotFoundError, RaybridgeError, UserError
from cluster.settings import Settings
from cluster.store import NAME_PATTERN, Store, check_name, drafting

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
EXPERIMENT = "raybridge"
_DIGEST_TAG = "raybridge.bundle_digest"
_RUN_TAG = "raybridge.run"
_REFERENCE = re.compile(r"(?P<name>[^@:]+)(@(?P<alias>[^@:]+)|:(?P<version>\d+))?")


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    """Digest of its bundle."""
    run: str
    metrics: dict[str, float]
    created_ms: int

    @property
    def reference(self) -> str:
        """``NAME:VERSION``."""
        return f"{self.name}:{self.version}"


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


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _asks(
    method: Callable[Concatenate["Tracking", _P], _R],
) -> Callable[Concatenate["Tracking", _P], _R]:
    """Say in one line that MLflow does not answer, whichever method finds out."""

    @functools.wraps(method)
    def asking(self: "Tracking", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except (self._error, requests.RequestException) as error:
            raise UserError(
                f"MLflow at {self._settings.tracking_uri} "
                f"{'does not answer' if _is_outage(error) else 'refuses'}: {_first_line(error)}; "
                "check MLFLOW_TRACKING_URI"
            ) from None

    return asking


class Tracking:
    """A connection to MLflow.

    Raises:
        UserError: from every method too: the tracking server does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store.open(settings.address)
        local = settings.tracking_uri.startswith("sqlite:///")
        if local:
            self._store.ensure_writable()
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A missing git binary or an unreachable host must cost seconds and one line.
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # Read when MLflow is imported: making the tables of a new store is nobody's news.
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # Deprecations inside MLflow and what it imports; none is ours to act on.
            warnings.simplefilter("ignore")
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)  # Importing it sets the level.
            self._error = MlflowException
            self._client: MlflowClient = MlflowClient(
                settings.tracking_uri, registry_uri=settings.tracking_uri
            )
            self._experiment = self._experiment_id(local)

    @_asks
    def _experiment_id(self, local: bool) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = (self._settings.store / "mlartifacts").as_uri() if local else None
        try:
            return str(self._client.create_experiment(EXPERIMENT, artifact_location=location))
        except self._error:
            # Another process made it between the two calls.
            found = self._client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
            return str(found.experiment_id)

    @_asks
    def start_run(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> "RunLog":
        """Begin the MLflow run that records the run named ``run``."""
        entity = self._client.create_run(
            self._experiment, run_name=run, tags={_RUN_TAG: run, **tags}
        )
        log = RunLog(self._client, entity.info.run_id)
        log.params(params)
        return log

    @_asks
    def resume_run(self, run_id: str) -> "RunLog":
        """Go on with an MLflow run.

        Raises:
            NotFoundError: MLflow has none of that id.
        """
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._error as error:
            if not _is_missing(error):
                raise
            raise NotFoundError(
                f"MLflow at {self._settings.tracking_uri} has no run {run_id}; "
                "check MLFLOW_TRACKING_URI"
            ) from None
        return RunLog(self._client, run_id)

    @_asks
    def register(
        self,
        name: str,
        bundle: Bundle,
        *,
        run_id: str | None,
        aliases: Sequence[str] = (),
    ) -> ModelVersion:
        """Make ``bundle`` a new version of model ``name``.

        Registering the same bundle again returns the version it has. The first version of a model
        becomes its champion.

        Raises:
            RaybridgeError: MLflow refused.
        """
        check_name("model", name)
        try:
            known = self._versions(name) if self._has_model(name) else []
            for version in known:
                if version.digest == bundle.digest:
                    return self._with_aliases(version, aliases)
            if not self._has_model(name):
                self._client.create_registered_model(name)
            if run_id is None:
                run_id = self._client.create_run(
                    self._experiment, run_name=bundle.manifest.lineage.run
                ).info.run_id
                self._client.set_terminated(run_id)
            # A folder of its own: one run may be exported again, and its versions must not mix.
            folder = f"bundle-{bundle.digest[:16]}"
            self._client.log_artifacts(run_id, str(bundle.path), artifact_path=folder)
            root = self._client.get_run(run_id).info.artifact_uri
            tags = {_DIGEST_TAG: bundle.digest, _RUN_TAG: bundle.manifest.lineage.run}
            for metric, value in bundle.manifest.metrics.items():
                tags[f"raybridge.metric.{metric}"] = repr(value)
            entity = self._client.create_model_version(
                name, source=f"{root}/{folder}", run_id=run_id, tags=tags
            )
            made = self._client.get_model_version(name, entity.version)
        except self._error as error:
            if _is_outage(error):
                raise
            raise RaybridgeError(f"MLflow refused model {name!r}: {_first_line(error)}") from None
        first = () if known else (CHAMPION,)
        return self._with_aliases(_to_version(made), (*first, *aliases))

    @_asks
    def set_alias(self, version: ModelVersion, alias: str) -> ModelVersion:
        """Point an alias at a version."""
        return self._with_aliases(version, (alias,))

    @_asks
    def resolve(self, reference: str) -> ModelVersion:
        """Find ``MODEL``, ``MODEL@ALIAS`` or ``MODEL:VERSION``; a bare name is its champion.

        Raises:
            UserError: the reference is not of that form.
            NotFoundError: no such model, alias or version.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise UserError(f"model {reference!r}: expected MODEL, MODEL@ALIAS or MODEL:VERSION")
        name = check_name("model", match["name"])
        if not self._has_model(name):
            known = ", ".join(model for model, _ in self.models()) or "none yet"
            raise NotFoundError(f"no model {name!r} in the registry; there are: {known}")
        alias = match["alias"] or (None if match["version"] else CHAMPION)
        try:
            if alias is not None:
                found = self._client.get_model_version_by_alias(name, alias)
            else:
                found = self._client.get_model_version(name, match["version"])
        except self._error as error:
            if not _is_missing(error):
                raise
            listed = ", ".join(
                f"{version.version}" + "".join(f" @{alias}" for alias in version.aliases)
                for version in self._versions(name)
            )
            wanted = f"alias @{alias}" if alias else f"version {match['version']}"
            raise NotFoundError(f"model {name!r} has no {wanted}; versions: {listed}") from None
        return _to_version(self._client.get_model_version(name, found.version))

    @_asks
    def fetch_bundle(self, version: ModelVersion) -> Bundle:
        """The verified bundle of a version, copied once into the store, by digest.

        Raises:
            RaybridgeError: its files cannot be had.
            BundleError: they are damaged or are not the ones that were registered.
        """
        found = find_bundle(self._store, version.digest)
        if found is None:
            return self._download(version)
        # Of an object store only this node may have it.
        bundle_folder(self._store, found.digest).restore(MANIFEST_FILE)
        return found

    def _download(self, version: ModelVersion) -> Bundle:
        from mlflow.artifacts import download_artifacts

        source = self._client.get_model_version_download_uri(version.name, str(version.version))
        with drafting(self._store.bundles, version.digest) as draft:
            try:
                got = Path(
                    download_artifacts(
                        artifact_uri=source,
                        dst_path=str(draft),
                        tracking_uri=self._settings.tracking_uri,
                    )
                )
            except (self._error, OSError) as error:
                raise RaybridgeError(
                    f"the bundle of {version.reference} cannot be had from {source}: "
                    f"{_first_line(error)}"
                ) from None
            # Before it can be seen: what arrived damaged must be fetched again next time.
            if Bundle.open(got).digest != version.digest:
                raise RaybridgeError(
                    f"the bundle of {version.reference} is not the one that was registered"
                )
            return publish_bundle(self._store, got)

    @_asks
    def manifest(self, version: ModelVersion) -> Manifest:
        """What the bundle of a version says of itself; the rest of it is not fetched.

        Raises:
            RaybridgeError: it cannot be had.
            BundleError: it is not the one that was registered.
        """
        content = bundle_folder(self._store, version.digest).read(MANIFEST_FILE)
        if content is None:
            from mlflow.artifacts import download_artifacts

            source = self._client.get_model_version_download_uri(version.name, str(version.version))
            with tempfile.TemporaryDirectory() as folder:
                try:
                    got = download_artifacts(
                        artifact_uri=f"{source}/{MANIFEST_FILE}",
                        dst_path=folder,
                        tracking_uri=self._settings.tracking_uri,
                    )
                    content = Path(got).read_bytes()
                except (self._error, OSError) as error:
                    raise RaybridgeError(
                        f"the manifest of {version.reference} cannot be had from {source}: "
                        f"{_first_line(error)}"
                    ) from None
        if hashlib.sha256(content).hexdigest() != version.digest:
            raise BundleError(
                f"the manifest of {version.reference} is not the one that was registered"
            )
        return decode_manifest(content, f"the manifest of {version.reference}")

    @_asks
    def runs(self, *, limit: int = 50) -> list[Run]:
        """The runs of our experiment, newest first."""
        found = self._client.search_runs(
            [self._experiment], order_by=["attributes.start_time DESC"], max_results=limit
        )
        return [_to_run(entity) for entity in found]

    @_asks
    def run(self, name: str) -> Run:
        """The newest run of that name, or the one with that MLflow id.

        Raises:
            NotFoundError: there is none.
        """
        if NAME_PATTERN.fullmatch(name):
            found = self._client.search_runs(
                [self._experiment],
                filter_string=f"attributes.run_name = '{name}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
            if found:
                return _to_run(found[0])
        try:
            return _to_run(self._client.get_run(name))
        except self._error as error:
            if not _is_missing(error):
                raise
            known = ", ".join(run.name for run in self.runs(limit=5)) or "none yet"
            raise NotFoundError(f"no run {name!r} is recorded; the newest: {known}") from None

    @_asks
    def models(self) -> list[tuple[str, list[ModelVersion]]]:
        """Every model with its versions, newest first."""
        names: list[str] = []
        token: str | None = None
        while True:
            page = self._client.search_registered_models(max_results=1000, page_token=token)
            names += [model.name for model in page]
            token = page.token
            if not token:
                return [(name, self._versions(name)) for name in names]

    @_asks
    def versions(self, name: str) -> list[ModelVersion]:
        """The versions of one model, newest first.

        Raises:
            NotFoundError: there is no such model.
        """
        if not self._has_model(name):
            raise NotFoundError(f"no model {name!r} in the registry")
        return self._versions(name)

    def _versions(self, name: str) -> list[ModelVersion]:
        # Search does not fill in aliases; the registered model does.
        aliases: dict[str, list[str]] = {}
        for alias, number in self._client.get_registered_model(name).aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        found = self._client.search_model_versions(f"name='{name}'", max_results=10_000)
        versions = [_to_version(entity, aliases.get(str(entity.version), ())) for entity in found]
        return sorted(versions, key=lambda version: version.version, reverse=True)

    def _has_model(self, name: str) -> bool:
        try:
            self._client.get_registered_model(name)
        except self._error as error:
            if not _is_missing(error):
                raise
            return False
        return True

    def _with_aliases(self, version: ModelVersion, aliases: Sequence[str]) -> ModelVersion:
        for alias in aliases:
            try:
                self._client.set_registered_model_alias(version.name, alias, str(version.version))
            except self._error as error:
                if _is_outage(error):
                    raise
                raise UserError(
                    f"alias {alias!r} of {version.reference}: {_first_line(error)}"
                ) from None
        entity = self._client.get_model_version(version.name, str(version.version))
        return _to_version(entity)


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
            self.last_failure = _first_line(error)


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


def _to_version(entity: "MlflowModelVersion", aliases: Sequence[str] | None = None) -> ModelVersion:
    tags: Mapping[str, str] = entity.tags
    prefix = "raybridge.metric."
    return ModelVersion(
        name=entity.name,
        version=int(entity.version),
        aliases=tuple(sorted(entity.aliases if aliases is None else aliases)),
        digest=tags.get(_DIGEST_TAG, ""),
        run=tags.get(_RUN_TAG, ""),
        metrics={
            key.removeprefix(prefix): float(value)
            for key, value in tags.items()
            if key.startswith(prefix)
        },
        created_ms=int(entity.creation_timestamp or 0),
    )


def _is_missing(error: BaseException) -> bool:
    """Whether MLflow says that there is no such thing, and not that it cannot tell."""
    missing = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # Of an alias, the second.
    return getattr(error, "error_code", None) in missing


def _is_outage(error: BaseException) -> bool:
    # What a connection that fails is to MLflow.
    return getattr(error, "error_code", "INTERNAL_ERROR") == "INTERNAL_ERROR"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
