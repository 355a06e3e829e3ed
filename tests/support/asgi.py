"""Calls an ASGI application in process, as a server would."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serve.http import Message, Receive, Scope, Send


@dataclass(frozen=True)
class Answer:
    """What the application sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


async def ask(
    app: Any,
    method: str,
    path: str,
    *,
    body: bytes | Iterable[bytes] = b"",
    headers: dict[str, str] | None = None,
    root_path: str = "",
    disconnect: bool = False,
    leaves: asyncio.Event | None = None,
) -> Answer | None:
    """Make one request.

    Args:
        app: the application.
        method: the verb.
        path: with its query.
        body: whole, or in chunks (then without a Content-Length).
        headers: of the request.
        root_path: where the server has mounted the application.
        disconnect: go away after the given chunks instead of finishing.
        leaves: tells when to go away after finishing; without it the answer is waited for.

    Returns:
        The answer; None if there was none.
    """
    whole = isinstance(body, bytes)
    chunks = [body] if isinstance(body, bytes) else list(body)
    given = {name.lower(): value for name, value in (headers or {}).items()}
    if whole and "content-length" not in given:
        given["content-length"] = str(len(chunks[0]))
    messages: list[Message] = [
        {
            "type": "http.request",
            "body": chunk,
            "more_body": disconnect or number < len(chunks) - 1,
        }
        for number, chunk in enumerate(chunks)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        if not disconnect:
            await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    plain, _, query = path.partition("?")
    scope: Scope = {
        "type": "http",
        "method": method,
        "path": plain,
        "root_path": root_path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    await app(scope, receive, send)
    if not sent:
        return None
    start, *bodies = sent
    answer = Answer(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message["body"] for message in bodies),
    )
    assert int(answer.headers["content-length"]) == len(answer.body)
    return answer


__all__ = ["Answer", "Receive", "Send", "ask"]
