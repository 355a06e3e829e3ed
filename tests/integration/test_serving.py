"""A served model as its users meet it: real Ray, real HAProxy, real HTTP."""

import json
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import urllib3
from harness import RunCli, run_command
from shades import IMAGE, PIXELS, Served, expected_logits, serving

from cluster.errors import ServingError
from cluster.session import connect
from cluster.settings import Settings
from serve.client import Client

MODEL = "shades"


@pytest.fixture(scope="module")
def served(ray_session: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(MODEL, ray_session, tmp_path_factory.mktemp("bundles")) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url, retry_for_s=0) as client:
        yield client


def test_the_printed_lines_work(served: Served, tmp_path: Path) -> None:
    assert served.report["haproxy"]
    assert served.report["notes"] == []
    assert served.report["action"] == "started"
    (tmp_path / "IMAGE.png").write_bytes(IMAGE)
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
    expected = expected_logits(served.bundles[1])
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
    logits = np.array(expected_logits(served.bundles[1]))
    answer = client.classify(MODEL, IMAGE, request_id="abc-1")
    assert answer.request_id == "abc-1"
    assert answer.version == "1"
    assert answer.index == int(logits.argmax())
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    # Ray itself fails on an id that is not UTF-8, and cuts answers short on demand.
    odd = {"x-request-id": "\xff", "x-request-timeout-seconds": "0.000001", "x-session-id": "\xff"}
    url = f"{served.model_url}/classify"
    assert urllib3.request("POST", url, headers=odd, body=IMAGE).json()["version"] == "1"
    (tmp_path / "a.png").write_bytes(IMAGE)
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
        ("POST", classify, png, IMAGE[:50], 400),
        ("POST", classify, png, b"", 400),
        ("POST", classify, png, b"hello", 415),
        ("POST", classify, {"content-type": "text/html"}, IMAGE, 415),
        ("POST", f"{classify}?top_k=0", png, IMAGE, 400),
        ("POST", f"{served.model_url}/versions/9/classify", png, IMAGE, 404),
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

    client.classify(MODEL, IMAGE)
    # Four times as many images as a body may hold take seconds; this client waits for none of them.
    images = np.zeros((1_500_000, 1, 2, 3), np.uint8)
    with Client(served.url, retry_for_s=0, timeout_s=0.1) as hasty, ThreadPoolExecutor() as threads:
        asked = [threads.submit(hasty.infer, MODEL, images) for _ in range(4)]
        assert {type(request.exception()) for request in asked} == {ServingError}
    with connect(ray_session, may_start=False):
        (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    wanted = (
        rf'^ray_raybridge_requests_total{{(?=.*code="200")(?=.*model="{MODEL}")(?=.*="classify")',
        rf'^ray_raybridge_requests_total{{(?=.*code="499")(?=.*model="{MODEL}")(?=.*="infer")',
        "^ray_raybridge_request_latency_ms_bucket{",
        "^ray_raybridge_batch_size_bucket{",
    )
    deadline = time.monotonic() + 30
    while True:
        text = urllib3.request("GET", url).data.decode()
        if all(re.search(line, text, re.MULTILINE) for line in wanted):
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
