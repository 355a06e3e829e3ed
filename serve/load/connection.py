"""One keep-alive connection of the load generator: HTTP/1.1, one request at a time."""

import asyncio
from typing import Protocol, cast

import httptools

from serve.http import REPLICA_HEADER, VERSION_HEADER

_LONGEST_HEADER = max(len(VERSION_HEADER), len(REPLICA_HEADER))


class Owner(Protocol):
    """Hears what becomes of a request."""

    def answered(self, connection: "Connection") -> None:
        """The answer is complete; :attr:`Connection.reusable` says if another may be asked for."""

    def broken(self, connection: "Connection", kind: str) -> None:
        """The connection ended; it was :attr:`Connection.busy`, or idle."""


class Connection(asyncio.Protocol):
    """What the last request was and got. Callbacks, not tasks: a request costs a few µs."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._ended = False
        self.problem: str | None = None
        """How it ended, if it did not on our side."""
        self.busy = False
        self.meant_s = 0.0
        """When the request should have been sent, on the monotonic clock."""
        self.sent_s = 0.0
        """When it was tried to be sent."""
        self.status = 0
        self.version = b""
        self.replica = b""
        self.received_bytes = 0
        self.reusable = True

    def send(self, request: bytes, meant_s: float, sent_s: float) -> None:
        """Send a whole request."""
        assert self._transport is not None
        self.busy, self.meant_s, self.sent_s = True, meant_s, sent_s
        self.version = self.replica = b""
        self.received_bytes = 0
        self._transport.write(request)

    def abandon(self) -> None:
        """Close at once, without telling the owner."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A piece of an answer, or several: an informational one (1xx) may go before."""
        self.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("protocol")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """The other side, or the network, closed."""
        self._end("reset")

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        if len(name) > _LONGEST_HEADER:
            return
        name = name.lower()
        if name == VERSION_HEADER:
            self.version = value
        elif name == REPLICA_HEADER:
            self.replica = value

    def on_message_complete(self) -> None:
        """httptools: the end of an answer."""
        self.status = self._parser.get_status_code()
        if self.status < 200 or not self.busy:
            return
        self.busy = False
        self.reusable = self._parser.should_keep_alive()
        self._owner.answered(self)

    def _end(self, kind: str) -> None:
        if not self._ended:
            self.abandon()
            self.problem = kind
            self._owner.broken(self, kind)
