"""What ``gc`` shows and does; see :mod:`cluster.retention` and :mod:`cluster.removal`."""

import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer

from cluster.cli import Output
from cluster.removal import Outcome, Removal, carry_out
from cluster.retention import (
    Plan,
    Policy,
    find_references,
    parse_age,
    plan,
    registered_versions,
)
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking


def collect_garbage(
    output: Output, *, keep_runs: int, older_than: str, datasets: bool, yes: bool
) -> None:
    """``cluster gc``."""
    policy = Policy(keep_runs, parse_age(older_than), datasets)
    settings = Settings.from_env()
    store = Store.open(settings.address)
    tracking = Tracking.existing(settings)  # A look at the wrong place must not make a registry.
    planned = plan(store, find_references(store, settings, tracking), policy)
    _show(output, planned)
    outcome = Outcome((), {})
    if yes:
        ask = functools.partial(registered_versions, tracking)
        outcome = carry_out(store, planned.removals, ask, output.say)
        freed = sum(removal.bytes for removal in outcome.removed)
        output.say(
            f"removed {len(outcome.removed)} of {len(planned.removals)}, {_mb(freed)} freed"
            + (f", {len(outcome.failures)} failed" if outcome.failures else "")
        )
    elif planned.removals:
        output.say("nothing was removed; add --yes to do so")
    output.result(
        {
            "store": store.address,
            "removable": [_as_json(removal) for removal in planned.removals],
            "removable_bytes": planned.bytes,
            "unused_datasets": [_as_json(removal) for removal in planned.listed],
            "kept_runs": planned.kept,
            "removed": [_as_json(removal) for removal in outcome.removed],
            "removed_bytes": sum(removal.bytes for removal in outcome.removed),
            "failures": outcome.failures,
        }
    )
    if outcome.failures:
        raise typer.Exit(1)


def _show(output: Output, planned: Plan) -> None:
    if not planned.removals:
        output.say(f"nothing to remove; {len(planned.kept)} run(s) stay")
    else:
        _table(output, f"May go: {_mb(planned.bytes)}", planned.removals)
    if planned.listed:
        _table(output, "Data sets that nothing refers to (--datasets)", planned.listed)
    if planned.kept:
        reasons: dict[str, list[str]] = {}
        for name, reason in planned.kept.items():
            reasons.setdefault(reason, []).append(name)
        output.table(
            "Runs that stay",
            ("because", "runs", "names"),
            [
                (reason, len(names), ", ".join(names[:3]) + (" ..." if len(names) > 3 else ""))
                for reason, names in reasons.items()
            ],
        )


def _table(output: Output, title: str, removals: Sequence[Removal]) -> None:
    rows = [(one.name, one.kind, _mb(one.bytes), one.reason) for one in removals]
    output.table(title, ("name", "kind", "size", "because"), rows)


def _as_json(removal: Removal) -> dict[str, Any]:
    values = asdict(removal)
    del values["files"], values["changed_s"]
    return values


def _mb(amount: int) -> str:
    return f"{amount / 1e6:,.1f} MB"
