"""A served model as its users meet it: real Ray, real HAProxy, real HTTP."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import urllib3
from bundles import write_bundle
from harness import RunCli, free_port, run_command
from PIL import Image
from typer.testing import CliRunner

from cluster.bundle import MODEL_FILE, Bundle
from cluster.errors import UserError
from cluster.runtime import open_session
from cluster.session import LOOPBACK_VARIABLE, connect
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from serve.__main__ import app
from serve.client import Client

MODEL = "shades"


@dataclass(frozen=True)
class Served:
    """Model ``shades`` behind HTTP."""

    url: str
    report: dict[str, Any]
    """What ``deploy --json`` printed."""
    bundles: dict[int, Bundle]

    @property
    def model_url(self) -> str:
        return f"{self.url}/v2/models/{MODEL}"


@pytest.fixture(scope="module")
def served(
    ray_session: Settings, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    tracking = Tracking(ray_session)
    folder = tmp_path_factory.mktemp("bundles")
    bundles = {}
    for seed in (1, 2):
        bundle = write_bundle(folder / str(seed), seed=seed, name=MODEL, run=f"shades-{seed}")
        bundles[tracking.register(MODEL, bundle, run_id=None).version] = bundle
    port = free_port()
    env = ray_session.environment()
    done = run_cli("serve", "deploy", f"{MODEL}:1", "--port", str(port), "--json", env=env)
    assert done.exit_code == 0, done.stderr
    yield Served(f"http://127.0.0.1:{port}", done.json, bundles)
    done = run_cli("serve", "down", "--json", env=env)
    assert done.exit_code == 0, done.stderr


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, retry_for_s=0) as client:
        yield client


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PIXELS = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)


def _expected(bundle: Bundle, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> list[float]:
    logits: list[float] = open_session(bundle).run(pixels[None, None])[0].tolist()
    return logits


def test_the_printed_lines_work(served: Served, tmp_path: Path) -> None:
    assert served.report["haproxy"]
    assert served.report["notes"] == []
    assert served.report["action"] == "started"
    (tmp_path / "IMAGE.png").write_bytes(_png(PIXELS))
    done = run_command(["sh", "-c", served.report["curl"]], cwd=tmp_path)
    assert json.loads(done.stdout)["version"] == "1", done
    done = run_command([sys.executable, "-c", served.report["python"]], cwd=tmp_path)
    assert "version='1'" in done.stdout, done
    assert all(url.startswith("http://127.0.0.1:") for url in served.report["urls"])


def test_health_and_listing(served: Served, client: Client) -> None:
    assert client.live()
    assert client.ready()
    assert client.ready(MODEL)
    assert client.models() == [
        {"name": MODEL, "versions": ["1"], "ready": True, "status": "RUNNING"}
    ]
    metadata = client.metadata(MODEL)
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 2, 3]}]
    answer = urllib3.request("GET", f"{served.url}/v2/health/ready")
    assert answer.json() == {"live": True, "ready": True, "models": {MODEL: True}}
    assert answer.headers["x-raybridge-version"]


def test_json_and_binary_infer_agree_with_the_bundle(served: Served, client: Client) -> None:
    expected = _expected(served.bundles[1], PIXELS)
    body = {
        "id": "seven",
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": [1, 1, 2, 3],
                "data": [[PIXELS.tolist()]],
            }
        ],
    }
    answer = urllib3.request("POST", f"{served.model_url}/infer", json=body).json()
    assert answer["id"] == "seven"
    assert answer["model_version"] == "1"
    assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)
    batch = np.stack([PIXELS[None]] * 100)
    logits = client.infer(MODEL, batch)
    assert logits.shape == (100, 2)
    assert logits[99].tolist() == pytest.approx(expected, abs=1e-5)


TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("shades") and client.is_model_ready("shades", "1")
assert not client.is_model_ready("shades", "99")
assert client.get_server_metadata()["name"] == "raybridge"
assert client.get_model_metadata("shades")["outputs"][0]["shape"] == [-1, 2]
pixels = np.arange(0, 240, 40, dtype=np.uint8).reshape(1, 1, 2, 3)
answers = []
for binary_in in (True, False):
    for binary_out in (True, False):
        image = triton.InferInput("images", [1, 1, 2, 3], "UINT8")
        image.set_data_from_numpy(pixels, binary_data=binary_in)
        for outputs in (None, [triton.InferRequestedOutput("logits", binary_data=binary_out)]):
            for zipped in (None, "gzip", "deflate"):
                answer = client.infer(
                    "shades", [image], outputs=outputs, request_id="7", model_version="1",
                    request_compression_algorithm=zipped,
                )
                assert answer.get_response()["id"] == "7"
                answers.append(answer.as_numpy("logits"))
assert len(answers) == 24 and all(np.allclose(answer, answers[0]) for answer in answers)
top = triton.InferRequestedOutput("logits", class_count=1)
best = client.infer("shades", [image], outputs=[top]).as_numpy("logits")
assert best.shape == (1, 1) and best[0, 0].decode().split(":")[2] in ("dark", "light"), best
wrong = triton.InferInput("images", [1, 1, 2, 4], "UINT8")
wrong.set_data_from_numpy(np.zeros((1, 1, 2, 4), np.uint8))
try:
    client.infer("shades", [wrong])
except triton.InferenceServerException as error:
    assert "expected [-1, 1, 2, 3]" in error.message(), error.message()
else:
    raise AssertionError("a wrong shape was taken")
print("logits", answers[0].tolist())
"""


def test_tritonclient_works_unmodified(served: Served) -> None:
    pytest.importorskip("tritonclient.http", reason="extra dev", exc_type=ImportError)
    # A process of its own: the client patches sockets through gevent.
    done = run_command([sys.executable, "-c", TRITON, served.url.removeprefix("http://")])
    assert done.exit_code == 0, done.stderr
    assert "logits" in done.stdout


def test_classify(served: Served, client: Client, tmp_path: Path, run_cli: RunCli) -> None:
    logits = np.array(_expected(served.bundles[1], PIXELS))
    answer = client.classify(MODEL, _png(PIXELS), request_id="abc-1")
    assert answer.request_id == "abc-1"
    assert answer.version == "1"
    assert answer.index == int(logits.argmax())
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    # Ray itself fails on an id that is not UTF-8, and cuts answers short on demand.
    odd = {"x-request-id": "\xff", "x-request-timeout-seconds": "0.000001", "x-session-id": "\xff"}
    url = f"{served.model_url}/classify"
    assert urllib3.request("POST", url, headers=odd, body=_png(PIXELS)).json()["version"] == "1"
    (tmp_path / "a.png").write_bytes(_png(PIXELS))
    (tmp_path / "b.txt").write_text("no image")
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.txt")]
    done = run_cli("serve", "predict", *files, "--address", served.url, "--json")
    assert done.exit_code == 2
    assert done.json["predictions"][0]["label"] == answer.label
    assert "not an image" in done.json["predictions"][1]["error"]


def _refusals(served: Served) -> list[tuple[str, str, dict[str, str], bytes, int]]:
    infer, classify = f"{served.model_url}/infer", f"{served.model_url}/classify"
    json_type = {"content-type": "application/json"}
    image = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0] * 6}
    wrong = [
        {},
        {"inputs": []},
        {"inputs": [{**image, "shape": [1, 6]}]},
        {"inputs": [{**image, "shape": [2**60 + 2, 1, 2, 3]}]},
        {"inputs": [{**image, "datatype": "FP32"}]},
        {"inputs": [{**image, "data": [0.5] * 6}]},
        {"inputs": [{**image, "name": "\0"}]},
        {"inputs": [image, image]},
    ]
    png = {"content-type": "image/png"}
    return [
        *(("POST", infer, json_type, json.dumps(body).encode(), 400) for body in wrong),
        ("POST", infer, json_type, b"[" * 250_000, 400),
        ("POST", infer, json_type, b'{"inputs": NaN}', 400),
        ("POST", infer, json_type, b"", 400),
        ("POST", infer, {"inference-header-content-length": "99999999999"}, b"{}", 400),
        ("POST", infer, {"inference-header-content-length": "-1"}, b"{}", 400),
        ("POST", infer, {"inference-header-content-length": "0"}, b"12345", 400),
        ("POST", infer, {"content-type": "image/png"}, b"x", 415),
        ("POST", infer, {**json_type, "content-encoding": "br"}, b"x", 415),
        ("POST", infer, {**json_type, "content-encoding": "gzip"}, b"x", 400),
        ("POST", infer, json_type, b" " * (11 * 2**20), 413),
        ("GET", infer, {}, b"", 405),
        ("DELETE", served.model_url, {}, b"", 405),
        ("POST", classify, png, _png(PIXELS)[:50], 400),
        ("POST", classify, png, b"", 400),
        ("POST", classify, png, b"hello", 415),
        ("POST", classify, {"content-type": "text/html"}, _png(PIXELS), 415),
        ("POST", f"{classify}?top_k=0", png, _png(PIXELS), 400),
        ("POST", f"{served.model_url}/versions/9/classify", png, _png(PIXELS), 404),
        ("POST", f"{served.model_url}/nothing", png, b"", 404),
        ("POST", f"{served.url}/v2/models/other/infer", json_type, b"{}", 404),
        ("GET", f"{served.url}/v2/models/{MODEL}x", {}, b"", 404),
        ("GET", f"{served.url}/v2/models/%2e%2e/infer", {}, b"", 404),
        ("GET", f"{served.url}/elsewhere", {}, b"", 404),
        ("POST", f"{served.url}/v2/health/ready", {}, b"", 405),
    ]


def test_every_mistake_is_a_4xx_in_json(served: Served, client: Client) -> None:
    for method, url, headers, body, expected in _refusals(served):
        answer = urllib3.request(method, url, headers=headers, body=body or None, retries=False)
        assert answer.status == expected, (method, url, headers, body[:80], answer.data)
        assert answer.headers["content-type"] == "application/json"
        assert list(answer.json()) == ["error"]
        assert "Traceback" not in answer.data.decode()
        assert answer.headers["x-raybridge-version"]
    assert client.live()
    assert client.ready(MODEL)


def test_metrics_reach_prometheus(served: Served, ray_session: Settings, client: Client) -> None:
    import ray

    client.classify(MODEL, _png(PIXELS))
    with connect(ray_session, may_start=False):
        (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    wanted = (
        "ray_raybridge_requests_total{",
        "ray_raybridge_request_latency_ms_bucket{",
        "ray_raybridge_batch_size_bucket{",
    )
    deadline = time.monotonic() + 30
    while True:
        text = urllib3.request("GET", url).data.decode()
        counted = re.search(
            rf'^{re.escape(wanted[0])}(?=.*code="200")(?=.*model="{MODEL}")(?=.*="classify")',
            text,
            re.MULTILINE,
        )
        if counted and all(name in text for name in wanted):
            break
        assert time.monotonic() < deadline, [line for line in text.splitlines() if "raybr" in line]
        time.sleep(0.5)


def test_nothing_of_serve_listens_beyond_loopback(served: Served) -> None:
    seen = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [process.info["name"]])
        kind = next((k for k in ("haproxy", "ServeReplica", "ProxyActor") if k in title), None)
        if kind is None or "pytest" in title:
            continue
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                seen.add(kind)
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", (
                    title,
                    connection,
                )
    assert {"haproxy", "ServeReplica"} <= seen


@dataclass
class Load:
    """Steady requests, none of them repeated, and what became of them."""

    versions: list[str]
    failures: list[str]


def _ask_until(stop: threading.Event, url: str, load: Load) -> None:
    image = _png(PIXELS)
    with Client(url, retry_for_s=0) as client:
        while not stop.is_set():
            try:
                load.versions.append(client.classify(MODEL, image).version)
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
    before = client.classify(MODEL, _png(PIXELS)).version
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = run_cli("serve", "deploy", f"{MODEL}:1", env=ray_session.environment())
    finally:
        kept.write_bytes(whole)
    assert done.exit_code == 2
    assert "was changed since the bundle was made" in done.stderr
    assert client.classify(MODEL, _png(PIXELS)).version == before


def test_a_killed_replica_costs_the_client_time_only(served: Served) -> None:
    (replica,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if any(f"ServeReplica:model-{MODEL}" in part for part in process.info["cmdline"] or [])
    )
    replica.kill()
    with Client(served.url) as patient:
        for _ in range(20):
            assert patient.classify(MODEL, _png(PIXELS)).label in ("dark", "light")
            time.sleep(0.05)


def test_status(served: Served, ray_session: Settings, run_cli: RunCli, client: Client) -> None:
    env = ray_session.environment()
    done = run_cli("serve", "status", "--json", env=env)
    (model,) = done.json["models"]
    assert done.json["haproxy"]
    assert model["status"] == "RUNNING"
    (version,) = model["versions"]
    assert str(version["version"]) == client.classify(MODEL, _png(PIXELS)).version
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
        assert client.classify(MODEL, _png(PIXELS)).version == "1"
        logits = client.infer(MODEL, PIXELS[None, None])
    assert logits[0].tolist() == pytest.approx(_expected(served.bundles[1], PIXELS), abs=1e-5)
