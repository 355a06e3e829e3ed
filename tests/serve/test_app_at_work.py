"""A model's application with many requests: queues, failures, callers that leave, rollouts."""

import asyncio
import json
import threading
import time
from typing import Any

import numpy as np
from asgi import Answer, ask
from tiny import ROOT, ListSink, infer_body, png

from cluster.bundle import Bundle
from serve.app import ModelApp
from serve.config import ReplicaConfig
from serve.document import ServedDocument, ServedVersion
from serve.metrics import Meter
from serve.predictor import LoadedModel, Predictor


def test_a_client_that_goes_away_is_no_error(app: ModelApp, meter: Meter, sink: ListSink) -> None:
    gone = ask(app, "POST", f"{ROOT}/infer", body=[b"{"], disconnect=True)
    assert asyncio.run(gone) is None
    meter.flush()
    assert sink.values[0][2]["code"] == "499"


def _replace_run(predictor: Predictor, run: Any) -> LoadedModel:
    model = predictor.table.main
    vars(model.batcher)["_run"] = run
    return model


def _hold_run(predictor: Predictor, batches: list[int]) -> threading.Event:
    """Let forward passes wait for the event, and list their sizes."""
    run = vars(predictor.table.main.batcher)["_run"]
    go = threading.Event()

    def wait_and_run(images: Any) -> Any:
        batches.append(len(images))
        assert go.wait(20)
        return run(images)

    _replace_run(predictor, wait_and_run)
    return go


def test_what_nobody_waits_for_any_more_is_not_computed(
    app: ModelApp, predictor: Predictor, meter: Meter, sink: ListSink
) -> None:
    batches: list[int] = []
    go = _hold_run(predictor, batches)
    leaves = asyncio.Event()

    async def main() -> list[Answer | None]:
        first = asyncio.create_task(ask(app, "POST", f"{ROOT}/infer", body=infer_body()))
        while not batches:
            await asyncio.sleep(0.01)
        others = [
            asyncio.create_task(ask(app, "POST", ROOT + path, body=body, leaves=event))
            for path, body in (("/infer", infer_body()), ("/classify", png()))
            for event in (leaves, None)
        ]
        await asyncio.sleep(0.05)
        assert app.in_work == 5
        leaves.set()
        while app.in_work > 3:
            await asyncio.sleep(0.01)
        go.set()
        return await asyncio.gather(first, *others)

    answers = asyncio.run(asyncio.wait_for(main(), 30))
    assert [answer and answer.status for answer in answers] == [200, None, 200, None, 200]
    assert sum(batches) == 3
    meter.flush()
    codes = [tags["code"] for name, _, tags in sink.values if name == "raybridge_requests"]
    assert sorted(codes) == ["200", "200", "499", "499"]


def test_a_failing_model_is_a_500_without_a_trace(app: ModelApp, predictor: Predictor) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("secret detail")

    _replace_run(predictor, fail)
    answer = asyncio.run(ask(app, "POST", f"{ROOT}/infer", body=infer_body()))
    assert answer is not None
    assert answer.status == 500
    assert "secret" not in answer.json["error"]


def test_too_many_requests_are_refused_at_once(app: ModelApp, predictor: Predictor) -> None:
    go = _hold_run(predictor, [])

    async def main() -> list[Answer | None]:
        tasks = [
            asyncio.create_task(ask(app, "POST", f"{ROOT}/infer", body=infer_body()))
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
            answer = await ask(app, "POST", f"{ROOT}/infer", body=infer_body())
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
                ask(app, "POST", f"{ROOT}/infer", body=infer_body()),
                ask(app, "POST", f"{ROOT}/classify", body=png()),
                ask(app, "POST", f"{ROOT}/classify", body=png(np.zeros((99, 99), np.uint8))),
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
            small = await ask(app, "POST", f"{ROOT}/infer", body=infer_body())
            assert small is not None
            assert small.status == 200
            answered += 1
        return await huge, answered

    huge, answered = asyncio.run(asyncio.wait_for(main(), 120))
    assert huge is not None
    assert huge.json["outputs"][0]["shape"] == [images, 2]
    assert answered > 20
