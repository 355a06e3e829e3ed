"""What ``cluster doctor`` finds on one machine, and that every failure says what to do."""

import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import RunCli, free_port

from cluster import checks
from cluster.checks import Check, Questions, ServeAddress
from cluster.settings import Settings
from cluster.store import Store


class Health(http.server.BaseHTTPRequestHandler):
    """Says that it is well under /-/healthz and /health, and 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/-/healthz", "/health"} else 503)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Tell nobody."""


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server that answers health checks."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture
def questions(settings: Settings) -> Questions:
    return Questions(settings, clustered=True)


def problem(check: Check, *, outcome: str = "failed") -> str:
    """What was found and what to do, of a check that must not be ok."""
    assert check.outcome == outcome, check
    assert check.fix
    return f"{check.detail} | {check.fix}"


def test_versions() -> None:
    own = checks.machine_versions()
    assert checks.compare_versions(own, own, "the head").outcome == "ok"
    older = {**own, "ray": "2.50.0"}
    said = problem(checks.compare_versions(older, own, "the head"))
    assert said.startswith(f"not those of the head: ray 2.50.0 (there {own['ray']})")
    other_code = {**own, "code": "0" * 12}
    assert "same commit" in problem(checks.compare_versions(other_code, own, "the head"))


@pytest.mark.parametrize(
    ("clock_s", "outcome"), [(100.5, "ok"), (99.0, "ok"), (90.0, "behind"), (111.0, "ahead")]
)
def test_clock(clock_s: float, outcome: str) -> None:
    check = checks.check_clock(clock_s, asked_s=100, answered_s=101)
    if outcome == "ok":
        assert check.outcome == "ok"
    else:
        assert f"at least 10 s {outcome}" in problem(check)


def test_store(settings: Settings) -> None:
    checks.probes(settings).write_json("mark.json", {})
    assert checks.check_store(settings, "mark.json").outcome == "ok"
    assert checks.probes(settings).names() == ["mark.json"], "the check leaves nothing behind"


def test_a_store_that_is_another_folder_than_the_askers(settings: Settings, tmp_path: Path) -> None:
    checks.probes(settings).write_json("mark.json", {})
    elsewhere = settings.model_copy(update={"store": tmp_path / "elsewhere"})
    assert "is this machine's own" in problem(checks.check_store(elsewhere, "mark.json"))


def test_a_store_that_cannot_be_written(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = settings.model_copy(update={"store": tmp_path / "file" / "store"})
    said = problem(checks.check_store(blocked, None))
    assert "cannot be written: Not a directory" in said
    assert "RAYBRIDGE_STORE" in said


def test_tracking(questions: Questions, server: int) -> None:
    assert checks.check_tracking(questions).outcome == "ok"
    said = problem(checks.check_tracking(replace(questions, nodes=2)), outcome="warning")
    assert "mlflow server" in said

    def at(uri: str) -> Check:
        settings = questions.settings.model_copy(update={"tracking_uri": uri})
        return checks.check_tracking(replace(questions, settings=settings))

    assert at(f"http://127.0.0.1:{server}").outcome == "ok"
    assert "HTTP 503" in problem(at(f"http://127.0.0.1:{server}/sub"))
    port = free_port()
    said = problem(at(f"postgresql://me:secret@127.0.0.1:{port}/mlflow"))
    assert f"postgresql://127.0.0.1:{port} does not answer" in said
    assert "secret" not in said


def test_dashboard(questions: Questions, server: int) -> None:
    url = f"http://127.0.0.1:{server}"
    down = replace(questions, dashboard_url=url)
    assert "HTTP 503" in problem(checks.check_dashboard(down))
    elsewhere = checks.check_dashboard(replace(down, is_head=False))
    assert "--dashboard-host" in problem(elsewhere, outcome="warning")
    assert "--include-dashboard" in problem(checks.check_dashboard(questions))


def test_serve(questions: Questions, server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SERVE_PORT", server)
    said = problem(checks.check_serve(questions))
    assert f"port {server} taken by another program" in said
    assert "deploy --port" in said
    monkeypatch.setattr(checks, "SERVE_PORT", free_port())
    assert checks.check_serve(questions).outcome == "ok"

    running = replace(questions, serve=ServeAddress("127.0.0.1", server))
    assert checks.check_serve(running).outcome == "ok"
    gone = replace(questions, serve=ServeAddress("0.0.0.0", free_port()))
    assert "does not answer" in problem(checks.check_serve(gone))
    # Another node's proxy is there only if it has replicas.
    assert checks.check_serve(replace(gone, is_head=False)).outcome == "ok"


def test_shared_memory() -> None:
    assert checks.check_shared_memory(None).outcome == "ok"
    assert checks.check_shared_memory(1).outcome == "ok"
    assert "--shm-size=1000000g" in problem(checks.check_shared_memory(1_000_000 * 2**30))


def test_haproxy_runs() -> None:
    check = checks.check_haproxy()
    assert check.outcome == "ok"
    assert check.detail.startswith("HAProxy version")


def test_this_machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    report = checks.inspect_machine(Questions(settings))
    assert report.host == socket.gethostname()
    assert [check.name for check in report.checks] == [
        *("store", "tracking", "dashboard", "serve", "haproxy", "memory", "disk")
    ]
    assert not Store(settings.store).folder("probes").names()


def test_the_command_without_a_cluster(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {"RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path)}
    blocked = {**env, "RAYBRIDGE_STORE": str(tmp_path / "file" / "store")}
    result = run_cli("cluster", "doctor", "--json", env=blocked)
    assert result.exit_code == 1
    assert result.json["cluster"] is None
    (node,) = result.json["nodes"]
    failed = {check["name"]: check for check in node["checks"] if check["outcome"] == "failed"}
    assert failed["store"]["fix"]
    assert f"fix: {failed['store']['fix']}" in result.stderr
    assert result.json["failures"] == len(failed)
