"""A shorter way to a model, past what Ray Serve does for every request of a replica.

Between its HTTP server and an application, Serve makes two request ids, reads every header twice,
enters four context managers and observes two metrics: as much CPU time as a third of a request to
a small model. A replica of ours needs none of it but the number of requests in work, by which
Serve scales and lets replicas go. So requests for the model go straight to it; Serve's own health
check and whatever else arrives goes the usual way. Of what is passed by, nothing else is missed:
Serve's request timeout is off unless somebody sets it, and :class:`serve.http.WhileConnected` ends
the work for clients that have gone.

Serve asks :func:`middlewares` for what stands before its own code, since
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it in the environment of replicas.
"""

from typing import Any

from ray.serve._private.common import RequestMetadata, RequestProtocol
from starlette.middleware import Middleware

from serve.http import REQUEST_ID_HEADER, Message, Receive, Scope, Send

SWITCH = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares"}
"""Environment of a replica that HAProxy reaches directly."""


def middlewares() -> list[Middleware]:
    """What Serve puts before its own request handling."""
    return [Middleware(Shortcut)]


class Shortcut:
    """Hands requests below the route of a replica to its application."""

    def __init__(self, app: Any) -> None:
        """``app`` is Serve's handling of a request: its middleware around a method of a replica."""
        self._usual = app
        replica = app._app.__self__
        self._model = replica._user_callable_asgi_app
        self._route: str = replica._route_prefix
        self._below = f"{self._route}/"
        self._counts = replica._metrics_manager
        # The counting looks at nothing but the protocol.
        self._any_request = RequestMetadata(
            request_id="",
            internal_request_id="",
            is_direct_ingress=True,
            _request_protocol=RequestProtocol.HTTP,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path.startswith(self._below) or path == self._route):
            await self._usual(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == REQUEST_ID_HEADER:
                send = _echoing(send, value)
                break
        self._counts.inc_num_ongoing_requests(self._any_request)
        try:
            await self._model(scope, receive, send)
        finally:
            self._counts.dec_num_ongoing_requests(self._any_request)


def _echoing(send: Send, request_id: bytes) -> Send:
    """Send answers with the id that the client gave its request, as Serve does."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].append((REQUEST_ID_HEADER, request_id))
        await send(message)

    return send_with_id
