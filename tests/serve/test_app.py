"""A model's application, driven in process without Ray: what is asked, and what is answered."""

import asyncio
import gzip
import zlib
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from asgi import Answer, ask
from tiny import PIXELS, ROOT, infer_body, png

from cluster.bundle import Bundle
from cluster.runtime import open_session
from serve.app import ModelApp


def _get(coroutine: Coroutine[Any, Any, Answer | None]) -> Answer:
    answer = asyncio.run(asyncio.wait_for(coroutine, 30))
    assert answer is not None
    return answer


def _expected(bundle: Bundle) -> Any:
    return open_session(bundle).run(PIXELS[None, None])[0]


def test_infer_answers_with_the_bundles_logits(app: ModelApp, bundles: list[Bundle]) -> None:
    for path, version in ((f"{ROOT}/infer", 1), (f"{ROOT}/versions/2/infer", 2)):
        answer = _get(ask(app, "POST", path, body=infer_body()))
        assert answer.status == 200
        assert answer.headers["x-raybridge-version"] == str(version)
        assert answer.json["model_version"] == str(version)
        expected = _expected(bundles[version - 1])
        assert answer.json["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)


def test_classify_names_the_likeliest_class(app: ModelApp, bundles: list[Bundle]) -> None:
    answer = _get(
        ask(
            app,
            "POST",
            f"{ROOT}/classify",
            body=png(),
            headers={"content-type": "image/png; x=1", "x-request-id": "r-7"},
        )
    )
    logits = _expected(bundles[0])
    names = bundles[0].manifest.class_names
    assert answer.json["label"] == names[logits.argmax()]
    assert answer.json["index"] == logits.argmax()
    assert answer.json["request_id"] == "r-7"
    assert list(answer.json["probabilities"]) == [names[i] for i in np.argsort(-logits)]
    assert sum(answer.json["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert max(answer.json["probabilities"].values()) == answer.json["probability"]
    assert _get(ask(app, "POST", f"{ROOT}/classify?&", body=png())).status == 200
    best = _get(ask(app, "POST", f"{ROOT}/classify?top_k=1", body=png()))
    assert len(best.json["probabilities"]) == 1
    assert len(best.json["request_id"]) == 32


@pytest.mark.parametrize("given", ["", "x" * 200, "a\nb", "\u00e9"])
def test_an_odd_request_id_is_replaced(app: ModelApp, given: str) -> None:
    headers = {"x-request-id": given}
    answer = _get(ask(app, "POST", f"{ROOT}/classify", body=png(), headers=headers))
    assert answer.json["request_id"] != given
    assert len(answer.json["request_id"]) == 32


def test_a_large_image_is_decoded_apart(app: ModelApp) -> None:
    rng = np.random.default_rng(0)
    flat = np.full((90, 110), 7, np.uint8)
    assert _get(ask(app, "POST", f"{ROOT}/classify", body=png(flat))).status == 200
    noise = rng.integers(0, 255, (60, 60), dtype=np.uint8)
    assert _get(ask(app, "POST", f"{ROOT}/classify", body=png(noise))).status == 200


@pytest.mark.parametrize("mounted", ["", ROOT, "/outer"])
def test_the_application_works_wherever_it_is_mounted(app: ModelApp, mounted: str) -> None:
    path = f"/outer{ROOT}" if mounted == "/outer" else ROOT
    for end in ("", "/"):
        answer = _get(ask(app, "GET", path + end, root_path=mounted))
        assert answer.json["name"] == "tiny"
        assert answer.json["versions"] == ["1", "2"]
    assert _get(ask(app, "GET", f"{path}/ready", root_path=mounted)).json["ready"] is True
    assert _get(ask(app, "GET", f"{path}/versions/2", root_path=mounted)).headers[
        "x-raybridge-version"
    ] == ("2")


@pytest.mark.parametrize(
    ("encode", "name"), [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (bytes, "identity")]
)
def test_compressed_bodies_are_read(app: ModelApp, encode: Any, name: str) -> None:
    answer = _get(
        ask(
            app,
            "POST",
            f"{ROOT}/infer",
            body=encode(infer_body()),
            headers={"content-encoding": name},
        )
    )
    assert answer.status == 200


def test_a_body_in_chunks_is_read(app: ModelApp) -> None:
    body = infer_body()
    chunks = [body[:10], b"", body[10:50], body[50:]]
    assert _get(ask(app, "POST", f"{ROOT}/infer", body=chunks)).status == 200


BOMB = gzip.compress(bytes(10 * 2**20))
PNG_TYPE = {"content-type": "image/png"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/infer", b"{}", {}, 400),
        ("POST", "/infer", b"x", {"content-type": "application/octet-stream"}, 400),
        ("POST", "/infer", b"x", {"content-type": "text/plain"}, 415),
        ("POST", "/infer", b"x", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/infer", bytes(4097), {}, 413),
        ("POST", "/infer", bytes(4096), {}, 400),
        ("POST", "/infer", [bytes(3000), bytes(3000), bytes(3000)], {}, 413),
        ("POST", "/infer", b"x", {"content-length": "99999999999999999999"}, 413),
        ("POST", "/infer", b"x", {"content-length": "-5"}, 400),
        (
            "POST",
            "/infer",
            BOMB[:4096],
            {"content-encoding": "gzip", "content-length": "4096"},
            413,
        ),
        ("POST", "/infer", b"junk", {"content-encoding": "gzip"}, 400),
        ("POST", "/infer", gzip.compress(b"{}", mtime=0)[:-3], {"content-encoding": "gzip"}, 400),
        ("POST", "/infer", gzip.compress(b"{}", mtime=0) + b"x", {"content-encoding": "gzip"}, 400),
        ("POST", "/infer", b"x", {"content-encoding": "br"}, 415),
        ("POST", "/infer", b"x", {"content-encoding": "gzip, gzip"}, 415),
        ("GET", "/infer", b"", {}, 405),
        ("PUT", "", b"", {}, 405),
        ("HEAD", "/ready", b"", {}, 405),
        ("POST", "/versions/9/infer", b"{}", {}, 404),
        ("POST", "/versions//infer", b"{}", {}, 404),
        ("GET", "/versions/9", b"", {}, 404),
        ("GET", "/versions", b"", {}, 404),
        ("GET", "/metadata", b"", {}, 404),
        ("GET", "/ready/now", b"", {}, 404),
        ("POST", "/classify", b"", PNG_TYPE, 400),
        ("POST", "/classify", b"hello", PNG_TYPE, 415),
        ("POST", "/classify", png()[:50], PNG_TYPE, 400),
        ("POST", "/classify", png(np.zeros((101, 100), np.uint8)), PNG_TYPE, 413),
        ("POST", "/classify", png(), {"content-type": "multipart/form-data; boundary=x"}, 415),
        ("POST", "/classify?top_k=x", png(), PNG_TYPE, 400),
        ("POST", "/classify?top_k=", png(), PNG_TYPE, 400),
        ("POST", "/classify?top_k=0", png(), PNG_TYPE, 400),
        ("POST", "/classify?top_k=-1", png(), PNG_TYPE, 400),
        ("POST", "/classify?k=1", png(), PNG_TYPE, 400),
        ("POST", "/classify?" + "&".join("top_k=1" for _ in range(50)), png(), PNG_TYPE, 400),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str | int) else "-",
)
def test_mistakes_are_4xx_in_json(
    app: ModelApp, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    answer = _get(ask(app, method, ROOT + path, body=body, headers=headers))
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-raybridge-version"] == "1"
    assert list(answer.json) == ["error"]
    if status == 405:
        assert answer.headers["allow"] in ("GET", "POST")
    assert _get(ask(app, "POST", f"{ROOT}/infer", body=infer_body())).status == 200
