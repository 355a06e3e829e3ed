"""Running a cluster: what ``doctor`` finds on its nodes, jobs too large for it, declared models."""

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from bundles import IMAGE, write_bundle
from harness import ROOT, RunCli, free_port
from hosts import Host, Lab, NoNamespacesError, laboratory

from cluster import ingress, manifest
from cluster.deployment import Deployment
from cluster.retraining import Origin
from cluster.runtime import open_session
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from serve.client import Client
from serve.document import ServedDocuments


def checks(node: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in node["checks"]}


def blemishes_of_this_machine() -> set[str]:
    """Checks that fail here whatever our code does, found out without it."""
    found = set()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", 8000))
        except OSError:
            found.add("serve")  # The user, or another one, runs something there.
    if shutil.disk_usage("/tmp").free < 0.06 * shutil.disk_usage("/tmp").total:
        found.add("disk")
    if Path("/dev/shm").exists() and shutil.disk_usage("/dev/shm").total < 2**30:
        found.add("memory")
    return found


def test_a_cluster_in_good_health(ray_session: Settings, run_cli: RunCli) -> None:
    blemishes = blemishes_of_this_machine()
    result = run_cli("cluster", "doctor", "--json", env=ray_session.environment())
    (node,) = result.json["nodes"]
    found = checks(node)
    bad = {name: check for name, check in found.items() if check["outcome"] != "ok"}
    assert set(bad) <= blemishes, bad
    assert result.json["failures"] == len(bad)
    assert result.exit_code == (1 if bad else 0)
    assert {"answers", "versions", "clock", "token", "store", "dashboard"} <= set(found)
    assert {"tracking", "serve", "haproxy", "memory", "disk"} <= set(found)
    assert not Store(ray_session.store).folder("probes").names()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A switch without hosts."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(laboratory())
        except NoNamespacesError as error:
            pytest.skip(str(error))
        yield made


def wait_for_nodes(host: Host, number: int, env: dict[str, str]) -> None:
    deadline = time.monotonic() + 90
    while True:
        status = host.run_module("cluster", "status", "--json", env=env)
        if status.exit_code == 0 and len(status.json["nodes"]) == number:
            return
        assert time.monotonic() < deadline, status


def test_a_node_with_another_folder_and_one_whose_cable_is_pulled(lab: Lab) -> None:
    head, worker = lab.add("head"), lab.add("worker", alone=True)
    env = {
        "RAYBRIDGE_STORE": str(lab.shared / "store"),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1")
    started = [
        head.start(*ray, "--head", f"--node-ip-address={head.address}", "--port=6379", env=env)
    ]
    try:
        wait_for_nodes(head, 1, env)
        started.append(worker.start(*ray, f"--address={head.address}:6379", env=env))
        wait_for_nodes(head, 2, env)
        find_what_is_wrong(head, worker, env)
    finally:
        for host in (head, worker):
            host.switch_off()
        for process in started:
            process.communicate()


def find_what_is_wrong(head: Host, worker: Host, env: dict[str, str]) -> None:
    result = head.run_module("cluster", "doctor", "--json", env=env)
    assert result.exit_code == 1, result
    first, second = result.json["nodes"]
    assert (first["host"], second["host"]) == ("head", "worker")
    assert {name: found["outcome"] for name, found in checks(first).items()} == {
        **dict.fromkeys(("answers", "versions", "clock", "token", "store", "dashboard"), "ok"),
        **dict.fromkeys(("serve", "haproxy", "memory", "disk"), "ok"),
        "tracking": "warning",  # SQLite, on a cluster of two machines.
    }
    store = checks(second)["store"]
    assert store["outcome"] == "failed"
    assert "is this machine's own" in store["detail"]
    assert "mount one shared folder" in store["fix"]
    assert f"  fix: {store['fix']}" in result.stderr
    assert checks(second)["versions"]["outcome"] == "ok"
    assert "--dashboard-host" in checks(second)["dashboard"]["fix"]

    worker.cut()
    silent = head.run_module("cluster", "doctor", "--timeout", "6", "--json", env=env)
    assert silent.exit_code == 1, silent
    _, second = silent.json["nodes"]
    assert "nothing within 6 s" in checks(second)["answers"]["detail"]
    assert "ray start" in checks(second)["answers"]["fix"]


def test_a_job_that_no_machine_is_large_enough_for(ray_session: Settings, run_cli: RunCli) -> None:
    result = run_cli("cluster", "submit", "--num-cpus", "64", "--json", "--", "true")
    assert result.exit_code == 2
    assert result.json["error"].startswith(
        "`true` asks for 64 CPUs on one machine for itself; the only one has 2 CPUs; ask for less"
    )


def test_a_job_whose_store_is_not_seen_from_here(
    ray_session: Settings, run_cli: RunCli, tmp_path: Path
) -> None:
    with connect(ray_session, may_start=False) as session:
        url = session.dashboard_url
    assert url is not None
    # As from the other end of an ssh tunnel: no cluster is known here.
    env = {"RAY_API_SERVER_ADDRESS": url, "RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path / "ray")}
    submit = ("cluster", "submit", "--working-dir", str(tmp_path), "--json", "--", "true")
    silent = run_cli(*submit, env={**env, **ray_session.environment()})
    assert (silent.exit_code, "note:" in silent.stderr) == (0, False), silent
    unset = dict.fromkeys(ray_session.environment(), "")
    told = run_cli(*submit, env={**env, **unset})
    assert told.exit_code == 0, told
    assert "note: RAYBRIDGE_STORE is not set, so the job keeps" in told.stderr
    assert "MLFLOW_TRACKING_URI" in told.stderr


@pytest.fixture
def declared(
    ray_session: Settings, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of Serve, and a declaration as ``cluster manifest`` writes it."""
    folder = Path(os.environ["RAY_TMPDIR"]) / "ha"
    ingress.install_wrapper(folder)
    monkeypatch.setattr(manifest, "HAPROXY_FOLDER", folder)
    monkeypatch.setattr(manifest, "SERVE_PORT", free_port())
    bundle = write_bundle(tmp_path / "1", name="declared", seed=1)
    version = Tracking(ray_session).register("declared", bundle, run_id=None)
    lineage = bundle.manifest.lineage
    deployment = Deployment(workers=1, max_workers=1, cpus_per_worker=1)
    texts = manifest.render(
        deployment, ray_session.environment(), version, "declared", lineage, Origin(), tmp_path
    )
    service = yaml.safe_load(texts["rayservice.yaml"])
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    config["http_options"]["host"] = "127.0.0.1"
    yield f"http://127.0.0.1:{manifest.SERVE_PORT}", config
    assert run_cli("serve", "down", "--json").exit_code == 0


def declare(settings: Settings, config: dict[str, Any]) -> None:
    """What KubeRay does: hand the declaration to the dashboard."""
    with connect(settings, may_start=False) as session:
        url = f"{session.dashboard_url}/api/serve/applications/"
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.put(url, json=config, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def test_a_declared_model(
    ray_session: Settings, declared: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    url, config = declared
    declare(ray_session, config)
    images = np.random.default_rng(0).integers(0, 256, (3, *IMAGE.shape), dtype=np.uint8)
    with Client(url, retry_for_s=120) as client:
        old = write_bundle(tmp_path / "same", name="declared", seed=1)
        expected = open_session(old).run(images)
        np.testing.assert_allclose(client.infer("declared", images), expected, atol=1e-5)

        # Another version of the same declaration: running replicas follow the document.
        new = write_bundle(tmp_path / "2", name="declared", seed=2)
        Tracking(ray_session).register("declared", new, run_id=None, aliases=["champion"])
        config["applications"][1]["args"]["reference"] = "declared@champion"
        declare(ray_session, config)
        expected = open_session(new).run(images)
        deadline = time.monotonic() + 90
        while not np.allclose(client.infer("declared", images), expected, atol=1e-5):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    document = ServedDocuments(Store(ray_session.store)).read("declared")
    assert document is not None
    assert [one.version for one in document.versions] == [2]
    assert [owner.address for owner in document.owners] == [os.environ["RAY_ADDRESS"]]
