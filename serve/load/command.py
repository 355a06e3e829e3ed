"""``python -m serve load``: what it asks for, runs and prints."""

import math
import resource
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli import JsonOption, Output
from cluster.errors import ResourceError, UserError
from serve.client import DEFAULT_ADDRESS, RETRY_FOR_S, Client
from serve.load.generator import run_load
from serve.load.payloads import Form, build_requests, read_images, split_url
from serve.load.tally import LoadResult, Second, Step

_CLOSED_CONNECTIONS = 32
_OPEN_CONNECTIONS = 512
_OTHER_FILES = 64
_SLOW_ANSWER_S = 1.0


class Arrivals(StrEnum):
    """When requests fall due at a rate."""

    POISSON = "poisson"
    CONSTANT = "constant"


def load(
    model: Annotated[
        str | None, typer.Option(help="The served model; may be left out if there is one only.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="One of the served versions; by default the server chooses.")
    ] = None,
    url: Annotated[str, typer.Option("--url", "--address", help="The server.")] = DEFAULT_ADDRESS,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="An image, or a folder of them; repeatable. Without one, random pixels are sent."
        ),
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="image: encoded, to /classify. tensor: JSON header and pixels, raw: pixels alone, "
            "json: pixels as JSON numbers, to /infer.",
        ),
    ] = Form.IMAGE,
    batch: Annotated[int, typer.Option(min=1, help="Images of a request; not with image.")] = 1,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=60_000,
            help="Connections; each asks again once it is answered. With --rate: at most. "
            "[32; 512 with --rate]",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R[,R...]",
            help="Requests/s, whether they are answered or not; several are tried in turn.",
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals | None,
        typer.Option(help="With --rate: random as of independent callers, or even. [poisson]"),
    ] = None,
    duration: Annotated[
        float, typer.Option(min=0.1, help="Seconds that are measured; for each rate.")
    ] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before, not measured.")] = 1.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which an answer is given up.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of random pixels and arrivals.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write a report: FILE.html, or only its plots: FILE.png.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load a served model and tell rates, latencies, errors, and who answered.

    Without --rate the loop is closed: --concurrency callers, each of which waits for its answer
    before it asks again. They never ask more than the server can do, so what they did not ask
    while they waited is added to the latencies (coordinated omission, corrected as HdrHistogram
    and wrk do). With --rate it is open: requests fall due whatever the server does, and a latency
    counts from when its request fell due. Both kinds are also told as measured from sending.

    Latencies are of answers with status 2xx, and of requests that timed out for as long as was
    waited. The exit code is 0 however many errors there were, unless nothing was answered at all.
    """
    output = Output(as_json)
    address, endpoint = split_url(url)
    steps = _steps(rate, concurrency, arrivals, duration, warmup, timeout, seed)
    if out is not None:
        from serve.load.report import check_report_path, write_load_report

        check_report_path(out)
    _allow_connections(steps[0].concurrency)
    files = read_images(file or [])
    with Client(url) as client:
        if not client.live():
            output.say(f"nothing answers at {url} yet; trying for {RETRY_FOR_S:.0f} s")
        name = model or client.only_model()
        asked_s = time.monotonic()
        metadata = client.metadata(name, version)
        metadata_s = time.monotonic() - asked_s
    if metadata_s > _SLOW_ANSWER_S:
        output.say(f"the first answer of {name} took {metadata_s:.1f} s")
    requests = build_requests(address, name, version, form, files, metadata, batch=batch, seed=seed)
    how = f"{steps[0].concurrency} connections"
    if rate is not None:
        how = f"{', '.join(f'{step.rate:g}' for step in steps)} requests/s, at most {how}"
    what = f"{len(requests)} different {form} requests of {batch} image(s)"
    output.say(f"{name} at {url}: {what}; {how}; {warmup:g} + {duration:g} s each")
    result = run_load(
        endpoint, requests, steps, lambda second: output.say(_describe_second(second))
    )
    about = {
        "model": name,
        "version": version,
        "url": url,
        "as": form.value,
        "batch": batch,
        "files": len(files),
        "concurrency": steps[0].concurrency,
        "rate": [step.rate for step in steps] if rate is not None else None,
        "arrivals": (arrivals or Arrivals.POISSON).value if rate is not None else None,
        "duration_s": duration,
        "warmup_s": warmup,
        "timeout_s": timeout,
        "seed": seed,
    }
    _print(output, result)
    if out is not None:
        write_load_report(out, result, about)
        output.say(f"report: {out}")
    output.result(
        {
            **about,
            "metadata_s": round(metadata_s, 3),
            **result.as_json(),
            "report": None if out is None else str(out),
        }
    )
    if result.total.ok == 0:
        raise typer.Exit(1)


def _steps(
    rate: str | None,
    concurrency: int | None,
    arrivals: Arrivals | None,
    duration: float,
    warmup: float,
    timeout: float,
    seed: int,
) -> list[Step]:
    if rate is None and arrivals is not None:
        raise UserError("--arrivals: without --rate a caller asks when it was answered")
    rates: Sequence[float | None] = [None] if rate is None else _parse_rates(rate)
    for name, seconds in (("duration", duration), ("warmup", warmup), ("timeout", timeout)):
        if not math.isfinite(seconds):
            raise UserError(f"--{name} {seconds}: expected a number of seconds")
    connections = _CLOSED_CONNECTIONS if rate is None else _OPEN_CONNECTIONS
    poisson = arrivals is not Arrivals.CONSTANT
    return [
        Step(one, concurrency or connections, duration, warmup, timeout, poisson, seed)
        for one in rates
    ]


def _parse_rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < one <= 1_000_000 for one in rates):
        raise UserError(f"--rate {text!r}: expected requests/s above 0, such as 200 or 100,200,400")
    return rates


def _allow_connections(wanted: int) -> None:
    """A connection is an open file, of which shells commonly allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ResourceError(f"--concurrency {wanted}: this shell allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _describe_second(second: Second) -> str:
    return (
        f"{second.time_s:6.0f} s  {second.ok_per_s:9,.1f} answers/s  p50 {_ms(second.p50_ms)}  "
        f"p99 {_ms(second.p99_ms)}  {second.errors_per_s:,.1f} errors/s  "
        f"{second.replicas} replica(s)"
    )


def _print(output: Output, result: LoadResult) -> None:
    figures = result.as_json()
    told = f"{figures['requests']:,} requests, {figures['ok']:,} ok"
    if len(result.steps) == 1:
        titles = {"corrected": "latency_ms", "from sending": "latency_uncorrected_ms"}
        output.table(
            "latency in ms",
            ["", *figures["latency_ms"]],
            [(title, *map(_ms, figures[key].values())) for title, key in titles.items()],
        )
        output.say(f"{told}, {figures['throughput']:,.1f} answers/s")
    else:
        steps = figures["steps"]
        output.table(
            "rates, and their latencies in ms",
            ["rate", "answers/s", "errors", *steps[0]["latency_ms"]],
            [_step_row(step) for step in steps],
        )
        knee = result.knee_rate
        output.say(f"last rate kept up: {knee:g}/s" if knee else "no rate was kept up")
        output.say(told)
    errors = figures["errors"]
    if errors["total"]:
        kinds = {f"status {status}": count for status, count in errors["by_status"].items()}
        listed = (f"{count:,} {kind}" for kind, count in {**kinds, **errors["by_kind"]}.items())
        output.say(f"{errors['total']:,} errors: {', '.join(listed)}")
    output.say(f"versions: {_shares(figures['versions'])}")
    for name, one in figures["replicas"].items():
        output.say(
            f"replica {name or '(unnamed)'}: {one['requests']:,} answers, "
            f"the first after {one['first_s']:.2f} s"
        )
    for problem in figures["generator"]["problems"]:
        output.say(f"note: {problem}")


def _step_row(step: dict[str, Any]) -> Sequence[str]:
    return (
        f"{step['rate']:g}",
        f"{step['throughput']:,.1f}",
        f"{step['errors']['total']:,}",
        *map(_ms, step["latency_ms"].values()),
    )


def _shares(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or '?'} ({count:,})" for name, count in counts.items()) or "none"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
