"""The demo, as `make demo` runs it: it succeeds, and leaves nothing behind when it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import ROOT


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home and Ray files of its own, so that the demo starts a cluster of its own."""
    # Short: Ray's sockets lie below it.
    short = Path("/tmp") / f"rbd{os.getpid()}"
    shutil.rmtree(short, ignore_errors=True)
    short.mkdir()
    (tmp_path / "home").mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    yield {
        **clean,
        "HOME": str(tmp_path / "home"),
        "RAY_TMPDIR": str(short),
        "RAYBRIDGE_DEMO_STORE": str(tmp_path / "store"),
    }
    shutil.rmtree(short, ignore_errors=True)


def start(environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "docs/demo.py"],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def processes_of(environment: dict[str, str]) -> list[str]:
    """Command lines of processes that use this demo's store."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAYBRIDGE_DEMO_STORE") == environment["RAYBRIDGE_DEMO_STORE"]:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_the_demo_goes_the_whole_way(environment: dict[str, str]) -> None:
    process = start(environment)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    summary = json.loads(output.strip().splitlines()[-1])
    assert summary["accuracy"] >= 0.98
    assert summary["http_requests"] >= 50
    assert summary["http_equal"] == summary["http_requests"]
    assert summary["http_correct"] >= 0.95 * summary["http_requests"]
    assert summary["parity_max_abs_diff"] < 1e-4
    for command in ("train ingest", "train fit", "train evaluate", "train export", "serve deploy"):
        assert f"$ python -m {command}" in output
    assert processes_of(environment) == []


def test_an_interrupted_demo_leaves_nothing_behind(environment: dict[str, str]) -> None:
    with start(environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        # What a terminal does on Ctrl-C: every process of the foreground gets the signal.
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=90) == 130, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    deadline = time.monotonic() + 20
    while processes_of(environment) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes_of(environment) == []
