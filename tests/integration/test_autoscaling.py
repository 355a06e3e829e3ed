"""Replicas come with the load and go with it, as ``serve status`` and the answers tell."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from bundles import write_bundle
from harness import RunCli, free_port

from cluster.settings import Settings
from cluster.tracking import Tracking

MODEL = "shades-scaled"
SCALING = (
    *("--target-ongoing-requests", "2", "--max-replicas", "2"),
    *("--set", "scaling.upscale_delay_s=0.5", "--set", "scaling.downscale_delay_s=2"),
)
Status = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def url(
    ray_session: Settings, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The model, served by one replica."""
    bundle = write_bundle(tmp_path_factory.mktemp("bundles") / "1", name=MODEL)
    Tracking(ray_session).register(MODEL, bundle, run_id=None)
    port, env = free_port(), ray_session.environment()
    done = run_cli("serve", "deploy", MODEL, "--port", str(port), *SCALING, "--json", env=env)
    assert done.exit_code == 0, done.stderr
    yield f"http://127.0.0.1:{port}"
    run_cli("serve", "down", env=env)


@pytest.fixture
def status(url: str, ray_session: Settings, run_cli: RunCli) -> Status:
    def ask() -> dict[str, Any]:
        done = run_cli("serve", "status", "--json", env=ray_session.environment())
        assert done.exit_code == 0, done.stderr
        (model,) = done.json["models"]
        assert model["problems"] == []
        replicas: dict[str, Any] = model["replicas"]
        return replicas

    return ask


def _wait(status: Status, running: int) -> dict[str, Any]:
    """Ask until so many replicas run and no other one comes or goes."""
    deadline = time.monotonic() + 60
    while True:
        replicas = status()
        states = [replica["state"] for replica in replicas["each"]]
        if states == ["RUNNING"] * running and replicas["target"] == running:
            return replicas
        assert time.monotonic() < deadline, replicas
        time.sleep(0.5)


def test_a_replica_comes_with_the_load_and_goes_after_it(url: str, status: Status) -> None:
    before = _wait(status, 1)
    assert (before["min"], before["max"]) == (1, 2)
    command = ["load", "--url", url, "--model", MODEL, "--as", "raw", "--concurrency", "16"]
    with subprocess.Popen(
        [sys.executable, "-m", "serve", *command, "--duration", "20", "--warmup", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as load:
        during = _wait(status, 2)
        figures = json.loads(load.communicate(timeout=120)[0])
    assert load.returncode == 0
    assert figures["errors"]["total"] == 0, figures["errors"]
    names = {replica["name"] for replica in during["each"]}
    assert all(replica["versions"] == ["1"] for replica in during["each"])
    assert all(replica["requests_in_work"] >= 0 for replica in during["each"])
    assert set(figures["replicas"]) == names
    (new,) = names - {replica["name"] for replica in before["each"]}
    assert figures["replicas"][new]["requests"] > 0
    assert figures["replicas"][new]["first_s"] < 10
    after = _wait(status, 1)
    assert {replica["name"] for replica in after["each"]} < names


def test_answers_come_past_serves_own_handling(url: str) -> None:
    metadata = f"{url}/v2/models/{MODEL}"
    # Serve gives every request an id, and sends it back.
    assert "x-request-id" not in urllib3.request("GET", metadata).headers
    answer = urllib3.request("GET", metadata, headers={"x-request-id": "r-7"})
    assert answer.headers["x-request-id"] == "r-7"
    assert answer.headers["x-raybridge-replica"]


def test_a_model_that_sleeps_wakes_up_when_it_is_asked(
    url: str, status: Status, ray_session: Settings, run_cli: RunCli
) -> None:
    env = ray_session.environment()
    done = run_cli("serve", "deploy", MODEL, "--min-replicas", "0", "--json", env=env)
    assert done.exit_code == 0, done.stderr
    _wait(status, 0)
    options = ["--duration", "0.5", "--warmup", "0", "--json"]
    done = run_cli("serve", "load", "--url", url, "--model", MODEL, *options)
    assert done.exit_code == 0, done.stderr
    # Who asks a sleeping model waits for its start.
    assert 0.2 < done.json["metadata_s"] < 60
    assert done.json["errors"]["total"] == 0
    assert len(done.json["replicas"]) == 1
