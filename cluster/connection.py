"""The connection to MLflow, through which :mod:`cluster.registry` and :mod:`cluster.tracking` ask.

MLflow is slow to import (about two seconds), so it is imported when a connection is made: drivers
pay for it, workers and replicas never do.
"""

import functools
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

import requests

from cluster.atomic import drafting, locked
from cluster.errors import UserError
from cluster.settings import Settings
from cluster.store import Store

EXPERIMENT = "raybridge"
RUN_TAG = "raybridge.run"
_LOCAL = "sqlite:///"

_C = TypeVar("_C", bound="Connection")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def asks(
    method: Callable[Concatenate[_C, _P], _R],
) -> Callable[Concatenate[_C, _P], _R]:
    """Say in one line that MLflow does not answer, whichever method finds out."""

    @functools.wraps(method)
    def asking(self: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except (self._error, requests.RequestException) as error:
            raise UserError(
                f"MLflow at {self.uri} "
                f"{'does not answer' if is_outage(error) else 'refuses'}: {first_line(error)}; "
                "check MLFLOW_TRACKING_URI"
            ) from None

    return asking


class Connection:
    """A connection to MLflow. Where its address is a SQLite file, that is made if need be.

    Raises:
        UserError: from every method too: the tracking server does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store.open(settings.address)
        if settings.tracking_uri.startswith(_LOCAL):
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
            file = _local_file(self.uri)
            if file is not None and file.parent.is_dir() and not file.exists():
                _make_file(file)
            self._client = MlflowClient(self.uri, registry_uri=self.uri)
            self._find_experiment()

    @classmethod
    def existing(cls, settings: Settings) -> Self | None:
        """A connection for who only reads; None where it would be to a file that is not there."""
        file = _local_file(settings.tracking_uri)
        if file is not None and not file.exists():
            return None
        return cls(settings)

    @property
    def uri(self) -> str:
        """MLflow's address."""
        return self._settings.tracking_uri

    @asks
    def _find_experiment(self) -> str | None:
        """The id of our experiment, if there is one yet."""
        found = self._client.get_experiment_by_name(EXPERIMENT)
        return None if found is None else str(found.experiment_id)

    def _own_experiment(self) -> str:
        """The id of our experiment, which is made if need be."""
        found = self._find_experiment()
        if found is not None:
            return found
        local = self.uri.startswith(_LOCAL)
        location = (self._settings.store / "mlartifacts").as_uri() if local else None
        try:
            return str(self._client.create_experiment(EXPERIMENT, artifact_location=location))
        except self._error:
            # Another process made it between the two calls.
            found = self._find_experiment()
            if found is None:
                raise
            return found


def _local_file(uri: str) -> Path | None:
    """The SQLite file of an address, if it is one's."""
    return Path(uri.partition("?")[0].removeprefix(_LOCAL)) if uri.startswith(_LOCAL) else None


def _make_file(file: Path) -> None:
    """Have MLflow make its tables in a new file, which is seen once it has all of them.

    Otherwise commands that start together would all make them, and fail at each other's; and an
    interrupt would leave a file that no later command could finish.
    """
    from mlflow.tracking import MlflowClient

    with locked(file.with_name(f".{file.name}.lock")):
        if file.exists():
            return
        with drafting(file.parent, file.name) as draft:
            MlflowClient(f"{_LOCAL}{draft / file.name}")
            (draft / file.name).rename(file)


def is_missing(error: BaseException) -> bool:
    """Whether MLflow says that there is no such thing, and not that it cannot tell."""
    missing = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # Of an alias, the second.
    return getattr(error, "error_code", None) in missing


def is_outage(error: BaseException) -> bool:
    """Whether MLflow cannot be reached, which to MLflow is an error of its own."""
    return getattr(error, "error_code", "INTERNAL_ERROR") == "INTERNAL_ERROR"


def first_line(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
