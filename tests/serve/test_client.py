"""The client against a real HTTP server that fails in all the ways a cluster can."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from harness import ROOT, free_port

from cluster.errors import NotFoundError, ServingError, UserError
from serve.client import Client, RejectedError

OURS = {"x-raybridge-version": "1"}
PREDICTION = {
    "model": "net",
    "version": "1",
    "request_id": "r",
    "label": "ant",
    "index": 0,
    "probability": 0.75,
    "probabilities": {"ant": 0.75, "bee": 0.25},
}
BREAK = 0
"""In place of a status: close the connection without an answer."""


class Script:
    """What the server answers, request by request; the last entry is repeated."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = ""

    def plan(self, *answers: tuple[int, dict[str, str], Any]) -> None:
        self.answers = [
            (status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())
            for status, headers, body in answers
        ]


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.seen.append((self.command, self.path, headers, body))
            status, extra, answer = (
                script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            )
            if status == BREAK:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**extra, "content-length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(script: Script, clock: Clock) -> Iterator[Client]:
    with Client(script.url + "/", clock=clock, sleep=clock.sleep) as client:
        yield client


def test_classify(client: Client, script: Script) -> None:
    script.plan((200, OURS, PREDICTION))
    answer = client.classify("net", b"png", version="2", top_k=1, request_id="abc")
    assert (answer.label, answer.probability, answer.version) == ("ant", 0.75, "1")
    ((method, path, headers, body),) = script.seen
    assert (method, path) == ("POST", "/v2/models/net/versions/2/classify?top_k=1")
    assert headers["x-request-id"] == "abc"
    assert body == b"png"


def test_infer_sends_and_reads_raw_tensors(client: Client, script: Script) -> None:
    logits = np.array([[1.5, -2.0], [0.0, 3.0]], np.float32)
    head = json.dumps({"outputs": [{"name": "logits", "shape": [2, 2]}]}).encode()
    script.plan(
        (200, {**OURS, "Inference-Header-Content-Length": str(len(head))}, head + logits.tobytes())
    )
    images = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
    assert np.array_equal(client.infer("net", images[:, :, ::-1]), logits)
    ((_, path, headers, body),) = script.seen
    length = int(headers["inference-header-content-length"])
    assert path == "/v2/models/net/infer"
    assert json.loads(body[:length])["inputs"][0]["shape"] == [2, 1, 2, 3]
    assert body[length:] == np.ascontiguousarray(images[:, :, ::-1]).tobytes()


def test_infer_wants_bytes(client: Client) -> None:
    with pytest.raises(UserError, match="float64; expected uint8"):
        client.infer("net", np.zeros((1, 1, 2, 3)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "failure",
    [
        (500, {}, b"Internal Server Error"),
        (502, {}, b""),
        (503, OURS, {"error": "overloaded"}),
        (504, {}, b""),
        (404, {}, b"Path '/v2/models/net' not found."),
        (BREAK, {}, b""),
    ],
)
def test_what_passes_is_tried_again(
    client: Client, script: Script, clock: Clock, failure: tuple[int, dict[str, str], Any]
) -> None:
    script.plan(failure, failure, failure, (200, OURS, PREDICTION))
    assert client.classify("net", b"png").label == "ant"
    assert clock.pauses == [0.05, 0.1, 0.2]
    assert len({headers["x-request-id"] for _, _, headers, _ in script.seen}) == 1


def test_trying_ends_after_15_seconds(client: Client, script: Script, clock: Clock) -> None:
    script.plan((503, {}, {"error": "no replica"}))
    with pytest.raises(ServingError, match="status 503: no replica"):
        client.classify("net", b"png")
    assert 13 < clock.now_s <= 15
    assert max(clock.pauses) == 1.0


def test_an_address_where_nobody_is(clock: Clock) -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}", clock=clock, sleep=clock.sleep) as client,
        pytest.raises(ServingError, match="nothing answers there"),
    ):
        client.metadata("net")
    assert clock.pauses
    assert not client.live()


@pytest.mark.parametrize("status", [400, 405, 413, 415, 422])
def test_a_refusal_is_final(client: Client, script: Script, clock: Clock, status: int) -> None:
    script.plan((status, OURS, {"error": "input images has shape [1]"}))
    with pytest.raises(RejectedError, match="has shape") as caught:
        client.classify("net", b"png")
    assert caught.value.status == status
    assert clock.pauses == []


def test_our_404_is_final(client: Client, script: Script, clock: Clock) -> None:
    script.plan((404, OURS, {"error": "unknown model 'net'; served: digits"}))
    with pytest.raises(NotFoundError, match="served: digits"):
        client.metadata("net")
    assert clock.pauses == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"detail": 1}'])
def test_an_answer_of_somebody_else(client: Client, script: Script, body: bytes) -> None:
    script.plan((400, {}, body))
    with pytest.raises(RejectedError):
        client.metadata("net")
    script.plan((200, {}, b"<html>"))
    with pytest.raises(ServingError, match="did not answer with JSON"):
        client.metadata("net")


def test_ready_and_live_ask_once(client: Client, script: Script, clock: Clock) -> None:
    script.plan((503, OURS, {"ready": False}), (200, OURS, {"ready": True}))
    assert not client.ready()
    assert client.ready("net")
    assert client.live()
    paths = [path for _, path, _, _ in script.seen]
    assert paths == ["/v2/health/ready", "/v2/models/net/ready", "/v2/health/live"]
    assert clock.pauses == []


def test_one_client_serves_many_threads(client: Client, script: Script) -> None:
    script.plan((200, OURS, PREDICTION))
    threads = [
        threading.Thread(target=lambda: [client.classify("net", b"x") for _ in range(10)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(script.seen) == 80


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://a..b", "http://x:99999"]
)
def test_a_wrong_address_is_named(address: str) -> None:
    with pytest.raises(UserError, match="expected http://host:port"):
        Client(address)


def test_it_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys, serve.client, serve.__main__; "
        "print([name for name in ('ray', 'torch', 'mlflow', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_one_model_is_found(client: Client, script: Script) -> None:
    script.plan((200, OURS, {"models": [{"name": "net"}]}))
    assert client.only_model() == "net"
    script.plan((200, OURS, {"models": [{"name": "net"}, {"name": "digits"}]}))
    with pytest.raises(UserError, match="serves: net, digits"):
        client.only_model()


def test_replicas_need_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys, serve.replica; "
        "print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
