"""The root application: health of all, the listing, and everything that is nowhere else."""

import asyncio

import pytest
from asgi import Answer, ask

from serve.root import ModelState, RootApp, States

UP = ModelState(ready=True, status="RUNNING", versions=(1, 2))
STARTING = ModelState(ready=False, status="DEPLOYING", versions=(3,))


def _ask(states: States, method: str, path: str) -> Answer:
    answer = asyncio.run(ask(RootApp(lambda: states), method, path))
    assert answer is not None
    assert answer.headers["x-raybridge-version"]
    assert answer.headers["content-type"] == "application/json"
    return answer


@pytest.mark.parametrize(
    ("states", "status"), [({"a": UP}, 200), ({"a": UP, "b": STARTING}, 503), ({}, 503)]
)
def test_ready_means_every_model(states: States, status: int) -> None:
    answer = _ask(states, "GET", "/v2/health/ready")
    assert answer.status == status
    assert answer.json == {
        "live": True,
        "ready": status == 200,
        "models": {name: state.ready for name, state in states.items()},
    }
    live = _ask(states, "GET", "/v2/health/live")
    assert (live.status, live.json["live"]) == (200, True)


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/"])
def test_server_metadata(path: str) -> None:
    answer = _ask({}, "GET", path)
    assert answer.json["name"] == "raybridge"
    assert answer.json["extensions"] == ["binary_tensor_data", "classification"]
    assert answer.json["version"]


def test_the_listing() -> None:
    listed = _ask({"a": UP, "b": STARTING}, "GET", "/v2/models").json["models"]
    assert listed == [
        {"name": "a", "versions": ["1", "2"], "ready": True, "status": "RUNNING"},
        {"name": "b", "versions": ["3"], "ready": False, "status": "DEPLOYING"},
    ]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v2/models/zzz/infer", 404, "unknown model 'zzz'; served: a, b"),
        ("/v2/models/" + "z" * 5000, 404, "unknown model"),
        ("/v2/models/b/infer", 503, "not up yet: DEPLOYING"),
        ("/v2/models/a", 404, "without escapes"),
        ("/v2/models//infer", 404, "no such path"),
        ("/favicon.ico", 404, "no such path"),
        ("/x/v2/models/a", 404, "no such path"),
    ],
)
def test_what_is_not_here(path: str, status: int, message: str) -> None:
    answer = _ask({"a": UP, "b": STARTING}, "POST", path)
    assert answer.status == status
    assert message in answer.json["error"]
    assert len(answer.body) < 300
    assert ("retry-after" in answer.headers) == (status == 503)


def test_only_get() -> None:
    answer = _ask({"a": UP}, "POST", "/v2/models")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
