"""The little HTTP that our ASGI applications share: bodies in within limits, answers out."""

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from uuid import uuid4

from serve.protocol import JSON_TYPE, RequestError, encode_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Mapping[bytes, bytes]
Header = tuple[bytes, bytes]

VERSION_HEADER = b"x-raybridge-version"
"""On every answer of ours: a client can tell our 404 from a proxy's."""
REPLICA_HEADER = b"x-raybridge-replica"
"""Which replica answered, on the answers of models."""
REQUEST_ID_HEADER = b"x-request-id"
UNVERSIONED: tuple[Header, ...] = ((VERSION_HEADER, b"-"),)
"""Marks an answer that is ours, but no model's."""

_PATIENCE_S = 0.2
_DISCARD_BYTES = 64 * 2**20
_DISCARD_S = 10.0
_MAX_ID_BYTES = 128


class Disconnected(Exception):
    """The client went away before it had its answer."""


class WhileConnected:
    """A block of work that ends with :class:`Disconnected` when the client goes away.

    Watching costs as much as a small request, so that begins only where the work takes long: there
    requests queue, and answers for clients that have given up would hold up the others.
    """

    def __init__(self, receive: Receive) -> None:
        """``receive`` of a request whose body has been read."""
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        self._work = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._begin)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._gone and self._work is not None:
            # Whoever else cancelled us meanwhile is to be obeyed.
            others = self._work.uncancel()
            if kind is asyncio.CancelledError and others == 0:
                raise Disconnected

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._work is not None:
            self._gone = self._work.cancel()


def request_headers(scope: Scope) -> dict[bytes, bytes]:
    """Headers by lower-case name; of a repeated one the last."""
    return dict(scope["headers"])


def request_id(headers: Headers) -> str:
    """The client's ``x-request-id`` if it is short printable ASCII, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, b"")
    if 0 < len(given) <= _MAX_ID_BYTES and given.isascii():
        text = given.decode("ascii")
        if text.isprintable():
            return text
    return uuid4().hex


def media_type(headers: Headers) -> bytes:
    """The content type without its parameters, in lower case; empty if there is none."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


async def read_body(receive: Receive, headers: Headers, max_bytes: int) -> bytes:
    """Read a request's body and undo its content encoding.

    Raises:
        RequestError: 413 over ``max_bytes`` before or after decompression, 415 for an encoding
            other than gzip or deflate, 400 for damaged data or a senseless Content-Length.
        Disconnected: the client did not finish.
    """
    announced = headers.get(b"content-length")
    if announced is not None:
        if not announced.isdigit():
            raise RequestError(400, "Content-Length is not a number")
        if len(announced) > 18 or int(announced) > max_bytes:
            await _discard(receive)
            raise too_large(max_bytes)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        body = await _read_rest(receive, body, max_bytes)
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else _decompress(body, encoding, max_bytes)


def too_large(max_bytes: int) -> RequestError:
    """413 with the limit."""
    return RequestError(413, f"the body is too large; at most {max_bytes} bytes are accepted")


async def send_response(
    send: Send, status: int, body: bytes, headers: Iterable[Header], marks: Iterable[Header]
) -> None:
    """Answer with ``body``; ``marks`` say whose answer it is."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, length, *marks],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def send_json(
    send: Send, value: Any, *, status: int = 200, marks: Iterable[Header] = UNVERSIONED
) -> None:
    """Answer with JSON."""
    body = value if isinstance(value, bytes) else encode_json(value)
    await send_response(send, status, body, [(b"content-type", JSON_TYPE)], marks)


async def send_error(
    send: Send, error: RequestError, marks: Iterable[Header] = UNVERSIONED
) -> None:
    """Answer with ``{"error": ...}``."""
    headers = [(b"content-type", JSON_TYPE), *error.headers]
    body = encode_json({"error": error.message})
    await send_response(send, error.status, body, headers, marks)


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer the ASGI lifespan events: nothing of ours hangs on them."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def method_not_allowed(method: str, allowed: str) -> RequestError:
    """405 with the ``Allow`` header."""
    return RequestError(
        405, f"{method} is not allowed here; use {allowed}", ((b"allow", allowed.encode()),)
    )


async def _read_rest(receive: Receive, first: bytes, max_bytes: int) -> bytes:
    chunks = [first]
    size = len(first)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            if more:
                await _discard(receive)
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


async def _discard(receive: Receive) -> None:
    """Read what a client still sends, within reason: many look for an answer only then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            size = 0
            while size <= _DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _decompress(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    name = encoding.strip().lower()
    if name == b"identity":
        return body
    if name not in (b"gzip", b"deflate"):
        raise RequestError(415, "Content-Encoding: only gzip and deflate are accepted")
    # 32 + 15 takes a gzip or a zlib header; "deflate" is the latter by its standard.
    decoder = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        plain = decoder.decompress(body, max_bytes + 1)
    except zlib.error:
        raise RequestError(400, f"the body is not valid {name.decode()} data") from None
    if len(plain) > max_bytes:
        raise too_large(max_bytes)
    if not decoder.eof or decoder.unused_data:
        raise RequestError(400, f"the body is not one complete {name.decode()} stream")
    return plain
