"""What is in a store: runs and bundles with their sizes, ages, and what they say they come from.

Runs are the training stage's: of their files only those are read that say what a run refers to.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from cluster.bundle import MANIFEST_FILE
from cluster.errors import UserError
from cluster.remote import StoredFile
from cluster.store import Store

RUN_MARKER = "run.json"
_RESULT_FILE = "result.json"
_CHECKPOINTS = "checkpoints/"


@dataclass(frozen=True)
class StoredRun:
    """A run."""

    name: str
    begun: str
    """Moment in ISO 8601."""
    dataset: str
    """``NAME@VERSION``."""
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def changed_s(self) -> float:
        """When something of it was last written, in seconds since 1970."""
        return max(file.changed_s for file in self.files)

    @property
    def ended_s(self) -> float | None:
        """When it ended well, if it did."""
        ends = [file.changed_s for file in self.files if file.name == _RESULT_FILE]
        return ends[0] if ends else None

    @property
    def checkpoints(self) -> list[StoredFile]:
        """Oldest first: their names sort by age."""
        found = [file for file in self.files if file.name.startswith(_CHECKPOINTS)]
        whole = [file for file in found if "/." not in file.name]
        return sorted(whole, key=lambda file: file.name)


@dataclass(frozen=True)
class StoredBundle:
    """A bundle."""

    run: str
    """That it was exported from."""
    dataset: str
    """``NAME@VERSION``."""
    bytes: int
    changed_s: float


def read_runs(store: Store) -> dict[str, StoredRun]:
    """All runs by name, the one that was begun last in front.

    Raises:
        UserError: a run's file is damaged.
    """
    folder = store.folder("runs")
    grouped = group_files(folder.details())
    names = [n for n, files in grouped.items() if any(one.name == RUN_MARKER for one in files)]
    contents = folder.read_all([f"{name}/{RUN_MARKER}" for name in names])
    runs = []
    for name, content in zip(names, contents, strict=True):
        if content is not None:  # Else it went away meanwhile.
            values = decode_json(content, f"runs/{name}/{RUN_MARKER}")
            begun, dataset = str(values.get("created_at", "")), str(values.get("dataset", ""))
            runs.append(StoredRun(name, begun, dataset, tuple(grouped[name])))
    runs.sort(key=lambda run: (run.begun, run.name), reverse=True)
    return {run.name: run for run in runs}


def read_bundles(store: Store) -> dict[str, StoredBundle]:
    """All bundles by digest.

    Raises:
        UserError: a manifest is damaged.
    """
    folder = store.folder("bundles")
    found = {}
    for digest, files in group_files(folder.details()).items():
        content = folder.read(f"{digest}/{MANIFEST_FILE}")
        if content is not None:
            lineage = decode_json(content, f"bundles/{digest}/{MANIFEST_FILE}").get("lineage", {})
            found[digest] = StoredBundle(
                str(lineage.get("run", "")),
                str(lineage.get("dataset", "")),
                sum(file.bytes for file in files),
                max(file.changed_s for file in files),
            )
    return found


def read_served(store: Store) -> dict[str, str]:
    """The model by the digest of each bundle that is served.

    Raises:
        UserError: a document is damaged.
    """
    served = {}
    folder = store.folder("serving")
    for name in folder.names():
        content = folder.read(name) if name.endswith(".json") else None
        if content is not None:
            values = decode_json(content, f"serving/{name}")
            for version in values.get("versions", ()):
                served[str(version["digest"])] = str(values.get("model", name))
    return served


def group_files(files: tuple[StoredFile, ...], levels: int = 1) -> dict[str, list[StoredFile]]:
    """Files by the first ``levels`` parts of their names, hidden ones left out."""
    grouped: dict[str, list[StoredFile]] = defaultdict(list)
    for file in files:
        parts = file.name.split("/")
        if len(parts) > levels and not any(part.startswith(".") for part in parts[:levels]):
            rest = "/".join(parts[levels:])
            grouped["/".join(parts[:levels])].append(StoredFile(rest, file.bytes, file.changed_s))
    return grouped


def decode_json(content: bytes | None, where: str) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        UserError: it is something else.
    """
    try:
        values = json.loads(content or b"")
        if isinstance(values, dict):
            return values
    except ValueError:
        pass
    raise UserError(f"{where} of the store is damaged: mend or remove it, then ask again")
