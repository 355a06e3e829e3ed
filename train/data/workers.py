"""One function over many tasks on all cores, in order, in bounded memory."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from cluster.errors import RaybridgeError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 1.0
"""A pool takes about this long to start: less work than that is done without one."""
_WAITING_PER_PROCESS = 3


class Workers:
    """Runs a function over tasks; in processes as soon as that pays.

    The processes are spawned, since a fork of a process with threads (Arrow's, PyTorch's) may hang.
    They do not hear Ctrl-C: the parent does, and ends them. If the parent is killed, they end by
    themselves.

    Args:
        processes: how many; by default one for each CPU that this process may use.
        patience_s: work this long before the first is started.
    """

    def __init__(self, processes: int | None = None, patience_s: float = PATIENCE_S) -> None:
        self.processes = usable_cpus() if processes is None else processes
        self._patience_s = patience_s if self.processes > 1 else float("inf")
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Results in the order of the tasks, which are drawn as they are needed.

        Args:
            function: of a module, so that a process can import it; likewise what it takes and
                gives must be small or cheap to copy.
            tasks: may be more than fit in memory.

        Raises:
            RaybridgeError: a process was killed.
        """
        began = time.monotonic()
        coming = iter(tasks)
        while self._pool is None:
            if time.monotonic() - began > self._patience_s:
                self._pool = ProcessPoolExecutor(
                    self.processes,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_end_with_parent,
                )
                break
            try:
                task = next(coming)
            except StopIteration:
                return
            yield function(task)
        waiting: deque[Future[R]] = deque()
        try:
            for task in coming:
                with _interrupts_held():
                    waiting.append(self._pool.submit(function, task))
                if len(waiting) > _WAITING_PER_PROCESS * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RaybridgeError(
                "a decoding process was killed, perhaps for want of memory"
            ) from None


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent() -> None:
    """In a new process: end when the parent does, however it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started meanwhile inherits the mask, and so never sees Ctrl-C."""
    before: Any = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
