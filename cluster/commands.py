"""What the commands on a cluster do once their arguments are read: connect, work, show."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from cluster import jobs
from cluster.checks import Check
from cluster.cli import Output
from cluster.doctor import Diagnosis, examine
from cluster.errors import UserError
from cluster.session import connect
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE, Settings


def show_status(output: Output) -> None:
    """``cluster status``."""
    settings = Settings.from_env()
    with connect(settings, may_start=False, label="cluster status") as session:
        total, free, nodes = session.total(), session.free(), session.nodes()
        holders, applications = session.holders(), session.applications()
        address, dashboard_url = session.address, session.dashboard_url
    output.say(f"cluster    {address}")
    output.say(f"dashboard  {dashboard_url or 'off'}")
    output.say(f"store      {settings.address}")
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
            "store": settings.address,
            "tracking_uri": settings.tracking_uri,
            "total": asdict(total),
            "free": asdict(free),
            "nodes": [asdict(node) for node in nodes],
            "holders": [asdict(holder) for holder in holders],
            "applications": [asdict(application) for application in applications],
        }
    )


def submit(
    output: Output,
    command: Sequence[str],
    *,
    working_dir: Path,
    environment: Sequence[str],
    num_cpus: float,
    num_gpus: float,
    name: str | None,
    wait: bool,
) -> None:
    """``cluster submit``."""
    settings = Settings.from_env()
    job = jobs.submit(
        settings,
        command,
        working_dir=working_dir,
        environment=_parse_environment(environment),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        job_id=name,
    )
    output.say(f"job {job.job_id} at {job.dashboard_url}")
    if not os.environ.get(STORE_VARIABLE) and jobs.is_elsewhere(job.dashboard_url):
        sys.stderr.write(
            f"note: {STORE_VARIABLE} is not set, so the job keeps data sets and runs in the folder "
            f"{settings.address} of the cluster's machines; export {STORE_VARIABLE} and "
            f"{TRACKING_VARIABLE} as what is reached from here and from there\n"
        )
    if not wait:
        output.result({"job": job.job_id, "status": job.status(), "exit_code": None})
        return
    stream = sys.stderr if output.as_json else sys.stdout

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


def run_doctor(output: Output, *, timeout_s: float) -> None:
    """``cluster doctor``."""
    found = examine(Settings.from_env(), timeout_s=timeout_s)
    if found.cluster is None:
        output.say("no cluster is running here; this machine alone:")
        if (elsewhere := jobs.named_dashboard()) is not None:
            output.say(
                f"note: to check the cluster at {elsewhere}: python -m cluster submit -- python "
                "-m cluster doctor"
            )
    else:
        output.say(f"cluster {found.cluster}, {len(found.nodes)} node(s)")
    output.table("Checks", *_checks_table(found))
    for node in found.nodes:
        for check in node.checks:
            if check.outcome != "ok":
                output.say(f"{check.outcome}: {node.name}: {check.name}: {check.detail}")
                output.say(f"  fix: {check.fix}")
    for dead in found.dead:
        output.say(f"note: a node that has left: {dead}")
    if found.failures == 0:
        warnings = f"no failures, {found.warnings} warning{'s' if found.warnings > 1 else ''}"
        output.say(warnings if found.warnings else "all good")
    output.result(found.as_json())
    if found.failures:
        raise typer.Exit(1)


def _checks_table(found: Diagnosis) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each node, a column for each check that some node answered."""
    names = dict.fromkeys(check.name for node in found.nodes for check in node.checks)
    rows = []
    for node in found.nodes:
        outcomes = {check.name: _shown(check) for check in node.checks}
        rows.append((node.name, *(outcomes.get(name, "?") for name in names)))
    return ("node", *names), rows


def _shown(check: Check) -> str:
    return {"ok": "ok", "warning": "warning", "failed": "FAILED"}[check.outcome]


def _parse_environment(pairs: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise UserError(f"--env {pair}: expected NAME=VALUE")
        parsed[name] = value
    return parsed
