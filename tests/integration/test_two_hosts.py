"""A cluster of two machines, and a laptop that is not part of it: each has a network of its own.

The machines share a folder, which training uses; serving has nothing in common but an object store
and an MLflow server, both on the laptop. Tests share one cluster, from whose second machine the
cable is pulled in the middle of an epoch, put back, and pulled again under load.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from harness import ROOT, CliResult
from hosts import Host, Lab
from servers import AWS_ENVIRONMENT, mlflow_server, s3_server

from cluster.events import Event, read_events
from cluster.settings import Settings
from cluster.tracking import Tracking

# Slow enough for a cut to fall into the middle of an epoch.
FIT = (
    *("train", "fit", "small-resnet", "--data", "digits", "--workers", "2"),
    *("--set", "epochs=3", "--set", "batch_size=16", "--set", "model.width=32"),
    *("--set", "checkpoint.every_s=0.2", "--set", "resources.cpus_per_worker=1"),
)
SPREAD = ("--set", "resources.placement=spread")
FAR = ("--workers", "2", *SPREAD, "--set", "epochs=1", "--name", "far")
# Ray gives up a silent machine after a minute; with these, after some ten seconds.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
TOKEN = "0123456789abcdef" * 4
MODEL = "digits"
Program = subprocess.Popen[str]


@dataclass(frozen=True)
class TwoHosts:
    """The machines, and what a user does on them."""

    head: Host
    worker: Host
    laptop: Host

    @property
    def store(self) -> Path:
        """In the folder that head and worker see."""
        return self.head.lab.shared / "store"

    def start_head(self) -> None:
        """``ray start --head``, for jobs from elsewhere too."""
        self._ray_start(self.head, "--head", "--port=6379", "--dashboard-host=0.0.0.0")

    def start_worker(self) -> None:
        """``ray start`` on the other machine."""
        self._ray_start(self.worker, f"--address={self.head.address}:6379")

    def bring_back_worker(self) -> None:
        """Put the cable back. The old Ray learns that it was given up, and leaves."""
        self.worker.restore()
        _wait_for(lambda: "raylet" not in self.worker.processes(), "the old Ray to leave")
        self.start_worker()

    def run(self, *args: str, env: dict[str, str] | None = None) -> CliResult:
        """Run ``python -m ARGS...`` on the head."""
        return self.head.run_module(*args, env={**self._environment(), **(env or {})})

    @contextlib.contextmanager
    def running(self, *args: str, env: dict[str, str] | None = None) -> Iterator[Program]:
        """Run ``python -m ARGS...`` on the head while the block lasts."""
        variables = {**self._environment(), **(env or {})}
        with _ended(self.head.start(sys.executable, "-m", *args, env=variables)) as process:
            yield process

    def job(self, *args: str, env: dict[str, str]) -> None:
        """Run ``python -m ARGS...`` on the cluster, by a command on the laptop."""
        done = self.laptop.run_module(
            *("cluster", "submit", "--working-dir", str(self.laptop.lab.shared)),
            *(word for name, value in env.items() for word in ("--env", f"{name}={value}")),
            *("--", "python", "-m", *args),
            env={"RAY_ADDRESS": f"http://{self.head.address}:8265"},
        )
        assert done.exit_code == 0, done.stdout + done.stderr

    def events(self, run: str, kind: str) -> list[Event]:
        """What a run has told so far."""
        told = read_events(self.store / "runs" / run / "events.jsonl")
        return [event for event in told if event["kind"] == kind]

    def result(self, run: str) -> dict[str, Any]:
        """What a run says at its end."""
        found: dict[str, Any] = json.loads((self.store / "runs" / run / "result.json").read_text())
        return found

    def _environment(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAYBRIDGE_STORE": str(self.store), **AWS_ENVIRONMENT}

    def _ray_start(self, host: Host, *options: str) -> None:
        done = host.run(
            *("ray", "start", f"--node-ip-address={host.address}", "--num-cpus=2", *options),
            "--disable-usage-stats",
            env={**self._environment(), **IMPATIENT},
        )
        assert done.exit_code == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> TwoHosts:
    """The machines, with a cluster on two of them that asks for its token."""
    made = TwoHosts(lab.add("head"), lab.add("worker"), lab.add("laptop", alone=True))
    for host in (made.head, made.worker, made.laptop):
        save = f"umask 077; mkdir ~/.ray; echo {TOKEN} > ~/.ray/auth_token"
        assert host.run("bash", "-ec", save).exit_code == 0
    made.start_head()
    made.start_worker()
    ingested = made.run("train", "ingest", "digits", "--name", "digits")
    assert ingested.exit_code == 0, ingested.stderr
    return made


@pytest.fixture(scope="module")
def on_one_host(hosts: TwoHosts) -> str:
    """Digest of the weights that two workers of one machine reach; a job sent from the laptop."""
    store = {
        "RAYBRIDGE_STORE": str(hosts.store),
        "MLFLOW_TRACKING_URI": f"sqlite:///{hosts.store}/mlflow.db",
    }
    hosts.job(*FIT, "--name", "packed", env=store)
    assert len(_places(hosts.events("packed", "start")[0])) == 1
    digest: str = hosts.result("packed")["weights_sha256"]
    return digest


def test_no_worker_is_split_over_two_machines(hosts: TwoHosts) -> None:
    done = hosts.run("train", "fit", "digits", "--set", "resources.cpus_per_worker=3")
    assert done.exit_code == 2
    assert "needs 3 CPUs on one machine; there are 2 CPUs on 10.77.0." in done.stderr


def test_two_machines_give_the_bits_of_one(hosts: TwoHosts, on_one_host: str) -> None:
    done = hosts.run(*FIT, *SPREAD, "--name", "spread")
    assert done.exit_code == 0, done.stderr
    assert _places(hosts.events("spread", "start")[0]) == {"head", "worker"}
    assert hosts.result("spread")["weights_sha256"] == on_one_host


def test_a_machine_lost_in_the_middle_of_an_epoch(hosts: TwoHosts, on_one_host: str) -> None:
    with hosts.running(*FIT, *SPREAD, "--name", "cut") as fit:
        try:
            _wait_for(lambda: hosts.events("cut", "progress"), "the run to make steps")
            hosts.worker.cut()
            said, _ = fit.communicate(timeout=120)
        finally:
            hosts.bring_back_worker()
    assert fit.returncode == 0, said
    first, second = hosts.events("cut", "start")
    assert _places(first) == {"head", "worker"}
    assert _places(second) == {"head"}
    assert second["step"] > 0, "it began anew"
    assert hosts.result("cut")["restarts"] == 1
    assert hosts.result("cut")["weights_sha256"] == on_one_host


def test_only_the_head_reaches_replicas_if_http_is_on_loopback(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    tracking = Tracking(
        Settings(store=hosts.store, tracking_uri=f"sqlite:///{hosts.store}/mlflow.db")
    )
    for seed in (1, 2):
        bundle = write_bundle(tmp_path / str(seed), seed=seed, name="shades")
        tracking.register("shades", bundle, run_id=None)
    deployed = hosts.run("serve", "deploy", "shades:1", "--min-replicas", "2", "--json")
    assert deployed.exit_code == 0, deployed.stderr
    assert "listen on their node's address" in deployed.json["notes"][0]
    rolled = hosts.run("serve", "deploy", "shades:2", "--json")
    assert (rolled.json["action"], rolled.json["replicas"]) == ("rolled out", 2)
    assert _replica_nodes(hosts, {}) == [hosts.head.address, hosts.worker.address]
    assert _listening(hosts.head, "haproxy") == [["127.0.0.1"]]
    # Of each replica: Ray's own port, which wants the token, as those of all its workers; that for
    # calls between deployments, which unpickles; and HTTP.
    for host, http in ((hosts.head, "127.0.0.1"), (hosts.worker, hosts.worker.address)):
        replicas = _listening(host, "ray::ServeRepli")
        assert replicas
        assert all(addresses == sorted(["*", "127.0.0.1", http]) for addresses in replicas)
    assert hosts.run("serve", "down").exit_code == 0


@pytest.fixture(scope="module")
def cloud(hosts: TwoHosts) -> Iterator[dict[str, str]]:
    """Variables that name an object store and an MLflow server, both on the laptop."""
    address, command = hosts.laptop.address, hosts.laptop.command
    with s3_server(address, command) as s3, mlflow_server(address, command) as mlflow:
        s3.make_bucket("raybridge")
        yield {"RAYBRIDGE_STORE": s3.uri("raybridge", "store"), "MLFLOW_TRACKING_URI": mlflow}


@pytest.fixture(scope="module")
def picture(hosts: TwoHosts) -> str:
    """An image on the laptop's disk."""
    path = hosts.laptop.lab.home / "seven.png"
    draw = f"from PIL import Image; Image.new('L', (8, 8), 7).save('{path}')"
    assert hosts.laptop.run(sys.executable, "-c", draw).exit_code == 0
    return str(path)


@pytest.fixture(scope="module")
def served(hosts: TwoHosts, cloud: dict[str, str]) -> None:
    """Trained on both machines and deployed to both, by jobs of the laptop's."""
    ingested = hosts.laptop.run_module(
        *("train", "ingest", "digits", "--name", "digits"), env={**AWS_ENVIRONMENT, **cloud}
    )
    assert ingested.exit_code == 0, ingested.stderr
    for command in (
        ("train", "fit", "digits", *FAR, "--register", MODEL),
        ("serve", "deploy", MODEL, "--min-replicas", "2", "--host", "0.0.0.0"),
    ):
        hosts.job(*command, env=cloud)


def test_an_object_store_is_all_that_is_shared(
    hosts: TwoHosts, cloud: dict[str, str], served: None, picture: str
) -> None:
    assert _replica_nodes(hosts, cloud) == [hosts.head.address, hosts.worker.address]
    answers = []
    for host in (hosts.head, hosts.worker):
        address = f"http://{host.address}:8000"
        done = hosts.laptop.run_module("serve", "predict", picture, "--address", address, "--json")
        assert done.exit_code == 0, done.stderr
        answers += [answer["probabilities"] for answer in done.json["predictions"]]
    assert answers[0] == answers[1]
    assert not (hosts.store / "runs" / "far").exists()


def test_a_machine_lost_under_load(
    hosts: TwoHosts, cloud: dict[str, str], served: None, picture: str
) -> None:
    ask = [sys.executable, str(ROOT / "tests/support/asker.py")]
    address = f"http://{hosts.head.address}:8000"
    # A run that takes both machines whole, and finds no room once one of them is gone.
    whole = ("--set", "resources.cpus_per_worker=2", "--set", "epochs=1000", "--name", "whole")
    short = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "2"}
    with (
        _ended(hosts.laptop.start(*ask, address, MODEL, picture)) as asker,
        hosts.running("train", "fit", "digits", "--workers", "2", *whole, env=short) as fit,
    ):
        _wait_for(lambda: hosts.events("whole", "start"), "the run to start")
        hosts.worker.cut()
        said, _ = fit.communicate(timeout=120)
        _wait_for(lambda: _replica_nodes(hosts, cloud) == [hosts.head.address] * 2, "a new replica")
        told, _ = asker.communicate(timeout=60)
    assert fit.returncode == 1
    assert "training with 2 workers needs 4 CPUs; this cluster has 2 CPUs in all" in said
    assert "python -m train resume" in said
    asked = json.loads(told.splitlines()[-1])
    assert asked["patient"]["failures"] == []
    assert asked["patient"]["answers"] > 50
    # Who asks once may be told to try again, while the loss is found out: three seconds.
    assert len(asked["plain"]["failures"]) <= 10, asked["plain"]


def _places(start: Event) -> set[str]:
    """Names of the machines that a run's workers are on."""
    return {worker["host"] for worker in start["workers"]}


def _replica_nodes(hosts: TwoHosts, env: dict[str, str]) -> list[str]:
    """Addresses of the machines that the one served model's running replicas are on."""
    (model,) = hosts.run("serve", "status", "--json", env=env).json["models"]
    each = model["replicas"]["each"]
    return sorted(replica["node"] for replica in each if replica["state"] == "RUNNING")


def _listening(host: Host, program: str) -> list[list[str]]:
    """Addresses on which each process of a program listens."""
    found: dict[str, list[str]] = {}
    for line in host.run("ss", "--no-header", "-tlnp").stdout.splitlines():
        *_, address, _, users = line.split()
        if f'"{program}"' in users:
            pid = users.partition("pid=")[2].partition(",")[0]
            ip = address.rpartition(":")[0].strip("[]").removeprefix("::ffff:")
            found.setdefault(pid, []).append(ip)
    return [sorted(addresses) for addresses in found.values()]


@contextlib.contextmanager
def _ended(process: Program) -> Iterator[Program]:
    """A program that does not outlive the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _wait_for(there: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
