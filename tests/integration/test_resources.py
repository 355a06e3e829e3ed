"""Asking for more than is free ends in seconds, with a line that names who holds it."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from harness import ROOT, RunCli

from cluster.errors import ResourceError
from cluster.session import Session, connect
from cluster.settings import Settings


@pytest.fixture
def session(ray_session: Settings) -> Iterator[Session]:
    """This process as a driver on the shared cluster."""
    with connect(ray_session, may_start=False, label="run digits-3") as live:
        yield live


def test_more_than_there_is(session: Session) -> None:
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"fit needs 64 CPUs; this cluster has 2 CPUs in all"):
        session.require(64, 0, "fit")
    with pytest.raises(ResourceError, match=r"needs 1 CPU and 1 GPU; .* 0 GPUs in all"):
        session.require(1, 1, "fit")
    assert time.monotonic() - started < 2


def test_what_is_free_is_granted_at_once(session: Session) -> None:
    started = time.monotonic()
    session.require(2, 0, "fit")
    session.require(0, 0, "a driver")
    assert time.monotonic() - started < 1
    assert session.holders() == []
    assert session.started is False
    assert [node.address for node in session.nodes()] == ["127.0.0.1"]


def test_a_placement_group_is_named_after_its_run(session: Session) -> None:
    import ray

    group = ray.util.placement_group([{"CPU": 1}] * 2)
    ray.get(group.ready(), timeout=30)
    try:
        (holder,) = session.holders()
        assert (holder.name, holder.kind, holder.cpus) == ("run digits-3", "placement group", 2)
        with pytest.raises(ResourceError, match=r"0 CPUs of 2 CPUs free; held by run digits-3"):
            session.require(2, 0, "search with 2 trials", wait_s=0.5)
    finally:
        ray.util.remove_placement_group(group)
    session.require(2, 0, "fit", wait_s=10)


def test_actors_and_tasks(session: Session) -> None:
    import ray

    @ray.remote(num_cpus=0.5)
    class Client:
        def ready(self) -> None:
            """Answer."""

    clients = [Client.remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([client.ready.remote() for client in clients], timeout=30)

    @ray.remote(num_cpus=1)
    def work() -> None:
        time.sleep(60)

    task = work.remote()
    try:
        deadline = time.monotonic() + 20
        while len(holders := session.holders()) < 2:
            assert time.monotonic() < deadline, holders
            time.sleep(0.2)
        assert {(holder.name, holder.kind, holder.cpus) for holder in holders} == {
            ("actor Client of run digits-3", "actor", 1.0),
            ("tasks of run digits-3", "tasks", 1.0),
        }
    finally:
        ray.cancel(task, force=True)
        for client in clients:
            ray.kill(client)
    session.require(2, 0, "fit", wait_s=10)


def test_another_process_is_named_in_status(ray_session: Settings, run_cli: RunCli) -> None:
    other = subprocess.Popen(
        [sys.executable, "tests/support/driver.py", "60"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "holding\n"
        deadline = time.monotonic() + 20
        while not (held := run_cli("cluster", "status", "--json").json["holders"]):
            assert time.monotonic() < deadline
        assert held == [
            {"name": "tasks of the test's driver", "kind": "tasks", "cpus": 1.0, "gpus": 0.0}
        ]
    finally:
        other.kill()
        other.communicate()
