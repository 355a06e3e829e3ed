"""The light application at ``/``: server metadata, health of all models together, the listing.

    GET /v2    GET /v2/health/live    GET /v2/health/ready    GET /v2/models

Serve's own ``/-/healthz`` says 200 as soon as any application is up; here ready means that every
deployed model answers.
"""

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serve.http import (
    Receive,
    Scope,
    Send,
    method_not_allowed,
    run_lifespan,
    send_error,
    send_json,
)
from serve.protocol import EXTENSIONS, RequestError

SERVER_NAME = "raybridge"


@dataclass(frozen=True)
class ModelState:
    """How one model stands in the cluster."""

    ready: bool
    """It answers now, or is allowed to sleep and wakes up when asked."""
    status: str
    """One word for people, such as RUNNING or DEPLOYING."""
    versions: tuple[int, ...]


States = Mapping[str, ModelState]


def server_version() -> str:
    """Version of the installed package."""
    try:
        return importlib.metadata.version("raybridge")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


class RootApp:
    """Answers whatever no model's application answers."""

    def __init__(self, states: Callable[[], States]) -> None:
        """``states`` gives the latest known state of every deployed model, at once."""
        self._states = states
        self._server = {
            "name": SERVER_NAME,
            "version": server_version(),
            "extensions": list(EXTENSIONS),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            status, body = self._answer(scope)
            await send_json(send, body, status=status)
        except RequestError as error:
            await send_error(send, error)

    def _answer(self, scope: Scope) -> tuple[int, dict[str, Any]]:
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") or "/"
        handler = {
            "/": self._metadata,
            "/v2": self._metadata,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2/models": self._models,
        }.get(path)
        if handler is None:
            raise self._unknown(path)
        if scope["method"] != "GET":
            raise method_not_allowed(scope["method"], "GET")
        return handler()

    def _metadata(self) -> tuple[int, dict[str, Any]]:
        return 200, self._server

    def _live(self) -> tuple[int, dict[str, Any]]:
        return 200, {"live": True, "ready": self._is_ready(self._states())}

    def _ready(self) -> tuple[int, dict[str, Any]]:
        states = self._states()
        ready = self._is_ready(states)
        body = {
            "live": True,
            "ready": ready,
            "models": {name: state.ready for name, state in states.items()},
        }
        return (200 if ready else 503), body

    def _models(self) -> tuple[int, dict[str, Any]]:
        listed = [
            {
                "name": name,
                "versions": [str(version) for version in state.versions],
                "ready": state.ready,
                "status": state.status,
            }
            for name, state in self._states().items()
        ]
        return 200, {"models": listed}

    @staticmethod
    def _is_ready(states: States) -> bool:
        return bool(states) and all(state.ready for state in states.values())

    def _unknown(self, path: str) -> RequestError:
        prefix, _, rest = path.partition("/v2/models/")
        name = rest.split("/")[0]
        states = self._states()
        if prefix or not name:
            return RequestError(404, "no such path; see /v2, /v2/health/ready and /v2/models")
        if name not in states:
            served = ", ".join(states) or "none"
            return RequestError(404, f"unknown model {name[:64]!r}; served: {served}")
        if states[name].ready:
            return RequestError(404, f"write /v2/models/{name} without escapes")
        return RequestError(
            503, f"model {name!r} is not up yet: {states[name].status}", ((b"retry-after", b"1"),)
        )
