"""The versions that one replica holds, and how it moves from one generation to the next.

Nothing here knows HTTP or Ray. Methods that open bundles take seconds and belong in a thread.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.bundle import Bundle, Manifest
from cluster.errors import BundleError, RaybridgeError, ServingError
from cluster.runtime import open_session
from serve.batcher import Batcher
from serve.config import ReplicaConfig
from serve.document import ServedDocument, ServedDocuments, ServedVersion
from serve.metrics import Meter
from serve.protocol import ModelSpec

logger = logging.getLogger(__name__)

RETRY_PERIOD_S = 30.0
"""Pause between two tries to open a generation that could not be opened."""


@dataclass
class LoadedModel:
    """One opened version: its goldens agree, and it is warm."""

    spec: ModelSpec
    digest: str
    manifest: Manifest
    batcher: Batcher
    version_header: bytes = field(init=False)
    encoded_class_names: tuple[str, ...] = field(init=False)
    """Class names as JSON strings."""

    def __post_init__(self) -> None:
        self.version_header = self.spec.version.encode()
        self.encoded_class_names = tuple(map(json.dumps, self.spec.class_names))


OpenModel = Callable[[str, ServedVersion], LoadedModel]


def open_model(
    name: str, served: ServedVersion, config: ReplicaConfig, meter: Meter
) -> LoadedModel:
    """Open a bundle for serving: digests, goldens, warm-up.

    Raises:
        BundleError: it is damaged, is not the one that was deployed, or answers differently.
    """
    bundle = Bundle.open(served.path)
    if bundle.digest != served.digest:
        raise BundleError(
            f"{served.path} holds bundle {bundle.digest[:12]}, not {served.digest[:12]} "
            f"that was deployed as version {served.version}"
        )
    session = open_session(bundle, engine=config.engine, num_threads=config.threads)
    version = str(served.version)
    spec = ModelSpec.of(name, version, bundle.manifest)
    for rows in sorted({1, 2, config.max_batch_size}):
        session.run(np.zeros((rows, *spec.shape), np.uint8))
    batcher = Batcher(
        session.run,
        max_batch_size=config.max_batch_size,
        wait_s=config.batch_wait_ms / 1000,
        on_batch=lambda rows: meter.batch(version, rows),
    )
    return LoadedModel(spec, bundle.digest, bundle.manifest, batcher)


@dataclass(frozen=True)
class _Table:
    """One generation, ready to answer. Swapped as a whole, so a request sees one or the other."""

    generation: int
    models: dict[str, LoadedModel]
    main: LoadedModel
    names: tuple[str, ...]
    weights: tuple[float, ...]


class Predictor:
    """Holds the committed generation of one model and follows its document."""

    def __init__(
        self,
        name: str,
        documents: ServedDocuments,
        open_version: OpenModel,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Hold nothing yet; ``on_failure`` is told of every generation that cannot be followed."""
        self.name = name
        self._on_failure = on_failure
        self._documents = documents
        self._open = open_version
        self._lock = threading.Lock()
        self._prepared: dict[str, LoadedModel] = {}
        self._table: _Table | None = None
        self._retry_at_s = 0.0
        self.problem: str | None = None
        """Why the newest generation could not be followed, if it could not."""

    def start(self) -> None:
        """Open the committed generation.

        Raises:
            ServingError: there is none.
            BundleError: a bundle of it must not be opened.
        """
        document = self._documents.read(self.name)
        if document is None:
            raise ServingError(f"nothing is to be served for model {self.name!r}")
        with self._lock:
            self._switch(document)

    def prepare(self, document: ServedDocument) -> None:
        """Open what a coming generation needs, and keep it aside.

        Raises:
            BundleError: a bundle of it must not be opened.
        """
        with self._lock:
            for served in document.versions:
                self._model(served)

    def follow(self, *, now: bool = False) -> bool:
        """Move to the committed generation if it is another one; whether it was.

        A generation that cannot be opened is counted and reported, and the old one goes on. It is
        tried again every half minute, or ``now``.
        """
        # A health check must not wait while another one, or a rollout, copies a bundle here.
        if not self._lock.acquire(blocking=now):
            return False
        try:
            current = self.table.generation
            if not now and time.monotonic() < self._retry_at_s:
                return False
            documents = self._documents
            document = (documents.read if now else documents.read_often)(self.name)
            if document is None or document.generation == current:
                self.problem = None
                return False
            self._switch(document)
        except (RaybridgeError, OSError) as error:
            self._retry_at_s = time.monotonic() + RETRY_PERIOD_S
            self.problem = f"generation {current} goes on: {error}"
            self._on_failure()
            logger.exception("model %s: a generation could not be opened", self.name)
            return False
        finally:
            self._lock.release()
        return True

    def forget_prepared(self) -> None:
        """Drop what was opened for a generation that does not come."""
        with self._lock:
            self._drop_unused(self.table)

    @property
    def table(self) -> _Table:
        """The generation that answers now."""
        if self._table is None:
            raise ServingError(f"model {self.name!r} is not started")
        return self._table

    def choose(self, version: str | None = None) -> LoadedModel | None:
        """The version that answers a request: the named one, or one drawn by the shares."""
        table = self.table
        if version is not None:
            return table.models.get(version)
        if len(table.names) == 1:
            return table.main
        (name,) = random.choices(table.names, table.weights)
        return table.models[name]

    def state(self) -> dict[str, Any]:
        """What this replica holds, for ``status`` and for a rollout."""
        table = self.table
        return {
            "generation": table.generation,
            "versions": {name: model.digest for name, model in table.models.items()},
            "problem": self.problem,
        }

    def _switch(self, document: ServedDocument) -> None:
        models = {str(served.version): self._model(served) for served in document.versions}
        shared = [served for served in document.versions if served.share > 0]
        self._table = _Table(
            generation=document.generation,
            models=models,
            main=models[str(document.main.version)],
            names=tuple(str(served.version) for served in shared),
            weights=tuple(served.share for served in shared),
        )
        self.problem = None
        self._retry_at_s = 0.0
        self._drop_unused(self._table)

    def _model(self, served: ServedVersion) -> LoadedModel:
        key = f"{served.version}/{served.digest}"
        if key not in self._prepared:
            self._prepared[key] = self._open(self.name, served)
        return self._prepared[key]

    def _drop_unused(self, table: _Table) -> None:
        used = {id(model) for model in table.models.values()}
        for key, model in list(self._prepared.items()):
            if id(model) not in used:
                # What was submitted is still answered; who comes too late chooses again.
                model.batcher.close()
                del self._prepared[key]
