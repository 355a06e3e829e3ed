"""What ``cluster doctor`` finds on one machine, and that every failure says what to do."""

import base64
import contextlib
import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import RunCli, free_port

from cluster import checks, commands, inspection
from cluster.checks import Check, Questions, ServeAddress
from cluster.cli import Output
from cluster.doctor import Diagnosis, NodeFindings
from cluster.settings import Settings
from cluster.store import Store

LOGIN = f"Basic {base64.b64encode(b'me:secret').decode()}"


class Health(http.server.BaseHTTPRequestHandler):
    """Says that it is well under /-/healthz; an MLflow that refuses whom and what it can."""

    def do_GET(self) -> None:
        under, _, mlflow = self.path.partition("/api/2.0/mlflow/experiments/search?max_results=")
        status = 200 if self.path in {"/-/healthz", "/health", "/strict/health"} else 503
        if mlflow:
            known = self.headers["Authorization"] == LOGIN
            status = {"": 200, "/strict": 403, "/login": 200 if known else 401}.get(under, 503)
        self.send_response(status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Tell nobody."""


@contextlib.contextmanager
def healthy(host: str) -> Iterator[int]:
    with http.server.ThreadingHTTPServer((host, 0), Health) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server that answers health checks."""
    with healthy("127.0.0.1") as port:
        yield port


@pytest.fixture
def no_web_server() -> Iterator[int]:
    """The port of a server that greets as ssh does."""

    class Greet(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"SSH-2.0-x\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_address[1]
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
    own = inspection.machine_versions()
    assert inspection.compare_versions(own, own, "the head").outcome == "ok"
    older = {**own, "ray": "2.50.0"}
    said = problem(inspection.compare_versions(older, own, "the head"))
    assert said.startswith(f"not those of the head: ray 2.50.0 (there {own['ray']})")
    other_code = {**own, "code": "0" * 12}
    assert "same commit" in problem(inspection.compare_versions(other_code, own, "the head"))


@pytest.mark.parametrize(
    ("clock_s", "outcome"), [(100.5, "ok"), (99.0, "ok"), (90.0, "behind"), (111.0, "ahead")]
)
def test_clock(clock_s: float, outcome: str) -> None:
    check = inspection.check_clock(clock_s, asked_s=100, answered_s=101)
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


def test_tracking(
    questions: Questions, server: int, no_web_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.check_tracking(questions).outcome == "ok"
    said = problem(checks.check_tracking(replace(questions, nodes=2)), outcome="warning")
    assert "mlflow server" in said

    def at(uri: str) -> Check:
        settings = questions.settings.model_copy(update={"tracking_uri": uri})
        return checks.check_tracking(replace(questions, settings=settings))

    assert at(f"http://127.0.0.1:{server}").outcome == "ok"
    assert "HTTP 503" in problem(at(f"http://127.0.0.1:{server}/sub"))
    said = problem(at(f"http://127.0.0.1:{server}/strict"))
    assert f"--allowed-hosts 127.0.0.1:{server}" in said, "its /health answers everybody"
    said = problem(at(f"http://127.0.0.1:{server}/login"))
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert at(f"http://127.0.0.1:{server}/login").outcome == "ok"
    assert "is no HTTP server" in problem(at(f"http://127.0.0.1:{no_web_server}"))
    assert "does not answer" in problem(at("http://ho st:5000"))
    port = free_port()
    said = problem(at(f"postgresql://127.0.0.1:{port}/mlflow"))
    assert f"postgresql://127.0.0.1:{port} does not answer" in said


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
    with healthy("127.0.0.2") as port:
        one_address = replace(questions, serve=ServeAddress("127.0.0.2", port))
        assert checks.check_serve(one_address).outcome == "ok"
        assert checks.check_serve(replace(one_address, is_head=False)).outcome == "ok"


def test_a_proxy_is_not_asked_about_the_cluster(
    questions: Questions, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    running = replace(questions, serve=ServeAddress("127.0.0.1", server))
    assert checks.check_serve(running).outcome == "ok"


def test_a_check_that_breaks_is_a_finding(settings: Settings) -> None:
    broken = settings.model_copy(update={"tracking_uri": "http://[bad"})
    found = {one.name: one for one in inspection.inspect_machine(Questions(broken)).checks}
    assert "the check itself failed: ValueError" in problem(found["tracking"])
    assert found["store"].outcome == "ok"


def test_shared_memory() -> None:
    assert checks.check_shared_memory(None).outcome == "ok"
    assert checks.check_shared_memory(1).outcome == "ok"
    assert "--shm-size=1000000g" in problem(checks.check_shared_memory(1_000_000 * 2**30))


def test_haproxy_runs() -> None:
    check = checks.check_haproxy()
    assert check.outcome == "ok"
    assert check.detail.startswith("HAProxy version")


def test_this_machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    report = inspection.inspect_machine(Questions(settings))
    assert report.host == socket.gethostname()
    assert [check.name for check in report.checks] == [
        *("store", "tracking", "dashboard", "serve", "haproxy", "memory", "disk")
    ]
    assert not Store(settings.store).folder("probes").names()


def test_the_command_without_a_cluster(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {"RAY_ADDRESS": "", "RAY_TMPDIR": str(tmp_path)}
    blocked = {
        **env,
        "RAYBRIDGE_STORE": str(tmp_path / "file" / "store"),
        "RAY_API_SERVER_ADDRESS": "http://192.0.2.1:8265",
    }
    result = run_cli("cluster", "doctor", "--json", env=blocked)
    assert result.exit_code == 1
    assert result.json["cluster"] is None
    (node,) = result.json["nodes"]
    failed = {check["name"]: check for check in node["checks"] if check["outcome"] == "failed"}
    assert failed["store"]["fix"]
    assert f"fix: {failed['store']['fix']}" in result.stderr
    assert result.json["failures"] == len(failed)
    assert "http://192.0.2.1:8265: python -m cluster submit -- python -m cluster doctor" in (
        result.stderr
    )


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (("ok", "ok"), "all good"),
        (("ok", "warning"), "no failures, 1 warning"),
        (("warning", "warning"), "no failures, 2 warnings"),
    ],
)
def test_warnings_are_not_all_good(
    outcomes: tuple[checks.Outcome, ...],
    said: str,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = tuple(Check("disk", outcome, "", "") for outcome in outcomes)
    node = NodeFindings("192.0.2.1", "head", True, found)
    diagnosis = Diagnosis("192.0.2.1:6379", (node,), ())
    monkeypatch.setattr(commands, "examine", lambda *_, **__: diagnosis)
    commands.run_doctor(Output(False), timeout_s=1)
    assert capsys.readouterr().out.splitlines()[-1] == said
