"""What nobody needs any more, and its removal: ``python -m cluster gc``.

A run goes if it is older than what is kept by age and beyond what is kept by number, and nothing
refers to it. The other rules follow from what is left:

    runs/RUN               referred to by a model version, or what is served; at work; the newest
    runs/RUN/checkpoints   of runs that ended well, all but the newest
    bundles/DIGEST         referred to by what is served, an alias, or a run that stays
    datasets/NAME/VERSION  referred to by a run or a bundle that stays, or made into a version that
                           stays; the newest of each name
    .NAME.HEX.draft ...    what commands that were killed left behind; see cluster.leftovers

MLflow is one of the witnesses. A run that it does not know was recorded in another one, which may
have made a champion of it: such a run stays, and where it knows none of the runs, nobody can say
what may go.
"""

import fcntl
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import UserError
from cluster.inventory import (
    StoredBundle,
    StoredRun,
    needed_datasets,
    read_bundles,
    read_datasets,
    read_runs,
    read_served,
)
from cluster.leftovers import DAY_S, find_leftovers
from cluster.remote import StoredFile
from cluster.removal import Removal
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import ModelVersion, Tracking

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([dhw])")
_UNITS_S = {"h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


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
    recorded: frozenset[str] | None = None
    """MLflow's ids of all runs that it knows; None if any run counts as known."""
    tracking_uri: str = ""
    """MLflow's address."""


def parse_age(text: str) -> float:
    """Seconds of ``30d``, ``12h`` or ``2w``.

    Raises:
        UserError: it is something else.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UserError(f"age {text!r}: expected a number with d, h or w, such as 30d")
    return float(match[1]) * _UNITS_S[match[2]]


def find_references(store: Store, settings: Settings, tracking: Tracking | None) -> References:
    """Ask MLflow and read what is served.

    Args:
        store: where to read.
        settings: name MLflow's address.
        tracking: the connection to it; None if nothing was ever recorded there.

    Raises:
        UserError: either cannot be read, so nobody knows what may go.
    """
    served, uri = read_served(store), settings.tracking_uri
    if tracking is None:
        return References(served=served, recorded=frozenset(), tracking_uri=uri)
    return References(
        versions=tuple(registered_versions(tracking)),
        served=served,
        running=frozenset(tracking.running()),
        recorded=frozenset(tracking.run_ids()),
        tracking_uri=uri,
    )


def registered_versions(tracking: Tracking | None) -> list[ModelVersion]:
    """All versions of all models."""
    models = [] if tracking is None else tracking.models()
    return [version for _, versions in models for version in versions]


def plan(store: Store, references: References, policy: Policy, now_s: float | None = None) -> Plan:
    """Decide what may go; changes nothing.

    Args:
        store: what to tidy up.
        references: who refers to what.
        policy: what stays in any case.
        now_s: the time, in seconds since 1970; by default the clock's.

    Raises:
        UserError: a file of the store is damaged, or MLflow knows none of the runs, so nobody
            knows what may go.
    """
    now_s = time.time() if now_s is None else now_s
    runs = read_runs(store)
    _refuse_another_mlflow(runs.values(), references)
    bundles = read_bundles(store)
    untouchable = {
        name: reason
        for name, run in runs.items()
        if (reason := _why_untouchable(store, run, references, now_s))
    }
    kept = _kept_runs(runs, bundles, references, untouchable, policy, now_s)
    removals: list[Removal] = []
    for name, run in runs.items():
        if name not in kept:
            reason = "nothing refers to it"
            removals.append(Removal("run", name, run.bytes, reason, run.changed_s))
        elif name not in untouchable and (old := _old_checkpoints(run, now_s)):
            size, files = sum(file.bytes for file in old), tuple(file.name for file in old)
            reason = "all but the newest"
            removals.append(Removal("checkpoints", name, size, reason, run.changed_s, files))
    aliased = {version.digest for version in references.versions if version.aliases}
    staying = {}
    for digest, bundle in bundles.items():
        used = digest in references.served or digest in aliased or bundle.run in kept
        if used or now_s - bundle.changed_s < policy.older_than_s:
            staying[digest] = bundle
        else:
            again = any(version.digest == digest for version in references.versions)
            reason = "MLflow has it too" if again else "of no run, alias or served model"
            removals.append(Removal("bundle", digest, bundle.bytes, reason, bundle.changed_s))
    data = _unused_datasets(store, [runs[name] for name in kept], staying.values(), policy, now_s)
    removals += data if policy.datasets else []
    removals += find_leftovers(store, now_s)
    return Plan(tuple(removals), () if policy.datasets else tuple(data), kept)


def _refuse_another_mlflow(runs: Collection[StoredRun], references: References) -> None:
    recorded = [run for run in runs if run.mlflow_id is not None]
    if recorded and all(_is_foreign(run, references) for run in recorded):
        raise UserError(
            f"none of the store's {len(recorded)} recorded runs is in MLflow at "
            f"{references.tracking_uri}; check MLFLOW_TRACKING_URI"
        )


def _is_foreign(run: StoredRun, references: References) -> bool:
    known = references.recorded
    return known is not None and run.mlflow_id is not None and run.mlflow_id not in known


def _why_untouchable(
    store: Store, run: StoredRun, references: References, now_s: float
) -> str | None:
    """Why nothing of a run may go, not even old checkpoints."""
    if _is_locked(store.folder(f"runs/{run.name}").lock_file):
        return "at work"
    # Of other hosts that use an object store nothing else tells. MLflow takes a run that was
    # killed for running for ever.
    if run.name in references.running and now_s - run.changed_s < DAY_S:
        return "at work, as MLflow says"
    return "recorded in another MLflow" if _is_foreign(run, references) else None


def _kept_runs(
    runs: dict[str, StoredRun],
    bundles: dict[str, StoredBundle],
    references: References,
    untouchable: dict[str, str],
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
        elif name in untouchable:
            kept[name] = untouchable[name]
        elif place == 0:
            kept[name] = "the newest"
        elif place < policy.keep_runs:
            kept[name] = f"among the newest {policy.keep_runs}"
        elif now_s - run.changed_s < policy.older_than_s:
            kept[name] = "not old enough"
    return kept


def _unused_datasets(
    store: Store,
    runs: Iterable[StoredRun],
    bundles: Iterable[StoredBundle],
    policy: Policy,
    now_s: float,
) -> list[Removal]:
    metas = read_datasets(store)
    found = []
    for reference in sorted(set(metas) - needed_datasets(metas, runs, bundles)):
        files = store.folder(f"datasets/{reference.replace('@', '/')}").details()
        changed_s = max((file.changed_s for file in files), default=0.0)
        if now_s - changed_s >= policy.older_than_s:
            size = sum(file.bytes for file in files)
            reason = "no run or bundle that stays uses it"
            found.append(Removal("data set", reference, size, reason, changed_s))
    return found


def _old_checkpoints(run: StoredRun, now_s: float) -> list[StoredFile]:
    """All but the newest, of a run that ended well a day ago."""
    if run.ended_s is None or now_s - run.ended_s < DAY_S:
        return []
    return run.checkpoints[:-1]


def _is_locked(file: Path) -> bool:
    """Whether a command holds it. Two that only ask do not take each other for such a one."""
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
