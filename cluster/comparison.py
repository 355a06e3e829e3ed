"""Recorded runs side by side: what was asked for, on what data and code, and what came of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from cluster.inventory import RUN_MARKER, decode_json
from cluster.store import NAME_PATTERN, Store
from cluster.tracking import Run

_T = TypeVar("_T")


@dataclass(frozen=True)
class Comparison:
    """Values by name, one for each run, in the order of the runs; None where a run has none."""

    runs: tuple[str, ...]
    facts: dict[str, tuple[str | None, ...]]
    """Status, seconds, data set and its digest, commit and library versions."""
    parameters: dict[str, tuple[str | None, ...]]
    """Only those that differ."""
    same_parameters: int
    """How many do not."""
    metrics: dict[str, tuple[float | None, ...]]
    """All, differing or not."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def compare(runs: Sequence[Run], store: Store) -> Comparison:
    """Lay recorded runs side by side.

    Args:
        runs: as MLflow has them.
        store: knows the data's digest and the commit of those whose folders it still has.
    """
    parameters = _aligned([run.params for run in runs])
    differing = {name: values for name, values in parameters.items() if len(set(values)) > 1}
    return Comparison(
        runs=tuple(run.name for run in runs),
        facts=_aligned([_facts(run, store) for run in runs]),
        parameters=differing,
        same_parameters=len(parameters) - len(differing),
        metrics=_aligned([run.metrics for run in runs]),
    )


def _facts(run: Run, store: Store) -> dict[str, str]:
    known: dict[str, str] = {"status": run.status.lower()}
    if run.seconds is not None:
        known["seconds"] = f"{run.seconds:.1f}"
    if "raybridge.dataset" in run.tags:
        known["data set"] = run.tags["raybridge.dataset"]
    content = None
    if NAME_PATTERN.fullmatch(run.name):
        content = store.folder(f"runs/{run.name}").read(RUN_MARKER)
    if content is not None:
        info = decode_json(content, f"runs/{run.name}/{RUN_MARKER}")
        known["data set"] = str(info.get("dataset", ""))
        known["data digest"] = str(info.get("dataset_digest", ""))
        known["commit"] = str(info.get("commit") or "not from a checkout")
        libraries = info.get("libraries")
        for name, version in sorted(libraries.items() if isinstance(libraries, dict) else ()):
            known[f"{name} version"] = str(version)
    return known


def _aligned(values: Sequence[dict[str, _T]]) -> dict[str, tuple[_T | None, ...]]:
    # In the order in which they first appear, which is that of the configuration.
    names = {name: None for one in values for name in one}
    return {name: tuple(one.get(name) for one in values) for name in names}
