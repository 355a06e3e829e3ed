"""What is in a store: runs, bundles and data sets, and what they say they come from.

Runs are the training stage's: of their files only those are read that say what a run refers to.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.bundle import MANIFEST_FILE
from cluster.dataset import DatasetMeta, dataset_meta, dataset_names, dataset_versions
from cluster.errors import UserError
from cluster.remote import StoredFile
from cluster.store import Folder, Store

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
    mlflow_id: str | None
    """MLflow's of the record of it, once there is one."""
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
            begun, dataset = values.get("created_at"), values.get("dataset")
            mlflow_id = values.get("mlflow_run_id")
            if not isinstance(begun, str) or not isinstance(dataset, str):
                raise _damaged(f"runs/{name}/{RUN_MARKER}")
            recorded = mlflow_id if isinstance(mlflow_id, str) else None
            runs.append(StoredRun(name, begun, dataset, recorded, tuple(grouped[name])))
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
        bundle = _read_bundle(folder, digest, files)
        if bundle is not None:
            found[digest] = bundle
    return found


def read_bundle(store: Store, digest: str) -> StoredBundle | None:
    """The bundle of that digest, if there is one.

    Raises:
        UserError: its manifest is damaged.
    """
    folder = store.folder("bundles")
    return _read_bundle(folder, digest, folder.child(digest).details())


def _read_bundle(folder: Folder, digest: str, files: Collection[StoredFile]) -> StoredBundle | None:
    content = folder.read(f"{digest}/{MANIFEST_FILE}")
    if content is None:
        return None
    where = f"bundles/{digest}/{MANIFEST_FILE}"
    lineage = decode_json(content, where).get("lineage")
    if not isinstance(lineage, dict):
        raise _damaged(where)
    return StoredBundle(
        str(lineage.get("run", "")),
        str(lineage.get("dataset", "")),
        sum(file.bytes for file in files),
        max((file.changed_s for file in files), default=0.0),
    )


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
            versions = values.get("versions")
            if not isinstance(versions, list) or not versions:
                raise _damaged(f"serving/{name}")
            for version in versions:
                digest = version.get("digest") if isinstance(version, dict) else None
                if not isinstance(digest, str):
                    raise _damaged(f"serving/{name}")
                served[digest] = str(values.get("model", name))
    return served


def read_datasets(store: Store) -> dict[str, DatasetMeta]:
    """All data sets by ``NAME@VERSION``, the versions of a name in order.

    Raises:
        DataError: a ``meta.json`` is damaged.
    """
    return {
        f"{name}@{version}": dataset_meta(store, name, version)
        for name in dataset_names(store)
        for version in dataset_versions(store, name)
    }


def needed_datasets(
    metas: Mapping[str, DatasetMeta], runs: Iterable[StoredRun], bundles: Iterable[StoredBundle]
) -> set[str]:
    """The newest of each name, what runs and bundles refer to, and what those were made from."""
    newest = {meta.name: reference for reference, meta in metas.items()}
    needed = {
        *newest.values(),
        *(run.dataset for run in runs),
        *(bundle.dataset for bundle in bundles),
    }
    waiting = [reference for reference in needed if reference in metas]
    while waiting:
        parent = metas[waiting.pop()].parent
        if parent is not None and parent in metas and parent not in needed:
            needed.add(parent)
            waiting.append(parent)
    return needed


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
    raise _damaged(where)


def _damaged(where: str) -> UserError:
    return UserError(f"{where} of the store is damaged: mend or remove it, then ask again")
