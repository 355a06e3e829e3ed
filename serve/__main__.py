"""``python -m serve``: put a model behind HTTP, ask it, look at it, take it away."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli import JsonOption, Output, new_app, run_program
from cluster.errors import NotFoundError, UserError
from cluster.settings import Settings
from serve.client import DEFAULT_ADDRESS, RETRY_FOR_S, Client, Prediction
from serve.config import ServeConfig, resolve_config
from serve.load.command import load

if TYPE_CHECKING:
    from serve.status import ModelStatus

app = new_app(
    "Serve registered models over HTTP (Open Inference Protocol v2) on Ray Serve.\n\n"
    "A first round: `deploy digits`, `predict seven.png`, `status`, `down`."
)


@app.command(
    epilog="Examples: `deploy digits` serves the champion; `deploy digits@challenger`; "
    "`deploy digits:3 --max-replicas 4`; `deploy digits --set scaling.upscale_delay_s=1`."
)
def deploy(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="MODEL[@ALIAS|:VERSION]",
            help="A registered model; a bare name is its alias champion.",
        ),
    ],
    min_replicas: Annotated[
        int | None, typer.Option(help="Replicas kept at all times; 0 lets an idle model sleep. [1]")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="Replicas at most; they reserve no CPU. [2]")
    ] = None,
    target_ongoing_requests: Annotated[
        float | None, typer.Option(help="Requests per replica that autoscaling aims at. [16]")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Images of one forward pass at most. [32]")
    ] = None,
    batch_wait_ms: Annotated[
        float | None,
        typer.Option(help="How long an idle replica waits for a batch to fill. [0: not at all]"),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="onnxruntime or openvino. [onnxruntime]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one forward pass. [1]")] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(help="Largest request body; more is answered 413. [10 MiB]")
    ] = None,
    max_queued: Annotated[
        int | None,
        typer.Option(help="Requests in a replica at once; more are answered 503. [512]"),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; there is no authentication. [127.0.0.1]"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [8000]")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML or JSON file with the tables replica, scaling and http."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set any field of the configuration."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a registered version, or move a running model to it without losing a request.

    Without a running Ray cluster one is started on this machine; it goes on when the command ends.
    A model that runs already keeps its settings where you say nothing; a change of version alone
    is prepared on all replicas and then switched at once, a change of settings replaces the
    replicas one by one. A bundle that is damaged, or answers otherwise than when it was made, is
    refused, and what was served goes on.
    """
    from cluster.head import up
    from cluster.session import connect
    from serve import commands

    output = Output(as_json)
    settings = Settings.from_env()
    options: dict[str, dict[str, Any]] = {
        "replica": {
            "engine": engine,
            "threads": threads,
            "max_batch_size": max_batch_size,
            "batch_wait_ms": batch_wait_ms,
            "max_body_bytes": max_body_bytes,
            "max_queued": max_queued,
        },
        "scaling": {
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_ongoing_requests,
        },
        "http": {"host": host, "port": port},
    }

    def configure(base: ServeConfig) -> ServeConfig:
        return resolve_config(base, config, overrides or [], options)

    configure(ServeConfig())  # A mistake costs no cluster.
    version, bundle = commands.resolve(settings, reference)
    if up(settings).started:
        output.say("started a Ray cluster on this machine; `python -m cluster down` ends it")
    with connect(settings, may_start=False, label=f"deploy {reference}"):
        done = commands.deploy(settings, version, bundle, configure, output.say)
        urls = done.ingress.urls
    for note in done.notes:
        output.say(f"note: {note}")
    ingress = "HAProxy" if done.ingress.haproxy else "Serve's Python proxy"
    output.say(
        f"{done.version.reference} is served ({done.action}; generation "
        f"{done.document.generation}, {done.replicas} replica(s), {ingress})"
    )
    model_url = f"{urls[0]}/v2/models/{done.version.name}"
    output.say(f"  curl    {done.curl(urls[0])}")
    output.say(f"  python  {done.python(urls[0])}")
    for url in urls:
        output.say(f"  at      {url}/v2/models/{done.version.name}")
    output.say(f"  health  {urls[0]}/v2/health/ready")
    output.result(
        {
            "model": done.version.name,
            "version": done.version.version,
            "digest": done.bundle.digest,
            "generation": done.document.generation,
            "action": done.action,
            "replicas": done.replicas,
            "haproxy": done.ingress.haproxy,
            "url": urls[0],
            "urls": urls,
            "classify_url": f"{model_url}/classify",
            "infer_url": f"{model_url}/infer",
            "curl": done.curl(urls[0]),
            "python": done.python(urls[0]),
            "config": done.document.config.model_dump(mode="json"),
            "notes": list(done.notes),
        }
    )


@app.command(epilog="Example: `predict seven.png three.jpg --model digits --top-k 3`.")
def predict(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Image files.")],
    model: Annotated[
        str | None, typer.Option(help="The served model; may be left out if there is one only.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="One of the served versions; by default the server chooses.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to list for each image.")] = 3,
    address: Annotated[str, typer.Option(help="The server.")] = DEFAULT_ADDRESS,
    as_json: JsonOption = False,
) -> None:
    """Classify image files with a served model. Needs no Ray on this machine.

    Exit code 2 if the server refuses any of the files; the others are classified all the same.
    """
    output = Output(as_json)
    images = [(file, _read(file)) for file in files]
    rows: list[tuple[str, str, str, str]] = []
    results: list[dict[str, Any]] = []
    refused = 0
    with Client(address) as client:
        if not client.live():
            output.say(f"nothing answers at {address} yet; trying for {RETRY_FOR_S:.0f} s")
        name = model or client.only_model()
        for file, image in images:
            try:
                answer = client.classify(name, image, version=version, top_k=top_k)
            except NotFoundError:
                raise
            except UserError as error:
                refused += 1
                rows.append((str(file), "refused", "", str(error)))
                results.append({"file": str(file), "error": str(error)})
                continue
            rows.append((str(file), answer.label, answer.version, _likeliest(answer)))
            results.append({"file": str(file), **vars(answer)})
    output.table(f"{name} at {address}", ["file", "label", "version", "probabilities"], rows)
    output.result({"model": name, "address": address, "refused": refused, "predictions": results})
    if refused:
        raise typer.Exit(2)


app.command(
    epilog="Examples: `load --duration 30 --out load.html`; `load --rate 500 --as tensor`; "
    "`load --rate 100,200,400 --file photos/` finds the rate that is still kept up."
)(load)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show what is served: versions, shares, every replica with its work, and what is wrong.

    Replicas are told as running/wanted (least-most).
    """
    from cluster.session import connect
    from serve.status import ServingStatus, serving_status

    output = Output(as_json)
    settings = Settings.from_env()
    found = ServingStatus(None)
    urls: list[str] = []
    try:
        with connect(settings, may_start=False):
            found = serving_status(settings)
            urls = found.ingress.urls if found.ingress else []
    except NotFoundError as error:
        output.say(f"nothing is served: {error}")
    else:
        if found.ingress is None:
            output.say("nothing is served: Ray Serve does not run")
    if found.ingress is not None:
        ingress = "HAProxy" if found.ingress.haproxy else "Python proxy"
        output.say(f"{ingress} at {', '.join(urls)}")
        output.say(f"metrics for Prometheus at {', '.join(found.metrics_urls)}")
        _print_models(output, found.models)
    output.result(
        {
            "running": found.ingress is not None,
            "haproxy": bool(found.ingress and found.ingress.haproxy),
            "urls": urls,
            "metrics_urls": list(found.metrics_urls),
            "models": [one.as_json() for one in found.models],
        }
    )


def _print_models(output: Output, models: "Sequence[ModelStatus]") -> None:
    output.table(
        "served models",
        ["model", "status", "versions", "replicas", "in work", "generation"],
        [
            (
                one.name,
                one.application.status,
                ", ".join(
                    f"{version.version} ({version.share:.0%})"
                    for version in (one.document.versions if one.document else ())
                ),
                one.replica_counts,
                sum(replica.requests_in_work or 0 for replica in one.replicas),
                one.document.generation if one.document else "?",
            )
            for one in models
        ],
    )
    output.table(
        "replicas",
        ["replica", "model", "state", "node", "pid", "versions", "in work", "generation"],
        [
            (
                replica.process.name,
                one.name,
                replica.process.state,
                replica.process.node,
                _known(replica.process.pid),
                ", ".join(replica.versions),
                _known(replica.requests_in_work),
                _known(replica.generation),
            )
            for one in models
            for replica in one.replicas
        ],
    )
    for one in models:
        for problem in one.problems:
            output.say(f"{one.name}: {problem}")


def _known(value: int | None) -> object:
    return "-" if value is None else value


@app.command()
def down(
    model: Annotated[
        str | None, typer.Argument(help="The model to take away; by default all of them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """End serving of one model or of all; the last one takes Ray Serve with it.

    Requests in work are answered first. The Ray cluster stays; `python -m cluster down` ends one
    that `deploy` started. Registered versions are not touched. Where the cluster that served MODEL
    has ended, what it left in the store is removed.
    """
    from cluster.session import connect
    from serve import commands

    output = Output(as_json)
    settings = Settings.from_env()
    try:
        with connect(settings, may_start=False, label="serve down"):
            ended = commands.down(settings, model, output.say)
    except NotFoundError:
        if model is not None and not commands.forget(settings, model, output.say):
            raise
        ended = [] if model is None else [model]
    output.say(f"no longer served: {', '.join(ended)}" if ended else "nothing was served")
    output.result({"ended": ended})


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None


def _likeliest(answer: Prediction) -> str:
    return "  ".join(f"{name} {value:.1%}" for name, value in answer.probabilities.items())


if __name__ == "__main__":
    run_program(app, "python -m serve")
