"""A model's application, driven in process without Ray."""

import asyncio
import gzip
import io
import json
import threading
import time
import zlib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asgi import Answer, ask
from bundles import write_bundle
from PIL import Image

from cluster.bundle import Bundle
from cluster.runtime import open_session
from cluster.store import Store
from serve.app import ModelApp
from serve.config import ReplicaConfig, ServeConfig
from serve.document import ServedDocument, ServedDocuments, ServedVersion
from serve.metrics import Meter
from serve.predictor import LoadedModel, Predictor, open_model

ROOT = "/v2/models/tiny"
PIXELS = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
CONFIG = ReplicaConfig(max_body_bytes=4096, max_pixels=10_000, max_queued=8, max_batch_size=4)


class ListSink:
    """Remembers what a meter hands on."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, value: int, tags: Any) -> None:
        self.values.append((name, value, dict(tags)))

    def observe(self, name: str, value: float, tags: Any) -> None:
        self.values.append((name, value, dict(tags)))


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@pytest.fixture
def meter(sink: ListSink) -> Meter:
    return Meter("tiny", sink)


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    return [write_bundle(tmp_path / "bundles" / str(seed), seed=seed) for seed in (1, 2)]


@pytest.fixture
def predictor(bundles: list[Bundle], store: Store, meter: Meter) -> Iterator[Predictor]:
    documents = ServedDocuments(store)
    documents.write(
        ServedDocument(
            model="tiny",
            generation=1,
            versions=tuple(
                ServedVersion(
                    version=number, digest=bundle.digest, path=bundle.path, share=2 - number
                )
                for number, bundle in enumerate(bundles, 1)
            ),
            config=ServeConfig(replica=CONFIG),
        )
    )
    predictor = Predictor(
        "tiny", documents, lambda name, served: open_model(name, served, CONFIG, meter)
    )
    predictor.start()
    yield predictor
    for model in predictor.table.models.values():
        model.batcher.close()


@pytest.fixture
def app(predictor: Predictor, meter: Meter) -> ModelApp:
    return ModelApp(predictor, CONFIG, meter, "one")


def _png(pixels: Any = PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _infer_body() -> bytes:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 2, 3]}
    return json.dumps({"inputs": [{**tensor, "data": PIXELS.ravel().tolist()}]}).encode()


def _get(coroutine: Coroutine[Any, Any, Answer | None]) -> Answer:
    answer = asyncio.run(asyncio.wait_for(coroutine, 30))
    assert answer is not None
    return answer


def _expected(bundle: Bundle) -> Any:
    return open_session(bundle).run(PIXELS[None, None])[0]


def test_infer_answers_with_the_bundles_logits(app: ModelApp, bundles: list[Bundle]) -> None:
    for path, version in ((f"{ROOT}/infer", 1), (f"{ROOT}/versions/2/infer", 2)):
        answer = _get(ask(app, "POST", path, body=_infer_body()))
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
            body=_png(),
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
    assert _get(ask(app, "POST", f"{ROOT}/classify?&", body=_png())).status == 200
    best = _get(ask(app, "POST", f"{ROOT}/classify?top_k=1", body=_png()))
    assert len(best.json["probabilities"]) == 1
    assert len(best.json["request_id"]) == 32


@pytest.mark.parametrize("given", ["", "x" * 200, "a\nb", "\u00e9"])
def test_an_odd_request_id_is_replaced(app: ModelApp, given: str) -> None:
    headers = {"x-request-id": given}
    answer = _get(ask(app, "POST", f"{ROOT}/classify", body=_png(), headers=headers))
    assert answer.json["request_id"] != given
    assert len(answer.json["request_id"]) == 32


def test_a_large_image_is_decoded_apart(app: ModelApp) -> None:
    rng = np.random.default_rng(0)
    flat = np.full((90, 110), 7, np.uint8)
    assert _get(ask(app, "POST", f"{ROOT}/classify", body=_png(flat))).status == 200
    noise = rng.integers(0, 255, (60, 60), dtype=np.uint8)
    assert _get(ask(app, "POST", f"{ROOT}/classify", body=_png(noise))).status == 200


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
            body=encode(_infer_body()),
            headers={"content-encoding": name},
        )
    )
    assert answer.status == 200


def test_a_body_in_chunks_is_read(app: ModelApp) -> None:
    body = _infer_body()
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
        ("POST", "/infer", gzip.compress(b"{}")[:-3], {"content-encoding": "gzip"}, 400),
        ("POST", "/infer", gzip.compress(b"{}") + b"x", {"content-encoding": "gzip"}, 400),
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
        ("POST", "/classify", _png()[:50], PNG_TYPE, 400),
        ("POST", "/classify", _png(np.zeros((101, 100), np.uint8)), PNG_TYPE, 413),
        ("POST", "/classify", _png(), {"content-type": "multipart/form-data; boundary=x"}, 415),
        ("POST", "/classify?top_k=x", _png(), PNG_TYPE, 400),
        ("POST", "/classify?top_k=", _png(), PNG_TYPE, 400),
        ("POST", "/classify?top_k=0", _png(), PNG_TYPE, 400),
        ("POST", "/classify?top_k=-1", _png(), PNG_TYPE, 400),
        ("POST", "/classify?k=1", _png(), PNG_TYPE, 400),
        ("POST", "/classify?" + "&".join("top_k=1" for _ in range(50)), _png(), PNG_TYPE, 400),
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
    assert _get(ask(app, "POST", f"{ROOT}/infer", body=_infer_body())).status == 200


def test_a_client_that_goes_away_is_no_error(app: ModelApp, meter: Meter, sink: ListSink) -> None:
    gone = ask(app, "POST", f"{ROOT}/infer", body=[b"{"], disconnect=True)
    assert asyncio.run(gone) is None
    meter.flush()
    assert sink.values[0][2]["code"] == "499"


def _replace_run(predictor: Predictor, run: Any) -> LoadedModel:
    model = predictor.table.main
    vars(model.batcher)["_run"] = run
    return model


def test_a_failing_model_is_a_500_without_a_trace(app: ModelApp, predictor: Predictor) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("secret detail")

    _replace_run(predictor, fail)
    answer = _get(ask(app, "POST", f"{ROOT}/infer", body=_infer_body()))
    assert answer.status == 500
    assert "secret" not in answer.json["error"]


def test_too_many_requests_are_refused_at_once(app: ModelApp, predictor: Predictor) -> None:
    run = vars(predictor.table.main.batcher)["_run"]
    go = threading.Event()

    def wait_and_run(images: Any) -> Any:
        assert go.wait(20)
        return run(images)

    _replace_run(predictor, wait_and_run)

    async def main() -> list[Answer | None]:
        tasks = [
            asyncio.create_task(ask(app, "POST", f"{ROOT}/infer", body=_infer_body()))
            for _ in range(12)
        ]
        await asyncio.sleep(0.2)
        refused = [task for task in tasks if task.done()]
        assert len(refused) == 4
        assert app.in_work == 8
        # Who asks for health is not turned away.
        ready = await ask(app, "GET", f"{ROOT}/ready")
        assert ready is not None
        assert ready.status == 200
        go.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(asyncio.wait_for(main(), 30))
    statuses = [answer.status for answer in answers if answer]
    assert sorted(statuses) == [200] * 8 + [503] * 4
    assert app.in_work == 0
    assert all(answer.headers["x-raybridge-replica"] == "one" for answer in answers if answer)
    (refusal, *_) = (answer for answer in answers if answer and answer.status == 503)
    assert refusal.headers["retry-after"] == "1"
    assert "overloaded" in refusal.json["error"]


def test_shares_split_the_traffic_and_versions_are_counted(
    app: ModelApp, predictor: Predictor, meter: Meter, sink: ListSink
) -> None:
    documents = predictor._documents
    document = documents.read("tiny")
    assert document is not None
    halves = tuple(one.model_copy(update={"share": 0.5}) for one in document.versions)
    documents.write(document.model_copy(update={"generation": 2, "versions": halves}))
    assert predictor.follow()

    async def main() -> list[str]:
        versions = []
        for _ in range(60):
            answer = await ask(app, "POST", f"{ROOT}/infer", body=_infer_body())
            assert answer is not None
            versions.append(answer.headers["x-raybridge-version"])
        return versions

    versions = asyncio.run(main())
    assert set(versions) == {"1", "2"}
    meter.flush()
    counted = {
        tags["version"]: value
        for name, value, tags in sink.values
        if name == "raybridge_requests" and tags["code"] == "200"
    }
    assert counted == {"1": versions.count("1"), "2": versions.count("2")}
    latencies = [value for name, value, _ in sink.values if name == "raybridge_request_latency_ms"]
    assert len(latencies) == 60
    assert all(0 < value < 10_000 for value in latencies)
    assert sum(name == "raybridge_batch_size" for name, _, _ in sink.values) == 60


def test_requests_go_on_while_versions_change(
    app: ModelApp, predictor: Predictor, bundles: list[Bundle]
) -> None:
    documents = predictor._documents
    stop = threading.Event()

    def change() -> None:
        generation = 2
        while not stop.is_set():
            bundle = bundles[generation % 2]
            served = ServedVersion(
                version=generation % 2 + 1, digest=bundle.digest, path=bundle.path
            )
            documents.write(ServedDocument(model="tiny", generation=generation, versions=(served,)))
            predictor.follow()
            generation += 1
            time.sleep(0.01)

    async def main() -> set[int]:
        statuses = set()
        for _ in range(150):
            answers = await asyncio.gather(
                ask(app, "POST", f"{ROOT}/infer", body=_infer_body()),
                ask(app, "POST", f"{ROOT}/classify", body=_png()),
                ask(app, "POST", f"{ROOT}/classify", body=_png(np.zeros((99, 99), np.uint8))),
            )
            statuses |= {answer.status for answer in answers if answer}
        return statuses

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert asyncio.run(main()) == {200}
    finally:
        stop.set()
        thread.join()


def test_a_huge_request_does_not_hold_up_small_ones(predictor: Predictor, meter: Meter) -> None:
    app = ModelApp(predictor, ReplicaConfig(max_body_bytes=2**20, max_batch_size=4), meter, "one")
    images = 100_000
    pixels = {"name": "images", "datatype": "UINT8", "shape": [images, 1, 2, 3]}
    header = {"inputs": [{**pixels, "parameters": {"binary_data_size": 6 * images}}]}
    body = json.dumps(header).encode()
    headers = {"inference-header-content-length": str(len(body))}

    async def main() -> tuple[Answer | None, int]:
        huge = asyncio.create_task(
            ask(app, "POST", f"{ROOT}/infer", body=body + bytes(6 * images), headers=headers)
        )
        answered = 0
        while not huge.done():
            small = await ask(app, "POST", f"{ROOT}/infer", body=_infer_body())
            assert small is not None
            assert small.status == 200
            answered += 1
        return await huge, answered

    huge, answered = asyncio.run(asyncio.wait_for(main(), 120))
    assert huge is not None
    assert huge.json["outputs"][0]["shape"] == [images, 2]
    assert answered > 20
