"""Removing what a plan of :mod:`cluster.retention` names, unless something came to use it.

Between a plan and a removal a command may begin, and what a plan counted on to go may stay. So
each thing is looked at once more just before it goes: runs first, then bundles, then data sets.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.atomic import locked
from cluster.bundle import MANIFEST_FILE
from cluster.dataset import META_FILE
from cluster.errors import RaybridgeError
from cluster.inventory import (
    RUN_MARKER,
    needed_datasets,
    read_bundle,
    read_bundles,
    read_datasets,
    read_runs,
    read_served,
)
from cluster.registry import ModelVersion
from cluster.store import Folder, Store

Kind = Literal["run", "checkpoints", "bundle", "data set", "leftover"]

Ask = Callable[[], Iterable[ModelVersion]]
"""Gives all versions that are registered now."""


@dataclass(frozen=True)
class Removal:
    """Something that may go."""

    kind: Kind
    name: str
    bytes: int
    reason: str
    changed_s: float = 0.0
    """When something of it was last written, in seconds since 1970."""
    files: tuple[str, ...] = ()
    """Which, of checkpoints and of objects that were left over; else all of the folder."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    removed: tuple[Removal, ...]
    failures: dict[str, str]
    """Why something could not be removed, by kind and name."""


def carry_out(
    store: Store,
    removals: Sequence[Removal],
    ask: Ask,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Remove what a plan names. What cannot be removed is counted, and the rest goes on."""
    removed: list[Removal] = []
    failures: dict[str, str] = {}
    for removal in removals:
        try:
            _remove(store, removal, ask)
        except (OSError, RaybridgeError) as error:
            failures[f"{removal.kind} {removal.name}"] = str(error)
            say(f"not removed: {removal.kind} {removal.name}: {error}")
        else:
            removed.append(removal)
    return Outcome(tuple(removed), failures)


def _remove(store: Store, removal: Removal, ask: Ask) -> None:
    if removal.kind == "leftover":
        _remove_leftover(store, removal)
    elif removal.kind == "bundle":
        folder = store.folder(f"bundles/{removal.name}")
        _refuse_changed(folder, removal)
        _refuse_used_bundle(store, removal.name, ask)
        folder.remove(MANIFEST_FILE)
    elif removal.kind == "data set":
        folder = store.folder(f"datasets/{removal.name.replace('@', '/')}")
        _refuse_used_dataset(store, removal.name)
        folder.remove(META_FILE)
    else:
        folder = store.folder(f"runs/{removal.name}")
        with locked(folder.lock_file, RaybridgeError("a command is at work on it")):
            _refuse_changed(folder, removal)
            if removal.kind == "checkpoints":
                for name in removal.files:
                    folder.delete(name)
                return
            for version in ask():
                if version.run == removal.name:
                    raise RaybridgeError(f"it was registered meanwhile, as {version.reference}")
            folder.remove(RUN_MARKER)
            folder.lock_file.unlink()


def _remove_leftover(store: Store, removal: Removal) -> None:
    if store.remote is not None and removal.files:
        for name in removal.files:
            store.remote.delete(name)
        return
    path = store.root / removal.name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_changed(folder: Folder, removal: Removal) -> None:
    if any(file.changed_s > removal.changed_s for file in folder.details()):
        raise RaybridgeError("it was written to, or fetched, meanwhile")


def _refuse_used_bundle(store: Store, digest: str, ask: Ask) -> None:
    """Whatever of the plan was to go before is gone: what is there now stays."""
    if digest in read_served(store):
        raise RaybridgeError("it was deployed meanwhile")
    for version in ask():
        if version.digest == digest and version.aliases:
            raise RaybridgeError(f"{version.reference} got alias @{version.aliases[0]} meanwhile")
    bundle = read_bundle(store, digest)
    if bundle is not None and store.folder(f"runs/{bundle.run}").has(RUN_MARKER):
        raise RaybridgeError(f"run {bundle.run} stays, or came meanwhile, and made it")


def _refuse_used_dataset(store: Store, reference: str) -> None:
    runs, bundles = read_runs(store), read_bundles(store)
    for run in runs.values():
        if run.dataset == reference:
            raise RaybridgeError(f"run {run.name} stays, or came meanwhile, and uses it")
    for digest, bundle in bundles.items():
        if bundle.dataset == reference:
            raise RaybridgeError(f"bundle {digest} stays, or came meanwhile, and refers to it")
    if reference in needed_datasets(read_datasets(store), runs.values(), bundles.values()):
        raise RaybridgeError("a version that stays was made from it")
