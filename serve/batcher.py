"""Dynamic batching in one process: idle means run at once, busy means gather what arrives.

One thread owns one session. While it computes, which releases the interpreter, requests pile up;
it then takes as many as fit. So batches grow with load and a lone request never waits. A request
larger than a batch is worked on slice by slice, and lets the others through in between.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Item:
    rows: int
    images: Images | Callable[[], Images]
    future: asyncio.Future[Logits]
    loop: asyncio.AbstractEventLoop
    parts: list[Logits] = field(default_factory=list)
    """Answers to the slices so far, of an input larger than a batch."""


class ClosedError(Exception):
    """The batcher takes no more; its version has been replaced."""


class Batcher:
    """Runs ``[n, ...]`` inputs through ``run`` in batches of at most ``max_batch_size`` rows.

    An input with more rows than that goes in slices, each a batch of its own, and queues again
    after each: whatever its size, another one waits for one slice of it. An input may be a function
    that makes one row, such as an image decoder: it is called in the batching thread, and if it
    raises, its own request fails and the batch goes on.
    """

    def __init__(
        self,
        run: Callable[[Images], Logits],
        *,
        max_batch_size: int,
        wait_s: float = 0.0,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Start the thread.

        Args:
            run: the forward pass.
            max_batch_size: rows of one forward pass.
            wait_s: how long the first request of a batch waits for others.
            on_batch: told the rows of every batch, in the batching thread.
        """
        self._run = run
        self._max_rows = max_batch_size
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._held: _Item | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, images: Images | Callable[[], Images], rows: int) -> asyncio.Future[Logits]:
        """Queue an input of ``rows`` rows; call it from a running event loop.

        Raises:
            ClosedError: :meth:`close` was called.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Logits] = loop.create_future()
        # Without the lock an item could land behind the end mark and never be answered.
        with self._lock:
            if self._closed:
                raise ClosedError
            self._queue.put(_Item(rows, images, future, loop))
        return future

    def close(self) -> None:
        """Let the thread end once everything submitted so far is answered."""
        with self._lock:
            self._closed = True
            self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread after :meth:`close`; whether it ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not (self._closing and self._held is None and self._queue.empty()):
            items = self._gather()
            if items and items[0].rows > self._max_rows:
                self._advance(items[0])
            elif items:
                self._process(items)

    def _gather(self) -> list[_Item]:
        """The next batch: blocks for its first item, then takes what is there and fits."""
        first = self._held or self._queue.get()
        self._held = None
        if first is None:
            self._closing = True
            return []
        items = [first]
        rows = first.rows
        deadline = time.monotonic() + self._wait_s if self._wait_s else 0.0
        while rows < self._max_rows and not self._closing:
            try:
                if deadline:
                    item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                else:
                    item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._closing = True
            elif rows + item.rows > self._max_rows:
                self._held = item
                break
            else:
                items.append(item)
                rows += item.rows
        return items

    def _advance(self, item: _Item) -> None:
        """Run the next slice of an input that is larger than a batch."""
        if item.future.cancelled():
            return
        assert not callable(item.images)
        start = len(item.parts) * self._max_rows
        try:
            item.parts.append(self._forward(item.images[start : start + self._max_rows]))
        except Exception as error:  # noqa: BLE001 - engines raise their own kinds; requests see it
            _deliver(item.loop, [(item.future, error)])
            return
        if start + self._max_rows < item.rows:
            self._queue.put(item)
        else:
            _deliver(item.loop, [(item.future, np.concatenate(item.parts))])

    def _process(self, items: list[_Item]) -> None:
        ready: list[_Item] = []
        inputs: list[Images] = []
        for item in items:
            if item.future.cancelled():
                continue
            try:
                inputs.append(item.images() if callable(item.images) else item.images)
            except Exception as error:  # noqa: BLE001 - it fails its own request only
                _deliver(item.loop, [(item.future, error)])
                continue
            ready.append(item)
        if not ready:
            return
        try:
            logits = self._forward(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))
        except Exception as error:  # noqa: BLE001 - engines raise their own kinds; requests see it
            _deliver(ready[0].loop, [(item.future, error) for item in ready])
            return
        start = 0
        answers: list[tuple[asyncio.Future[Logits], Logits | Exception]] = []
        for item in ready:
            answers.append((item.future, logits[start : start + item.rows]))
            start += item.rows
        _deliver(ready[0].loop, answers)

    def _forward(self, images: Images) -> Logits:
        self._on_batch(len(images))
        return self._run(images)


def _deliver(
    loop: asyncio.AbstractEventLoop,
    answers: list[tuple[asyncio.Future[Logits], Logits | Exception]],
) -> None:
    # A closed loop raises: the server is gone, and so is everyone who asked.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, answers)


def _settle(answers: list[tuple[asyncio.Future[Logits], Logits | Exception]]) -> None:
    for future, answer in answers:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
