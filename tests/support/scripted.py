"""A server over a real socket that answers just as a test says."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator

Script = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""Told the number of a request, from 0 on, and where to write what."""


def answer(status: int = 200, body: bytes = b"{}", *headers: str) -> bytes:
    """A whole HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def scripted_server(script: Script) -> Iterator[int]:
    """Run ``script`` for each request, in a thread of its own; gives the port."""
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()
    stops: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(script, ports, stops)))
    thread.start()
    try:
        yield ports.get(timeout=10)
    finally:
        stops.get(timeout=10)()
        thread.join()


async def _serve(
    script: Script,
    ports: "queue.SimpleQueue[int]",
    stops: "queue.SimpleQueue[Callable[[], object]]",
) -> None:
    requests = iter(range(1_000_000))
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await script(next(requests), writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    ports.put(server.sockets[0].getsockname()[1])
    stops.put(lambda: loop.call_soon_threadsafe(stop.set))
    await stop.wait()
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)
