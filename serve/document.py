"""What is served, as a document in the store: the only truth that every replica follows.

    serving/MODEL.json   generation, versions with their bundles and shares, settings

A replica opens the committed generation when it starts and looks again at every health check, so a
replica that a rollout's broadcast missed catches up by itself.
"""

import contextlib
import fcntl
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.config import Frozen
from cluster.errors import ServingError
from cluster.store import Store, check_name, write_json_atomic
from serve.config import ServeConfig


class ServedVersion(Frozen):
    """One version of a model that replicas hold."""

    version: int = Field(ge=1)
    digest: str
    """Digest of its bundle; a replica refuses another one at ``path``."""
    path: Path
    """Folder of its bundle, as every node sees it."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Part of the unversioned traffic that it answers."""


class ServedDocument(Frozen):
    """One generation of what is served for a model."""

    schema_version: Literal[1] = 1
    model: str
    generation: int = Field(ge=1)
    versions: tuple[ServedVersion, ...] = Field(min_length=1)
    config: ServeConfig = ServeConfig()

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
        self._folder = store.serving

    def path(self, model: str) -> Path:
        """Where the document of ``model`` is."""
        return self._folder / f"{check_name('model', model)}.json"

    def read(self, model: str) -> ServedDocument | None:
        """The committed generation, or None if the model is not served.

        Raises:
            ServingError: the file is damaged.
        """
        path = self.path(model)
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            return ServedDocument.model_validate_json(text)
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise ServingError(f"{path} is not a serving document: {first}") from None

    def write(self, document: ServedDocument) -> None:
        """Commit a generation."""
        write_json_atomic(self.path(document.model), json.loads(document.model_dump_json()))

    def remove(self, model: str) -> None:
        """Forget a model."""
        self.path(model).unlink(missing_ok=True)

    def models(self) -> list[str]:
        """Names of all served models, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(
            path.stem for path in self._folder.glob("*.json") if not path.name.startswith(".")
        )

    @contextlib.contextmanager
    def changing(self, model: str) -> Iterator[None]:
        """Hold off every other command that would change what is served for ``model``.

        Raises:
            ServingError: another command is changing it now.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{check_name('model', model)}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ServingError(
                    f"another command is changing what is served for {model!r}; try again"
                ) from None
            yield
