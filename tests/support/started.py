"""Commands that are still at work, and what their runs have told so far."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import ROOT, CliResult

from cluster.events import Event, read_events
from cluster.settings import Settings
from cluster.store import Store
from train.checkpoint import list_checkpoints
from train.runs import Run

Process = subprocess.Popen[str]
WAIT_S = 240


def start_module(*args: str, env: dict[str, str]) -> Process:
    """Start ``python -m ARGS...``."""
    return subprocess.Popen(
        [sys.executable, "-m", *args],
        env={**os.environ, **env},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: Process) -> CliResult:
    """Wait for its end."""
    stdout, stderr = process.communicate(timeout=300)
    return CliResult(process.returncode, stdout, stderr)


def wait_for_run(settings: Settings, name: str, process: Process) -> Run:
    """The run, as soon as the command has made it."""
    run = Run(Store(settings.store).folder(f"runs/{name}"))
    _wait_for(lambda: run.folder.has("run.json") or None, f"run {name}", process)
    return run


def wait_for_checkpoint(run: Run, process: Process, *, after_step: int = 0) -> None:
    """Return once a step later than ``after_step`` was saved."""
    newest = f"step-{after_step:08d}.pt"
    what = f"checkpoint of run {run.name} after step {after_step}"
    _wait_for(
        lambda: any(name > newest for name in list_checkpoints(run.checkpoints)) or None,
        what,
        process,
    )


def wait_for_event(run: Run, kind: str, process: Process, *, after: int = 0) -> Event:
    """The first event of a kind, leaving out the first ``after`` events of the run."""

    def first() -> Event | None:
        events = list(read_events(run.events_file))[after:]
        return next((event for event in events if event["kind"] == kind), None)

    event: Event = _wait_for(first, f"{kind} of run {run.name}", process)
    return event


def _wait_for(find: Callable[[], Any], what: str, process: Process) -> Any:
    deadline = time.monotonic() + WAIT_S
    while (found := find()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {what}: {json.dumps(process.communicate())}")
        time.sleep(0.05)
    return found
