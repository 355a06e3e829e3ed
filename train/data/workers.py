"""One function over many tasks on all cores, in order, in bounded memory."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

import numpy as np  # noqa: F401 - BLAS must be there to be told of its threads
from threadpoolctl import threadpool_limits

from cluster.errors import RaybridgeError

T = TypeVar("T")
R = TypeVar("R")

PATIENCE_S = 0.25
"""A pool takes about this long to start: less work than that is done without one."""
_WAITING_PER_PROCESS = 3


class Workers:
    """Runs a function over tasks; in processes as soon as that pays.

    The processes are spawned, since a fork of a process with threads (Arrow's, PyTorch's) may hang.
    Each of them, and this one meanwhile, uses one thread for algebra: BLAS's threads wait by
    spinning, and those of all processes would fight for the cores.

    They do not hear Ctrl-C: the parent does, and ends them. If the parent is killed, they end by
    themselves.

    Args:
        processes: how many; by default one for each CPU that this process may use.
        patience_s: work this long before they are started.
    """

    def __init__(self, processes: int | None = None, patience_s: float = PATIENCE_S) -> None:
        self.processes = usable_cpus() if processes is None else processes
        self._patience_s = patience_s if self.processes > 1 else float("inf")
        self._pool: ProcessPoolExecutor | None = None
        self._starting: list[Future[None]] = []
        self._limits = contextlib.ExitStack()

    def __enter__(self) -> "Workers":
        self._limits.enter_context(_one_thread())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._limits.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Generator[R]:
        """Results in the order of the tasks, which are drawn as they are needed.

        Until the processes are there, this one works. A generator that is closed before its end
        leaves no task behind that still runs.

        Args:
            function: of a module, so that a process can import it; likewise what it takes and
                gives must be small or cheap to copy.
            tasks: may be more than fit in memory.

        Raises:
            RaybridgeError: a process was killed.
        """
        began = time.monotonic()
        coming = iter(tasks)
        waiting: deque[Future[R]] = deque()
        try:
            while (pool := self._running_pool(function, began)) is None:
                try:
                    task = next(coming)
                except StopIteration:
                    return
                yield function(task)
            for task in coming:
                with _interrupts_held():
                    waiting.append(pool.submit(function, task))
                if len(waiting) > _WAITING_PER_PROCESS * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RaybridgeError(
                "a decoding process was killed, perhaps for want of memory"
            ) from None
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def _running_pool(
        self, function: Callable[..., object], began: float
    ) -> ProcessPoolExecutor | None:
        """The pool once its processes are there; it is started when patience is at its end."""
        if self._pool is None and time.monotonic() - began >= self._patience_s:
            self._pool = ProcessPoolExecutor(
                self.processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
            )
            with _interrupts_held():
                self._starting = [
                    self._pool.submit(_import, function) for _ in range(self.processes)
                ]
        if self._pool is None or not all(future.done() for future in self._starting):
            return None
        for future in self._starting:
            future.result()
        return self._pool


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _one_thread() -> threadpool_limits:
    """BLAS in one thread until it is closed."""
    return threadpool_limits(1, user_api="blas")


def _import(function: Callable[..., object]) -> None:
    """In a new process: its arrival is what imports the function's module."""


def _begin() -> None:
    """In a new process: one thread for algebra, and an end when the parent's comes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _one_thread()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """No signal ends this process before one that it starts has been told what to do.

    That one inherits the mask, and so never sees Ctrl-C.
    """
    before: Any = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
