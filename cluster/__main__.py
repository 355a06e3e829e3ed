"""``python -m cluster``: the cluster itself, its jobs, and what MLflow has recorded.

    up        start a cluster on this machine that stays
    down      stop it
    status    machines, free CPUs and GPUs, who holds the rest, Serve applications
    submit    run a command on the cluster, from a copy of a folder
    runs      recorded training runs
    models    registered models

Ray and MLflow take seconds to import, so each command imports what it needs.
"""

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli import JsonOption, Output, main, new_app
from cluster.errors import UserError
from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.tracking import ModelVersion, Run

app = new_app(
    "Start and watch a Ray cluster, run jobs on it, and look at recorded runs and models.\n\n"
    "No command needs a cluster to be up first: without one, training and serving start a private "
    "cluster and stop it again. `up` is for several commands that are to share one."
)


@app.command()
def up(
    num_cpus: Annotated[
        int | None,
        typer.Option(min=0, help="Logical CPUs; by default those of the machine."),
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs; by default those of the machine.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Ray's control store.")
    ] = 6379,
    dashboard_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the dashboard.")
    ] = 8265,
    as_json: JsonOption = False,
) -> None:
    """Start a cluster on this machine that goes on until `down`.

    It listens on the loopback interface only and asks for Ray's token, which our commands send by
    themselves; `ray job submit` sends it after `export RAY_AUTH_MODE=token`. If a cluster answers
    already, nothing is started.
    """
    from cluster import head

    output = Output(as_json)
    info = head.up(
        Settings.from_env(),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        port=port,
        dashboard_port=dashboard_port,
    )
    if not info.started and not (num_cpus is None and num_gpus is None):
        output.say("a cluster answers already, whose CPUs and GPUs stay as they are")
    if info.started:
        output.say(f"cluster up at {info.address}, dashboard {info.dashboard_url}")
        output.say(
            "for Ray's own commands, such as `ray job submit`: export RAY_AUTH_MODE=token "
            f"RAY_API_SERVER_ADDRESS={info.dashboard_url}"
        )
    elif info.pid is not None:
        output.say(f"cluster is up already at {info.address}, dashboard {info.dashboard_url}")
    else:
        output.say(
            f"a cluster that was started by other means answers at {info.address}: commands join "
            "it, and `python -m cluster down` will leave it alone"
        )
    output.result(asdict(info))


@app.command()
def down(as_json: JsonOption = False) -> None:
    """Stop the cluster that `up` started, with everything that runs on it; never another one."""
    from cluster import head

    output = Output(as_json)
    stopped = head.down(Settings.from_env())
    if stopped is None:
        output.say("nothing to stop: `python -m cluster up` has started no cluster that still runs")
    else:
        output.say(f"stopped the cluster at {stopped.address}")
    output.result({"stopped": None if stopped is None else stopped.address})


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show machines, free CPUs and GPUs, who holds the rest, and what is served.

    Exit code 2 if no cluster is running.
    """
    from cluster.session import connect

    output = Output(as_json)
    settings = Settings.from_env()
    with connect(settings, may_start=False, label="cluster status") as session:
        total, free, nodes = session.total(), session.free(), session.nodes()
        holders, applications = session.holders(), session.applications()
        address, dashboard_url = session.address, session.dashboard_url
    output.say(f"cluster    {address}")
    output.say(f"dashboard  {dashboard_url or 'off'}")
    output.say(f"store      {settings.store}")
    output.say(f"tracking   {settings.tracking_uri}")
    output.say(f"free       {free} of {total}")
    output.table(
        "Machines",
        ("address", "CPUs free", "CPUs", "GPUs free", "GPUs"),
        [
            (
                node.address,
                f"{node.free.cpus:g}",
                f"{node.total.cpus:g}",
                f"{node.free.gpus:g}",
                f"{node.total.gpus:g}",
            )
            for node in nodes
        ],
    )
    if holders:
        output.table(
            "Held by",
            ("name", "kind", "CPUs", "GPUs"),
            [
                (holder.name, holder.kind, f"{holder.cpus:g}", f"{holder.gpus:g}")
                for holder in holders
            ],
        )
    if applications:
        output.table(
            "Serve applications",
            ("name", "status", "replicas"),
            [
                (
                    application.name,
                    application.status,
                    ", ".join(f"{name} {number}" for name, number in application.replicas.items()),
                )
                for application in applications
            ],
        )
    output.result(
        {
            "address": address,
            "dashboard_url": dashboard_url,
            "store": str(settings.store),
            "tracking_uri": settings.tracking_uri,
            "total": asdict(total),
            "free": asdict(free),
            "nodes": [asdict(node) for node in nodes],
            "holders": [asdict(holder) for holder in holders],
            "applications": [asdict(application) for application in applications],
        }
    )


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND", help="What to run, after `--`: python -m train fit digits"
        ),
    ],
    working_dir: Annotated[
        Path,
        typer.Option(help="Folder to copy to where the job runs: a checkout, or your own code."),
    ] = Path(),
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable of the job; may be repeated."),
    ] = None,
    num_cpus: Annotated[
        float,
        typer.Option(min=0, help="CPUs for the command itself; what it starts reserves its own."),
    ] = 0,
    num_gpus: Annotated[float, typer.Option(min=0, help="GPUs for the command itself.")] = 0,
    name: Annotated[str | None, typer.Option(help="The job's name; random by default.")] = None,
    wait: Annotated[
        bool,
        typer.Option(help="Show the job's output and end with its exit code, or leave at once."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a command on the cluster, from a copy of a folder.

    Ctrl-C stops the job. With `--no-wait` the command leaves as soon as the job is taken; look at
    it with `ray job logs NAME` or in the dashboard.

    The cluster is the one on this machine, or the one that RAY_API_SERVER_ADDRESS names
    (http://HOST:8265). The store and MLflow's address travel along, so both must be reachable from
    there. `python` is the one that the cluster was started with.
    """
    from cluster import jobs

    output = Output(as_json)
    job = jobs.submit(
        Settings.from_env(),
        command,
        working_dir=working_dir,
        environment=_parse_environment(env or []),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        job_id=name,
    )
    output.say(f"job {job.job_id} at {job.dashboard_url}")
    if not wait:
        output.result({"job": job.job_id, "status": job.status(), "exit_code": None})
        return
    stream = sys.stderr if as_json else sys.stdout

    def echo(piece: str) -> None:
        stream.write(piece)
        stream.flush()

    try:
        result = job.follow(echo)
    except KeyboardInterrupt:
        output.say(f"stopping job {job.job_id}")
        job.stop()
        raise
    output.say(f"job {result.job_id} {result.status.lower()}: {result.message}")
    output.result(
        {
            "job": result.job_id,
            "status": result.status,
            "exit_code": result.exit_code,
            "message": result.message,
        }
    )
    raise typer.Exit(result.exit_code)


@app.command()
def runs(
    run: Annotated[
        str | None, typer.Argument(help="Show this one: its name or its MLflow id.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many to list, newest first.")
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """List recorded runs with their main metrics, or show one with everything recorded."""
    from cluster.tracking import Tracking

    output = Output(as_json)
    tracking = Tracking(Settings.from_env())
    if run is not None:
        found = tracking.run(run)
        output.say(f"{found.name}  {found.status.lower()}  {_moment(found.started_ms)}")
        output.say(f"MLflow id  {found.run_id}")
        for title, values in (
            ("Metrics", {name: _number(value) for name, value in found.metrics.items()}),
            ("Parameters", found.params),
            ("Tags", found.tags),
        ):
            if values:
                output.table(title, ("name", "value"), sorted(values.items()))
        output.result(asdict(found))
        return
    listed = tracking.runs(limit=limit)
    if not listed:
        output.say("no runs yet; make one with: python -m train fit digits")
    else:
        output.table(
            "Runs",
            ("name", "status", "started", "took", "metrics"),
            [_run_row(entry) for entry in listed],
        )
    output.result({"runs": [asdict(entry) for entry in listed]})


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="Show all versions of this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List registered models with their newest version and aliases, or all versions of one.

    Commands take a version as MODEL (its champion), MODEL@ALIAS or MODEL:VERSION.
    """
    from cluster.tracking import Tracking

    output = Output(as_json)
    tracking = Tracking(Settings.from_env())
    listed = [(model, tracking.versions(model))] if model is not None else tracking.models()
    if not listed:
        output.say("no models yet; train one, then register it with `python -m train export`")
    for name, versions in listed:
        shown = versions if model is not None else _with_alias_or_newest(versions)
        hidden = len(versions) - len(shown)
        title = f"{name} ({hidden} older: python -m cluster models {name})" if hidden else name
        output.table(
            title,
            ("version", "aliases", "metrics", "run", "registered"),
            [
                (
                    version.version,
                    " ".join(f"@{alias}" for alias in version.aliases),
                    _metrics(version.metrics),
                    version.run,
                    _moment(version.created_ms),
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


def _parse_environment(pairs: list[str]) -> dict[str, str]:
    parsed = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise UserError(f"--env {pair}: expected NAME=VALUE")
        parsed[name] = value
    return parsed


def _run_row(run: "Run") -> tuple[str, ...]:
    took = "" if run.seconds is None else f"{run.seconds:.0f} s"
    return (run.name, run.status.lower(), _moment(run.started_ms), took, _metrics(run.metrics))


def _with_alias_or_newest(versions: "list[ModelVersion]") -> "list[ModelVersion]":
    return [version for i, version in enumerate(versions) if i == 0 or version.aliases]


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


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    main(app, "python -m cluster")
