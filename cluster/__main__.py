"""``python -m cluster``: the cluster itself, its jobs, and what MLflow has recorded.

    up        start a cluster on this machine that stays
    down      stop it
    status    machines, free CPUs and GPUs, who holds the rest, Serve applications
    submit    run a command on the cluster, from a copy of a folder
    doctor    what is wrong with each node, and how to mend it
    manifest  files that bring this project to Kubernetes or other machines
    gc        remove what nobody needs any more
    runs      recorded training runs
    models    registered models

Ray and MLflow take seconds to import, so each command imports what it needs.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import JsonOption, Output, new_app, run_program
from cluster.errors import UserError
from cluster.settings import Settings

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
    from cluster.commands import show_status

    show_status(Output(as_json))


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
    from cluster import commands

    commands.submit(
        Output(as_json),
        command,
        working_dir=working_dir,
        environment=env or [],
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        name=name,
        wait=wait,
    )


@app.command()
def doctor(
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a node has to answer.")] = 60,
    as_json: JsonOption = False,
) -> None:
    """Check every node of the cluster; without one, this machine.

    From each node: versions and code, clock, token, store (written, read, and the same one
    everywhere), tracking server, dashboard, Ray Serve or its port, HAProxy, shared memory, disk.
    Every failure comes with what to do about it. Exit code 1 if something failed; a warning is no
    failure.
    """
    from cluster.commands import run_doctor

    run_doctor(Output(as_json), timeout_s=timeout)


@app.command(
    epilog="Example: `manifest digits@champion --out deploy --image registry.lan/raybridge:1`."
)
def manifest(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="MODEL[@ALIAS|:VERSION]",
            help="A registered model; a bare name is its champion.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    image: Annotated[
        str, typer.Option(help="What the image is to be called.")
    ] = "raybridge:latest",
    namespace: Annotated[str, typer.Option(help="Kubernetes namespace.")] = "default",
    workers: Annotated[
        int, typer.Option(min=1, help="Pods that train; pods that serve, at least.")
    ] = 2,
    max_workers: Annotated[
        int | None, typer.Option(help="Pods that serve, at most. [twice --workers]")
    ] = None,
    cpus_per_worker: Annotated[int, typer.Option(min=1, help="CPUs of a pod.")] = 2,
    gpus_per_worker: Annotated[
        int, typer.Option(min=0, help="GPUs of a pod that trains, each with a worker of its own.")
    ] = 0,
    memory_gib: Annotated[int, typer.Option(min=2, help="Memory of a pod, in GiB.")] = 8,
    store_claim: Annotated[
        str | None,
        typer.Option(help="PersistentVolumeClaim that holds the store, if that is a folder."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="For `ray up`: address of the head's machine.")
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(help="For `ray up`: address of a further machine; may be repeated."),
    ] = None,
    ssh_user: Annotated[str, typer.Option(help="For `ray up`: whom to log in as.")] = "ubuntu",
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over files that are there already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the files that bring this project and a model to Kubernetes, or to other machines.

    A Dockerfile; KubeRay's RayJob, which trains the model again with the configuration of its run
    (not of an imported model); KubeRay's RayService, which serves it; and cluster.yaml for `ray
    up`. RAYBRIDGE_STORE and MLFLOW_TRACKING_URI must name what pods reach. docs/clusters.md goes
    through them.
    """
    from cluster.deployment import Deployment
    from cluster.manifest import write_manifest

    deployment = Deployment(
        image=image,
        namespace=namespace,
        workers=workers,
        max_workers=2 * workers if max_workers is None else max_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        memory_gib=memory_gib,
        store_claim=store_claim,
        head_ip=head,
        worker_ips=tuple(machine or ()),
        ssh_user=ssh_user,
    )
    write_manifest(Output(as_json), reference, deployment, out, replace=replace)


@app.command(
    epilog="Examples: `gc` shows what may go; `gc --keep-runs 5 --older-than 7d --yes` removes it."
)
def gc(
    keep_runs: Annotated[
        int, typer.Option(min=1, help="The newest runs stay, whatever their age.")
    ] = 20,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Younger runs and bundles stay: 30d, 12h or 2w.")
    ] = "30d",
    datasets: Annotated[
        bool, typer.Option("--datasets", help="Also data-set versions that nothing refers to.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove; without it, only show what may go.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove from the store what nobody needs any more, or show what that is.

    A run goes if it is old, beyond the newest, not at work, and of no registered or served model.
    Of runs that ended well, all checkpoints but the newest go after a day. Bundles go that are old,
    not served, under no alias and of no run that stays; data sets, if asked for, that no run or
    bundle uses and that are not the newest of their name; and what killed commands left behind.
    What MLflow has recorded stays.
    """
    from cluster.housekeeping import collect_garbage

    collect_garbage(
        Output(as_json),
        keep_runs=keep_runs,
        older_than=older_than,
        datasets=datasets,
        yes=yes,
    )


@app.command()
def runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Show this one: its name or its MLflow id."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Show several side by side: data, code, parameters that differ, metrics.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="How many to list, newest first. [default: 20]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List recorded runs with their main metrics, show one with everything recorded, or compare."""
    from cluster.records import show_runs

    named = names or []
    if named and limit is not None:
        raise UserError("--limit is for the list of runs: leave it out, or name no run")
    if len(set(named)) < len(named):
        raise UserError(f"a run is named twice: {' '.join(named)}")
    show_runs(Output(as_json), named, side_by_side=compare, limit=limit or 20)


@app.command()
def models(
    model: Annotated[
        str | None, typer.Argument(help="Show all versions of this one, and what they come from.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List registered models with their newest version and aliases, or all versions of one.

    Of one model: run, data set and digest, commit, metrics, and how closely ONNX Runtime follows
    PyTorch. Commands take a version as MODEL (its champion), MODEL@ALIAS or MODEL:VERSION.
    """
    from cluster.records import show_models

    show_models(Output(as_json), model)


if __name__ == "__main__":
    run_program(app, "python -m cluster")
