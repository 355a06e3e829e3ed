"""What nobody needs any more, and its removal: ``python -m cluster gc``.

A run goes if it is older than what is kept by age and beyond what is kept by number, and nothing
refers to it. The other rules follow from what is left:

    runs/RUN               referred to by a model version, or what is served; at work; the newest
    runs/RUN/checkpoints   of runs that ended well, all but the newest
    bundles/DIGEST         referred to by what is served, an alias, or a run that stays
    datasets/NAME/VERSION  referred to by a run or a bundle that stays, or made into a version that
                           stays; the newest of each name
    .NAME.HEX.draft, .old  what commands that were killed left behind
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.bundle import MANIFEST_FILE
from cluster.dataset import META_FILE, dataset_meta, dataset_names, dataset_versions
from cluster.errors import RaybridgeError, UserError
from cluster.inventory import (
    RUN_MARKER,
    StoredBundle,
    StoredRun,
    group_files,
    read_bundles,
    read_runs,
    read_served,
)
from cluster.remote import StoredFile
from cluster.store import Store, locked
from cluster.tracking import ModelVersion, Tracking

Kind = Literal["run", "checkpoints", "bundle", "data set", "leftover"]

DAY_S = 86_400.0
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.(draft|old)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([dhw])")
_UNITS_S = {"h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}
_ALL_RUNS = 50_000


@dataclass(frozen=True)
class Policy:
    """What stays although nothing refers to it."""

    keep_runs: int = 20
    """The newest runs."""
    older_than_s: float = 30 * DAY_S
    """What was changed since then."""
    datasets: bool = False
    """Whether data sets are removed, or only listed."""


@dataclass(frozen=True)
class Removal:
    """Something that may go."""

    kind: Kind
    name: str
    bytes: int
    reason: str
    files: tuple[str, ...] = ()
    """Which, of checkpoints and of an upload that was cut off; else all of the folder."""


@dataclass(frozen=True)
class Plan:
    """What may go, and what stays."""

    removals: tuple[Removal, ...]
    listed: tuple[Removal, ...]
    """Data sets that nobody refers to, where they are not to be removed."""
    kept: dict[str, str]
    """Why each run stays."""

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(removal.bytes for removal in self.removals)


@dataclass(frozen=True)
class References:
    """Who refers to what is in a store."""

    versions: tuple[ModelVersion, ...] = ()
    """All registered ones."""
    served: dict[str, str] = field(default_factory=dict)
    """Model by digest of a bundle that is served."""
    running: frozenset[str] = frozenset()
    """Runs that MLflow takes for running."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    removed: tuple[Removal, ...]
    failures: dict[str, str]
    """Why something could not be removed, by name."""


def parse_age(text: str) -> float:
    """Seconds of ``30d``, ``12h`` or ``2w``.

    Raises:
        UserError: it is something else.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UserError(f"age {text!r}: expected a number with d, h or w, such as 30d")
    return float(match[1]) * _UNITS_S[match[2]]


def find_references(store: Store, tracking: Tracking) -> References:
    """Ask the registry and read what is served.

    Raises:
        UserError: either cannot be read, so nobody knows what may go.
    """
    return References(
        versions=tuple(version for _, versions in tracking.models() for version in versions),
        served=read_served(store),
        running=frozenset(
            run.name for run in tracking.runs(limit=_ALL_RUNS) if run.status == "RUNNING"
        ),
    )


def plan(store: Store, references: References, policy: Policy, now_s: float | None = None) -> Plan:
    """Decide what may go; changes nothing.

    Args:
        store: what to tidy up.
        references: who refers to what.
        policy: what stays in any case.
        now_s: the time, in seconds since 1970; by default the clock's.

    Raises:
        UserError: a file of the store is damaged, so nobody knows what it refers to.
    """
    now_s = time.time() if now_s is None else now_s
    runs = read_runs(store)
    bundles = read_bundles(store)
    kept = _kept_runs(store, runs, bundles, references, policy, now_s)
    removals: list[Removal] = []
    for name, run in runs.items():
        if name not in kept:
            removals.append(Removal("run", name, run.bytes, "nothing refers to it"))
        elif old := _old_checkpoints(run, now_s):
            size, files = sum(file.bytes for file in old), tuple(file.name for file in old)
            removals.append(Removal("checkpoints", name, size, "all but the newest", files))
    aliased = {version.digest for version in references.versions if version.aliases}
    staying = {}
    for digest, bundle in bundles.items():
        used = digest in references.served or digest in aliased or bundle.run in kept
        if used or now_s - bundle.changed_s < policy.older_than_s:
            staying[digest] = bundle
        else:
            again = any(version.digest == digest for version in references.versions)
            reason = "MLflow has it too" if again else "of no run, alias or served model"
            removals.append(Removal("bundle", digest, bundle.bytes, reason))
    data = _unused_datasets(store, [runs[name] for name in kept], staying.values(), policy, now_s)
    removals += data if policy.datasets else []
    removals += _leftovers(store, now_s)
    removals += _cut_off_uploads(store, now_s)
    return Plan(tuple(removals), () if policy.datasets else tuple(data), kept)


def carry_out(
    store: Store,
    planned: Plan,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Remove what a plan names. What cannot be removed is counted, and the rest goes on."""
    removed: list[Removal] = []
    failures: dict[str, str] = {}
    for removal in planned.removals:
        try:
            _remove(store, removal)
        except (OSError, RaybridgeError) as error:
            failures[f"{removal.kind} {removal.name}"] = str(error)
            say(f"not removed: {removal.kind} {removal.name}: {error}")
        else:
            removed.append(removal)
    return Outcome(tuple(removed), failures)


def _kept_runs(
    store: Store,
    runs: dict[str, StoredRun],
    bundles: dict[str, StoredBundle],
    references: References,
    policy: Policy,
    now_s: float,
) -> dict[str, str]:
    """The runs that stay, with the weightiest reason."""
    versions = {version.run: version.reference for version in references.versions}
    served = {
        bundles[digest].run: model
        for digest, model in references.served.items()
        if digest in bundles
    }
    kept = {}
    for place, (name, run) in enumerate(runs.items()):
        if name in served:
            kept[name] = f"served as {served[name]}"
        elif name in versions:
            kept[name] = f"registered as {versions[name]}"
        elif _is_locked(store.folder(f"runs/{name}").lock_file):
            kept[name] = "at work"
        elif name in references.running and now_s - run.changed_s < DAY_S:
            kept[name] = "at work, as MLflow says"
        elif place == 0:
            kept[name] = "the newest"
        elif place < policy.keep_runs:
            kept[name] = f"among the newest {policy.keep_runs}"
        elif now_s - run.changed_s < policy.older_than_s:
            kept[name] = "not old enough"
    return kept


def _unused_datasets(
    store: Store,
    runs: Sequence[StoredRun],
    bundles: Iterable[StoredBundle],
    policy: Policy,
    now_s: float,
) -> list[Removal]:
    versions = {name: dataset_versions(store, name) for name in dataset_names(store)}
    metas = {
        f"{name}@{version}": dataset_meta(store, name, version)
        for name, numbers in versions.items()
        for version in numbers
    }
    newest = {f"{name}@{numbers[-1]}" for name, numbers in versions.items() if numbers}
    used = newest | {run.dataset for run in runs} | {bundle.dataset for bundle in bundles}
    # A version that stays keeps those that it was made from.
    waiting = [reference for reference in used if reference in metas]
    while waiting:
        parent = metas[waiting.pop()].parent
        if parent in metas and parent not in used:
            used.add(parent)
            waiting.append(parent)
    found = []
    for reference in sorted(set(metas) - used):
        files = store.folder(f"datasets/{reference.replace('@', '/')}").details()
        if not files or now_s - max(file.changed_s for file in files) >= policy.older_than_s:
            size = sum(file.bytes for file in files)
            found.append(
                Removal("data set", reference, size, "no run or bundle that stays uses it")
            )
    return found


def _leftovers(store: Store, now_s: float) -> list[Removal]:
    """What killed commands left on this disk more than a day ago."""
    found = []
    for parent, folders, files in os.walk(store.root):
        here = Path(parent)
        for name in [*folders, *files]:
            if _LEFTOVER.fullmatch(name):
                inside = [here / name, *(here / name).rglob("*")]
                status = [file.lstat() for file in inside if file.exists()]
                if status and now_s - max(one.st_mtime for one in status) >= DAY_S:
                    path = (here / name).relative_to(store.root).as_posix()
                    size = sum(one.st_size for one in status)
                    found.append(Removal("leftover", path, size, "of a command that was killed"))
        folders[:] = [
            name
            for name in folders
            if not _LEFTOVER.fullmatch(name) and (here / name) != store.root / "mlartifacts"
        ]
    return found


def _cut_off_uploads(store: Store, now_s: float) -> list[Removal]:
    """Objects of folders that never got their marker, and that nobody has written to for a day."""
    found = []
    for top, levels, marker in (
        ("runs", 1, RUN_MARKER),
        ("bundles", 1, MANIFEST_FILE),
        ("datasets", 2, META_FILE),
    ):
        files = () if store.remote is None else store.remote.details(top)
        for name, group in group_files(files, levels).items():
            whole = any(file.name == marker for file in group)
            if not whole and now_s - max(file.changed_s for file in group) >= DAY_S:
                names = tuple(f"{top}/{name}/{file.name}" for file in group)
                size = sum(file.bytes for file in group)
                reason = "of an upload that was cut off"
                found.append(Removal("leftover", f"{top}/{name}", size, reason, names))
    return found


def _remove(store: Store, removal: Removal) -> None:
    if removal.kind == "leftover" and store.remote is not None and removal.files:
        for name in removal.files:
            store.remote.delete(name)
    elif removal.kind == "leftover":
        path = store.root / removal.name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    elif removal.kind == "bundle":
        if removal.name in read_served(store):
            raise RaybridgeError("it was deployed meanwhile")
        store.folder(f"bundles/{removal.name}").remove(MANIFEST_FILE)
    elif removal.kind == "data set":
        store.folder(f"datasets/{removal.name.replace('@', '/')}").remove(META_FILE)
    else:
        folder = store.folder(f"runs/{removal.name}")
        with locked(folder.lock_file, RaybridgeError("a command is at work on it")):
            if removal.kind == "run":
                folder.remove(RUN_MARKER)
                folder.lock_file.unlink()
            else:
                for name in removal.files:
                    folder.delete(name)


def _old_checkpoints(run: StoredRun, now_s: float) -> list[StoredFile]:
    """All but the newest, of a run that ended well a day ago."""
    if run.ended_s is None or now_s - run.ended_s < DAY_S:
        return []
    return run.checkpoints[:-1]


def _is_locked(file: Path) -> bool:
    if not file.exists():
        return False
    busy = RaybridgeError()
    with contextlib.suppress(RaybridgeError), locked(file, busy):
        return False
    return True
