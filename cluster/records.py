"""What ``runs`` and ``models`` show of MLflow and the store."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from cluster.bundle import Manifest
from cluster.cli import Output
from cluster.comparison import compare
from cluster.errors import RaybridgeError, UserError
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import ModelVersion, Run, Tracking

_SHORT = 12


def show_runs(output: Output, names: Sequence[str], *, side_by_side: bool, limit: int) -> None:
    """``cluster runs``: the newest, one with everything, or several side by side."""
    if side_by_side and len(names) < 2:
        raise UserError("--compare wants two runs or more: runs --compare RUN RUN")
    if len(names) > 1 and not side_by_side:
        raise UserError(f"one run at a time, or side by side: runs --compare {' '.join(names)}")
    settings = Settings.from_env()
    tracking = Tracking(settings)
    if side_by_side:
        found = [tracking.run(name) for name in names]
        _show_comparison(output, found, Store.open(settings.address))
    elif names:
        _show_run(output, tracking.run(names[0]))
    else:
        _list_runs(output, tracking.runs(limit=limit))


def show_models(output: Output, model: str | None) -> None:
    """``cluster models``: all of them, or the versions of one with what they come from."""
    tracking = Tracking(Settings.from_env())
    if model is not None:
        _show_model(output, model, tracking)
        return
    listed = tracking.models()
    if not listed:
        output.say("no models yet; train one, then register it with `python -m train export`")
    for name, versions in listed:
        shown = [version for i, version in enumerate(versions) if i == 0 or version.aliases]
        hidden = len(versions) - len(shown)
        title = f"{name} ({hidden} older: python -m cluster models {name})" if hidden else name
        output.table(
            title,
            ("version", "aliases", "metrics", "run", "registered"),
            [
                (
                    version.version,
                    _aliases(version),
                    _metrics(version.metrics),
                    version.run,
                    moment(version.created_ms),
                )
                for version in shown
            ],
        )
    output.result(
        {
            "models": [
                {"name": name, "versions": [asdict(version) for version in versions]}
                for name, versions in listed
            ]
        }
    )


def _list_runs(output: Output, listed: Sequence[Run]) -> None:
    if not listed:
        output.say("no runs yet; make one with: python -m train fit digits")
    else:
        output.table(
            "Runs",
            ("name", "status", "started", "took", "metrics"),
            [
                (
                    run.name,
                    run.status.lower(),
                    moment(run.started_ms),
                    "" if run.seconds is None else f"{run.seconds:.0f} s",
                    _metrics(run.metrics),
                )
                for run in listed
            ],
        )
    output.result({"runs": [asdict(run) for run in listed]})


def _show_run(output: Output, run: Run) -> None:
    output.say(f"{run.name}  {run.status.lower()}  {moment(run.started_ms)}")
    output.say(f"MLflow id  {run.run_id}")
    for title, values in (
        ("Metrics", {name: _number(value) for name, value in run.metrics.items()}),
        ("Parameters", run.params),
        ("Tags", run.tags),
    ):
        if values:
            output.table(title, ("name", "value"), sorted(values.items()))
    output.result(asdict(run))


def _show_comparison(output: Output, runs: Sequence[Run], store: Store) -> None:
    found = compare(runs, store)
    same = f" ({found.same_parameters} are the same)"
    for title, values in (
        ("Runs", {name: tuple(map(_short, row)) for name, row in found.facts.items()}),
        (f"Parameters that differ{same}", found.parameters),
        ("Metrics", found.metrics),
    ):
        if not values:
            output.say(f"{title}: none")
            continue
        rows = [(name, *(_shown(value) for value in row)) for name, row in values.items()]
        output.table(title, ("", *found.runs), rows)
    output.result(found.as_json())


def _show_model(output: Output, model: str, tracking: Tracking) -> None:
    listed: list[dict[str, Any]] = []
    rows: list[tuple[object, ...]] = []
    problems = []
    for version in tracking.versions(model):
        try:
            manifest = tracking.manifest(version)
        except RaybridgeError as error:
            problems.append(str(error))
            listed.append({**asdict(version), "lineage": None, "parity": None})
            rows.append(
                (version.version, _aliases(version), _metrics(version.metrics), version.run)
            )
            continue
        lineage, parity = manifest.lineage, manifest.parity
        listed.append(
            {
                **asdict(version),
                "created_at": manifest.created_at,
                "network": manifest.model.model_dump(mode="json"),
                "lineage": lineage.model_dump(mode="json"),
                "parity": parity.model_dump(mode="json"),
            }
        )
        rows.append(
            (
                version.version,
                _aliases(version),
                _metrics(version.metrics),
                lineage.run,
                f"{lineage.dataset} {lineage.dataset_digest[:_SHORT]}",
                _commit(lineage.commit),
                _parity(manifest),
                moment(version.created_ms),
            )
        )
    width = len(_MODEL_COLUMNS)
    output.table(model, _MODEL_COLUMNS, [(*row, *[""] * (width - len(row))) for row in rows])
    for problem in problems:
        output.say(f"note: {problem}")
    output.result({"models": [{"name": model, "versions": listed}]})


_MODEL_COLUMNS = (
    *("version", "aliases", "metrics", "run", "data set and digest", "commit"),
    *("parity with PyTorch", "registered"),
)


def moment(milliseconds: int) -> str:
    """A moment in this machine's time zone."""
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    labels = "labels equal" if parity.labels_equal else "LABELS DIFFER"
    return f"{parity.max_abs_diff:.1e} over {parity.images}, {labels}"


def _commit(commit: str | None) -> str:
    if commit is None:
        return "-"
    head, dash, mark = commit.partition("-")
    return f"{head[:_SHORT]}{dash}{mark}"


def _aliases(version: ModelVersion) -> str:
    return " ".join(f"@{alias}" for alias in version.aliases)


def _metrics(values: dict[str, float], limit: int = 3) -> str:
    """The figures that people ask for first, then others, as many as a line holds."""

    def rank(name: str) -> tuple[int, str]:
        order = [("accuracy", "test"), ("accuracy", "val"), ("loss", "test"), ("loss", "val")]
        for position, (wanted, split) in enumerate(order):
            if wanted in name and split in name:
                return position, name
        return len(order), name

    chosen = sorted(values, key=rank)[:limit]
    return "  ".join(f"{name} {_number(values[name])}" for name in chosen)


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value


def _shown(value: float | str | None) -> str:
    return "-" if value is None else _number(value)


def _short(value: str | None) -> str | None:
    """Digests and commits as people write them."""
    if value is None or len(value) < 40 or not set(value[:40]) <= set("0123456789abcdef"):
        return value
    return _commit(value)
