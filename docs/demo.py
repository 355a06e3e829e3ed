"""The whole way in a few minutes: real scans of digits become a model that answers HTTP.

    make demo

Runs the commands a user would type, each in a process of its own, on a cluster of its own (or the
one that is running), with a store of its own in ./demo. Ends with a table and one line of JSON.
Whatever it started is stopped, also when it fails or is interrupted.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.bundle import Bundle
from cluster.dataset import Dataset, ImageSplit
from cluster.images import encode_png
from cluster.runtime import open_session, softmax
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE
from cluster.store import Store
from serve.client import Client

DEFAULT_STORE = Path(__file__).resolve().parent.parent / "demo"
STORE = Path(os.environ.get("RAYBRIDGE_DEMO_STORE", DEFAULT_STORE))
MODEL = "raybridge-demo"  # a name that nobody else serves
IMAGES_PER_CLASS = 6
NEEDED_ACCURACY = 0.98
console = Console(highlight=False, soft_wrap=True)


class StepFailedError(Exception):
    """A command ended with another exit code than 0."""


@dataclass
class Demo:
    """What has been done so far."""

    steps: list[tuple[str, float, str]] = field(default_factory=list)
    up: bool = False
    deployed: bool = False

    def run(self, what: str, *arguments: str) -> Any:
        """Show a command, run it, and return its result."""
        console.print(f"\n[bold]$ python -m {' '.join(arguments)}[/bold]")
        began = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", *arguments, "--json"], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                stdout, _ = process.communicate()
            except KeyboardInterrupt:
                process.terminate()
                raise
        if process.returncode != 0:
            raise StepFailedError(f"`{' '.join(arguments)}` ended with {process.returncode}")
        self.note(what, began, "")
        return json.loads(stdout.strip().splitlines()[-1])

    def note(self, what: str, began: float, outcome: str) -> None:
        """Add a row to the table."""
        self.steps.append((what, time.monotonic() - began, outcome))

    def outcome(self, text: str) -> None:
        """Say what came of the last step."""
        what, seconds, _ = self.steps[-1]
        self.steps[-1] = (what, seconds, text)


def main() -> int:
    """Go the whole way; returns the exit code."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    began = time.monotonic()
    os.environ[STORE_VARIABLE] = str(STORE)
    os.environ.pop(TRACKING_VARIABLE, None)
    demo = Demo()
    try:
        summary = go(demo)
    except StepFailedError as error:
        console.print(f"\n[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 130
    finally:
        tear_down(demo)
    summary["seconds"] = round(time.monotonic() - began, 1)
    show(demo, summary)
    good = (
        summary["accuracy"] >= NEEDED_ACCURACY and summary["http_equal"] == summary["http_requests"]
    )
    return 0 if good else 1


def go(demo: Demo) -> dict[str, Any]:
    """Ingest, fit, evaluate, export, deploy, ask."""
    ports = ("--port", str(free_port(6379)), "--dashboard-port", str(free_port(8265)))
    demo.up = True  # `cluster down` does no harm where nothing of this store is up.
    cluster = demo.run("cluster up", "cluster", "up", *ports)
    demo.up = cluster["started"]
    demo.outcome(cluster["address"])

    data = demo.run("ingest", "train", "ingest", "digits", "--name", "digits")
    demo.outcome(f"{sum(data['splits'].values())} images, {len(data['classes'])} classes")

    fitted = demo.run("fit", "train", "fit", "digits", "--data", "digits", "--workers", "2")
    demo.outcome(f"{fitted['workers']} workers, {fitted['images_per_s']:,.0f} images/s")

    evaluated = demo.run("evaluate", "train", "evaluate", fitted["run"])
    demo.outcome(f"accuracy {evaluated['accuracy']:.4f} on {evaluated['images']} test images")

    exported = demo.run("export", "train", "export", fitted["run"], "--model", MODEL, "--register")
    demo.outcome(
        f"{exported['model']}:{exported['version']}, digest {exported['bundle_digest'][:12]}"
    )

    reference = f"{exported['model']}:{exported['version']}"
    # On somebody else's cluster Serve may run already; then its own port is the one.
    port = ("--port", str(free_port(8000))) if demo.up else ()
    demo.deployed = True
    served = demo.run("deploy", "serve", "deploy", reference, *port)
    demo.outcome(served["url"])

    asked = ask(demo, served["url"], exported["model"], Path(exported["bundle"]))
    demo.run("status", "serve", "status")
    return {
        "accuracy": evaluated["accuracy"],
        **asked,
        "parity_max_abs_diff": exported["parity_max_abs_diff"],
        "report": fitted["report"],
    }


def ask(demo: Demo, url: str, model: str, bundle_path: Path) -> dict[str, int]:
    """Send real test images over HTTP, as PNG and as tensors, and check every answer."""
    test = Dataset.find(Store(STORE), "digits").split("test")
    rows = rows_of_each_class(test)
    bundle = Bundle.open(bundle_path)
    session = open_session(bundle)
    console.print(f"\n[bold]# {len(rows)} test images to {url}, as PNG and as tensors[/bold]")
    began = time.monotonic()
    requests = equal = correct = 0
    with Client(url) as client:
        for row in rows:
            images, truth = test.take(slice(row, row + 1)), int(test.labels[row])
            here = session.run(images)
            answer = client.classify(model, encode_png(images[0]))
            chances = [answer.probabilities[name] for name in bundle.manifest.class_names]
            equal += answer.index == int(here.argmax()) and bool(
                np.allclose(chances, softmax(here)[0], rtol=0, atol=1e-6)
            )
            correct += answer.label == bundle.manifest.class_names[truth]
            logits = client.infer(model, images)
            equal += bool(np.array_equal(logits, here))
            correct += int(logits.argmax()) == truth
            requests += 2
            if requests <= 6:
                console.print(
                    f"a {bundle.manifest.class_names[truth]} was called {answer.label} "
                    f"with {answer.probability:.1%}, request {answer.request_id}"
                )
    console.print(f"... {requests} requests, {equal} as in this process, {correct} right")
    demo.note("ask over HTTP", began, f"{equal}/{requests} equal, {correct}/{requests} right")
    return {"http_requests": requests, "http_equal": equal, "http_correct": correct}


def rows_of_each_class(split: ImageSplit) -> list[int]:
    """The first images of every class."""
    rows = [np.flatnonzero(split.labels == label)[:IMAGES_PER_CLASS] for label in range(10)]
    return [int(row) for row in np.concatenate(rows)]


def tear_down(demo: Demo) -> None:
    """Stop what this demo started, and nothing else."""
    # A second Ctrl-C must not leave a cluster behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands = []
    if demo.deployed and not demo.up:
        commands.append(("serve", "down", MODEL))
    if demo.up:
        commands.append(("cluster", "down"))
    for command in commands:
        console.print(f"\n[bold]$ python -m {' '.join(command)}[/bold]")
        subprocess.run([sys.executable, "-m", *command], check=False)


def show(demo: Demo, summary: dict[str, Any]) -> None:
    """The table and the line of JSON."""
    table = Table(title="What was done", title_justify="left", header_style="bold")
    for column in ("step", "seconds", "outcome"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for what, seconds, outcome in demo.steps:
        table.add_row(what, f"{seconds:.1f}", outcome)
    console.print()
    console.print(table)
    console.print(f"report: {summary.pop('report')}\n")
    print(json.dumps(summary))  # noqa: T201


def free_port(wanted: int) -> int:
    """``wanted`` if nobody listens there, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StepFailedError("no free port on this machine")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
