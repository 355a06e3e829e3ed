"""A served model as whoever runs it meets it: new versions and settings, losses, the end."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
from harness import RunCli, free_port
from shades import IMAGE, PIXELS, Served, expected_logits, serving
from typer.testing import CliRunner

from cluster.bundle import MODEL_FILE
from cluster.errors import UserError
from cluster.session import LOOPBACK_VARIABLE
from cluster.settings import Settings
from cluster.store import Store
from serve.__main__ import app
from serve.client import Client

MODEL = "shades-rolled"


@pytest.fixture(scope="module")
def served(ray_session: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(MODEL, ray_session, tmp_path_factory.mktemp("bundles")) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, retry_for_s=0) as client:
        yield client


@dataclass
class Load:
    """Steady requests, none of them repeated, and what became of them."""

    versions: list[str]
    failures: list[str]


def _ask_until(stop: threading.Event, url: str, load: Load) -> None:
    with Client(url, retry_for_s=0) as client:
        while not stop.is_set():
            try:
                load.versions.append(client.classify(MODEL, IMAGE).version)
            except Exception as error:  # noqa: BLE001 - any failure is what is counted
                load.failures.append(repr(error))


@pytest.fixture
def load(served: Served) -> Iterator[Load]:
    load = Load([], [])
    stop = threading.Event()
    threads = [threading.Thread(target=_ask_until, args=(stop, served.url, load)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    yield load
    stop.set()
    for thread in threads:
        thread.join()


def test_a_rollout_loses_nothing(
    served: Served, ray_session: Settings, run_cli: RunCli, load: Load
) -> None:
    done = run_cli("serve", "deploy", f"{MODEL}:2", "--json", env=ray_session.environment())
    assert done.exit_code == 0, done.stderr
    assert done.json["action"] == "rolled out"
    assert done.json["generation"] > served.report["generation"]
    time.sleep(0.5)
    assert load.failures == []
    assert load.versions[0] == "1"
    assert load.versions[-1] == "2"
    # One replica: from one moment on, all answers are the new version's, but for those in work.
    first_new = load.versions.index("2")
    assert "1" not in load.versions[first_new + 8 :]


def test_new_settings_replace_the_replicas_and_lose_nothing(
    served: Served, ray_session: Settings, run_cli: RunCli, load: Load
) -> None:
    options = ["--max-batch-size", "8", "--json"]
    done = run_cli("serve", "deploy", f"{MODEL}:2", *options, env=ray_session.environment())
    assert done.exit_code == 0, done.stderr
    assert done.json["action"] == "replaced"
    assert done.json["config"]["replica"]["max_batch_size"] == 8
    assert load.failures == []
    assert load.versions[-1] == "2"


def test_a_tampered_bundle_is_refused_and_the_old_one_goes_on(
    served: Served, ray_session: Settings, run_cli: RunCli, client: Client
) -> None:
    digest = served.bundles[1].digest
    shutil.rmtree(Store(ray_session.store).bundles / digest)
    (kept,) = ray_session.store.glob(f"mlartifacts/**/bundle-{digest[:16]}/{MODEL_FILE}")
    before = client.classify(MODEL, IMAGE).version
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = run_cli("serve", "deploy", f"{MODEL}:1", env=ray_session.environment())
    finally:
        kept.write_bytes(whole)
    assert done.exit_code == 2
    assert "was changed since the bundle was made" in done.stderr
    assert client.classify(MODEL, IMAGE).version == before


def test_a_killed_replica_costs_the_client_time_only(served: Served) -> None:
    (replica,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if any(f"ServeReplica:model-{MODEL}" in part for part in process.info["cmdline"] or [])
    )
    replica.kill()
    with Client(served.url) as patient:
        for _ in range(20):
            assert patient.classify(MODEL, IMAGE).label in ("dark", "light")
            time.sleep(0.05)


def test_status(served: Served, ray_session: Settings, run_cli: RunCli, client: Client) -> None:
    env = ray_session.environment()
    done = run_cli("serve", "status", "--json", env=env)
    (model,) = done.json["models"]
    assert done.json["haproxy"]
    assert model["status"] == "RUNNING"
    (version,) = model["versions"]
    assert str(version["version"]) == client.classify(MODEL, IMAGE).version
    assert model["replica_generations"] == [model["generation"]]
    assert model["problems"] == []


def test_mistakes_on_the_command_line(
    served: Served, ray_session: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ray_session.environment().items():
        monkeypatch.setenv(name, value)
    for arguments, message in (
        (["deploy", f"{MODEL}:77"], "has no version 77"),
        (["deploy", MODEL, "--threads", "0"], "replica.threads=0"),
        (["deploy", MODEL, "--port", "1"], "runs already"),
        (["down", "nothing"], "is not served"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, UserError), (arguments, done)
        assert message in str(done.exception)


def test_down_takes_one_model_and_then_serve(
    served: Served, ray_session: Settings, run_cli: RunCli
) -> None:
    env = ray_session.environment()
    done = run_cli("serve", "down", MODEL, "--json", env=env)
    assert done.json == {"ended": [MODEL]}
    assert run_cli("serve", "status", "--json", env=env).json["running"] is False
    with Client(served.url, retry_for_s=0) as client:
        assert not client.live()


def test_a_serve_without_our_switches_is_used_as_it_is(
    served: Served, ray_session: Settings, run_cli: RunCli
) -> None:
    port = free_port()
    start = (
        "import ray, ray.serve as ray_serve; ray.init(logging_level='ERROR'); "
        f"ray_serve.start(http_options=ray_serve.HTTPOptions(host='127.0.0.1', port={port}))"
    )
    # A driver that is not ours must be told that this cluster stays on loopback.
    environment = {**os.environ, LOOPBACK_VARIABLE: "0"}
    subprocess.run(
        [sys.executable, "-c", start],
        check=True,
        capture_output=True,
        timeout=180,
        env=environment,
    )
    done = run_cli("serve", "deploy", f"{MODEL}:1", "--json", env=ray_session.environment())
    assert done.exit_code == 0, done.stderr
    assert done.json["haproxy"] is False
    (note,) = done.json["notes"]
    assert "without HAProxy" in note
    with Client(done.json["url"]) as client:
        assert client.ready()
        assert client.classify(MODEL, IMAGE).version == "1"
        logits = client.infer(MODEL, PIXELS[None, None])
    assert logits[0].tolist() == pytest.approx(expected_logits(served.bundles[1]), abs=1e-5)
