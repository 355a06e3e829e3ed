"""Past Ray Serve's handling of requests: what goes which way, and what is counted."""

import asyncio
from typing import Any

import pytest
from asgi import Answer, ask

from serve.http import Receive, Scope, Send, send_json
from serve.shortcut import Shortcut


class Counts:
    """Stands in for a replica's metrics manager."""

    def __init__(self) -> None:
        self.now = 0
        self.seen: list[int] = []

    def inc_num_ongoing_requests(self, request: Any) -> None:
        self.now += 1
        self.seen.append(self.now)

    def dec_num_ongoing_requests(self, request: Any) -> None:
        self.now -= 1


class Replica:
    """As much of Serve's replica as is leaned on."""

    _route_prefix = "/v2/models/tiny"

    def __init__(self) -> None:
        self._metrics_manager = Counts()

    async def _user_callable_asgi_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/broken"):
            raise RuntimeError("engine")
        await send_json(send, {"from": "model"})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"from": "serve"})


class Around:
    """As Serve's own middleware holds what it stands before."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def shortcut(replica: Replica) -> Shortcut:
    return Shortcut(Around(replica.handle))


def _ask(shortcut: Shortcut, path: str, **headers: str) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = asyncio.run(ask(shortcut, "POST", path, headers=given))
    assert answer is not None
    return answer


def test_the_model_is_asked_directly_and_counted(shortcut: Shortcut, replica: Replica) -> None:
    for path in ("/v2/models/tiny", "/v2/models/tiny/infer"):
        assert _ask(shortcut, path).json == {"from": "model"}
    assert replica._metrics_manager.seen == [1, 1]
    with pytest.raises(RuntimeError, match="engine"):
        _ask(shortcut, "/v2/models/tiny/broken")
    assert replica._metrics_manager.now == 0


def test_everything_else_goes_the_usual_way(shortcut: Shortcut, replica: Replica) -> None:
    for path in ("/-/healthz", "/-/routes", "/v2/models/tiny2/infer", "/"):
        assert _ask(shortcut, path).json == {"from": "serve"}
    assert replica._metrics_manager.seen == []


def test_a_request_id_comes_back(shortcut: Shortcut) -> None:
    assert _ask(shortcut, "/v2/models/tiny", x_request_id="r-7").headers["x-request-id"] == "r-7"
    assert "x-request-id" not in _ask(shortcut, "/v2/models/tiny").headers
