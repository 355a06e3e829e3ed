"""What is served, as a document in the store: the only truth that every replica follows.

    serving/MODEL.json   generation, versions with their bundles and shares, settings

A replica opens the committed generation when it starts and looks again at every health check, so a
replica that a rollout's broadcast missed catches up by itself.
"""

import contextlib
import math
import time
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.atomic import locked
from cluster.bundle import find_bundle
from cluster.config import Frozen
from cluster.errors import BundleError, ServingError, StoreError
from cluster.store import Store, check_name
from serve.config import ServeConfig

REMOTE_PERIOD_S = 10.0
"""How often each replica asks an object store, which lets itself be paid for every answer."""


class ServedVersion(Frozen):
    """One version of a model that replicas hold."""

    version: int = Field(ge=1)
    digest: str
    """Digest of its bundle; a replica refuses another one at ``path``."""
    path: Path
    """Folder of its bundle, relative to the store, or as every node sees it."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Part of the unversioned traffic that it answers."""


class Owner(Frozen):
    """A Ray cluster that serves from a store."""

    cluster: str
    """Ray's id of it, another one at every start."""
    address: str
    """``host:port`` of its head."""
    host: str
    """Name of the head's machine: a loopback address says nothing on another one."""

    def __str__(self) -> str:
        return f"whose head is {self.address} on {self.host}"


class ServedDocument(Frozen):
    """One generation of what is served for a model."""

    schema_version: Literal[1] = 1
    model: str
    generation: int = Field(ge=1)
    versions: tuple[ServedVersion, ...] = Field(min_length=1)
    config: ServeConfig = ServeConfig()
    owners: tuple[Owner, ...] = ()
    """Who serves by it; nobody known, of documents that are older than this field."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = [version.version for version in self.versions]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"versions {numbers} are not distinct")
        total = math.fsum(version.share for version in self.versions)
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"the shares add up to {total}, not to 1")
        return self

    @property
    def main(self) -> ServedVersion:
        """The version with the largest share."""
        return max(self.versions, key=lambda version: version.share)


class ServedDocuments:
    """The documents of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._folder = store.folder("serving")
        self._seen: dict[str, tuple[float, ServedDocument | None]] = {}

    def path(self, model: str) -> Path:
        """Where the document of ``model`` is, unless it is in an object store."""
        return self._folder.path / _file(model)

    def read(self, model: str) -> ServedDocument | None:
        """The committed generation, or None if the model is not served.

        Raises:
            ServingError: the document is damaged.
            StoreError: the object store does not answer.
        """
        content = self._folder.read(_file(model))
        document = None if content is None else self._decode(model, content)
        self._seen[model] = (time.monotonic(), document)
        return document

    def read_often(self, model: str) -> ServedDocument | None:
        """As :meth:`read`, for who asks every second: an object store is asked every ten.

        Raises:
            ServingError: the document is damaged.
            StoreError: the object store does not answer.
        """
        seen_at, seen = self._seen.get(model, (-math.inf, None))
        if self.store.remote is not None and time.monotonic() - seen_at < REMOTE_PERIOD_S:
            return seen
        try:
            return self.read(model)
        except StoreError:
            if model in self._seen:
                # Each try takes seconds: the next one comes as late as after an answer.
                self._seen[model] = (time.monotonic(), seen)
            raise

    def last_seen(self, model: str) -> ServedDocument | None:
        """What the last reading gave."""
        return self._seen.get(model, (0, None))[1]

    def _decode(self, model: str, content: bytes) -> ServedDocument:
        try:
            return ServedDocument.model_validate_json(content)
        except ValueError as error:
            first = str(error).splitlines()[0]
            where = f"{self.store.address}: serving/{_file(model)}"
            raise ServingError(f"{where} is not a serving document: {first}") from None

    def write(self, document: ServedDocument) -> None:
        """Commit a generation."""
        self._folder.write_json(_file(document.model), document.model_dump(mode="json"))

    def remove(self, model: str) -> None:
        """Forget a model."""
        self._folder.delete(_file(model))

    def models(self) -> list[str]:
        """Names of all served models, in order."""
        names = self._folder.names()
        return [name.removesuffix(".json") for name in names if name.endswith(".json")]

    def changing(self, model: str) -> contextlib.AbstractContextManager[None]:
        """Hold off every other command that would change what is served for ``model``.

        Raises:
            ServingError: another command is changing it now.
        """
        busy = ServingError(f"another command is changing what is served for {model!r}; try again")
        return locked(self._folder.path / f".{check_name('model', model)}.lock", busy)

    def on_this_node(self, served: ServedVersion) -> ServedVersion:
        """The same version with the folder of its bundle on this disk, copied there once.

        Raises:
            BundleError: the object store has no such bundle, or a damaged one.
            StoreError: it does not answer.
        """
        if self.store.remote is None or served.path.is_absolute():
            return served.model_copy(update={"path": self.store.root / served.path})
        bundle = find_bundle(self.store, served.digest)
        if bundle is None:
            raise BundleError(
                f"{self.store.address} has no {served.path}, the bundle of version {served.version}"
            )
        return served.model_copy(update={"path": bundle.path})


def _file(model: str) -> str:
    return f"{check_name('model', model)}.json"
