"""The load generator: a closed loop or a rate, on one core, with its own part in the figures known.

At a rate, arrivals are planned ahead and a latency counts from the planned time, sent or not: a
server that stalls delays all that should have been asked meanwhile, and callers would notice
(coordinated omission; https://github.com/giltene/wrk2 explains it, and measures likewise).
"""

import asyncio
import contextlib
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import uvloop

from serve.load.connection import Connection
from serve.load.recorder import Progress, Recorder
from serve.load.tally import LoadResult, Step, StepResult, Tally

FAILURES = ("timeout", "refused", "reset", "protocol", "network")
"""No answer in time; nothing listens; closed under a request; not HTTP; anything else."""

_SWEEP_S = 0.05
_REFUSED_PAUSE_S = 0.1
_PLANNED_AT_ONCE = 1000


@dataclass(frozen=True)
class Endpoint:
    """Where connections go to."""

    host: str
    port: int
    tls: bool = False


def run_load(
    endpoint: Endpoint, requests: Sequence[bytes], steps: Sequence[Step], progress: Progress
) -> LoadResult:
    """Run steps one after the other.

    Args:
        endpoint: the server.
        requests: whole HTTP/1.1 requests, sent in turn.
        steps: how to ask.
        progress: told of every second.
    """
    began_s = time.monotonic()
    results = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for step in steps:
            generator = Generator(endpoint, requests, step, began_s, progress)
            results.append(StepResult(step, runner.run(generator.run())))
    return LoadResult(tuple(results))


class Generator:
    """Runs one step: keeps what is due, gives it to free connections, watches the time."""

    def __init__(
        self,
        endpoint: Endpoint,
        requests: Sequence[bytes],
        step: Step,
        began_s: float,
        progress: Progress,
    ) -> None:
        """``began_s`` is when the first step began; for the others see :func:`run_load`."""
        self._endpoint = endpoint
        self._tls = ssl.create_default_context() if endpoint.tls else None
        self._requests: Iterator[bytes] = cycle(requests)
        self._step = step
        start_s = time.monotonic()
        self._start_s = start_s
        self._measure_s = start_s + step.warmup_s
        self._end_s = self._measure_s + step.duration_s
        self._recorder = Recorder(
            began_s, start_s, self._measure_s, self._end_s, progress, closed=step.rate is None
        )
        self._due: deque[float] = deque()
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._planning = step.rate is not None

    async def run(self) -> Tally:
        """Ask for as long as the step says, then wait for what is still unanswered."""
        self._loop = asyncio.get_running_loop()
        cpu = self._loop.create_task(self._measure_cpu())
        if self._step.rate is None:
            for _ in range(self._step.concurrency):
                self._fall_due(self._start_s)
        else:
            plan = (_arrivals(self._step, self._step.rate),)
            threading.Thread(target=self._plan, args=plan, name="arrivals", daemon=True).start()
        while self._planning or self._due or self._busy or self._connecting or not self._is_over():
            await asyncio.sleep(_SWEEP_S)
            self._give_up_late_ones()
            self._recorder.tick(time.monotonic())
        for connection in self._idle:
            connection.abandon()
        self._recorder.tick(time.monotonic(), last=True)
        tally = self._recorder.tally
        tally.cpu_s = await cpu
        return tally

    def answered(self, connection: Connection) -> None:
        """See :class:`serve.load.connection.Owner`."""
        now_s = time.monotonic()
        self._busy.remove(connection)
        self._recorder.answered(
            now_s,
            connection.meant_s,
            connection.sent_s,
            connection.status,
            connection.version,
            connection.replica,
            connection.received_bytes,
        )
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.abandon()
        self._ask_again(now_s)

    def broken(self, connection: Connection, kind: str) -> None:
        """See :class:`serve.load.connection.Owner`."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._fail(connection.meant_s, kind)
        elif connection in self._idle:
            self._idle.remove(connection)
        # Else it is not in use yet: who opens it sees what happened.

    def _is_over(self) -> bool:
        return time.monotonic() >= self._end_s

    async def _measure_cpu(self) -> float:
        """CPU seconds of the measured time: before and after it we wait for the most part."""
        await asyncio.sleep(self._measure_s - time.monotonic())
        before_s = time.process_time()
        await asyncio.sleep(self._end_s - time.monotonic())
        return time.process_time() - before_s

    def _plan(self, arrivals: Iterator[float]) -> None:
        """Sleep from arrival to arrival. A thread does that to 0.1 ms; loops' timers, to 1 ms."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: somebody pressed Ctrl-C.
            for offset_s in arrivals:
                meant_s = self._start_s + offset_s
                if meant_s >= self._end_s:
                    break
                pause_s = meant_s - time.monotonic()
                if pause_s > 0:
                    time.sleep(pause_s)
                self._loop.call_soon_threadsafe(self._arrive, meant_s)
            self._loop.call_soon_threadsafe(self._end_plan)

    def _arrive(self, meant_s: float) -> None:
        self._recorder.late(time.monotonic(), meant_s)
        self._fall_due(meant_s)

    def _end_plan(self) -> None:
        self._planning = False

    def _fall_due(self, meant_s: float) -> None:
        self._due.append(meant_s)
        if not self._dispatch():
            self._recorder.waits(meant_s)

    def _dispatch(self) -> bool:
        """Give what is due to connections; whether all of it found one."""
        while self._due:
            if self._idle:
                self._send(self._idle.pop(), self._due.popleft(), time.monotonic())
            elif len(self._busy) + self._connecting < self._step.concurrency:
                self._connecting += 1
                task = self._loop.create_task(self._open(self._due.popleft()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                return False
        return True

    async def _open(self, meant_s: float) -> None:
        """Connect and send; the time that takes is part of the request's."""
        tried_s = time.monotonic()
        problem = None
        try:
            async with asyncio.timeout(meant_s + self._step.timeout_s - tried_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self),
                    self._endpoint.host,
                    self._endpoint.port,
                    ssl=self._tls,
                )
            problem = connection.problem
        except TimeoutError:
            problem = "timeout"
        except ConnectionRefusedError:
            problem = "refused"
        except OSError:
            problem = "network"
        self._connecting -= 1
        if problem is None:
            self._send(connection, meant_s, tried_s)
        else:
            self._fail(meant_s, problem)

    def _send(self, connection: Connection, meant_s: float, sent_s: float) -> None:
        request = next(self._requests)
        self._busy.add(connection)
        self._recorder.sent(meant_s, len(request))
        connection.send(request, meant_s, sent_s)

    def _fail(self, meant_s: float, kind: str) -> None:
        now_s = time.monotonic()
        self._recorder.failed(now_s, meant_s, kind)
        if kind == "timeout":
            self._ask_again(now_s)
        else:
            # Who is refused at once would ask thousands of times a second.
            self._loop.call_later(_REFUSED_PAUSE_S, self._ask_later)

    def _ask_later(self) -> None:
        self._ask_again(time.monotonic())

    def _ask_again(self, now_s: float) -> None:
        """Go on after a request: a closed loop asks again, else who waits gets a turn."""
        if self._step.rate is None and now_s < self._end_s:
            self._fall_due(now_s)
        else:
            self._dispatch()

    def _give_up_late_ones(self) -> None:
        """What is not answered in time counts as a failure, even if it was never sent."""
        now_s = time.monotonic()
        oldest_s = now_s - self._step.timeout_s
        for connection in [one for one in self._busy if one.meant_s < oldest_s]:
            self._busy.remove(connection)
            connection.abandon()
            self._fail(connection.meant_s, "timeout")
        while self._due and self._due[0] < oldest_s:
            self._fail(self._due.popleft(), "timeout")


def _arrivals(step: Step, rate: float) -> Iterator[float]:
    """Seconds from the start at which requests fall due: a Poisson process, or equal gaps."""
    generator = np.random.default_rng(step.seed)
    time_s = 0.0
    while True:
        gaps = (
            generator.exponential(1 / rate, _PLANNED_AT_ONCE)
            if step.poisson
            else np.full(_PLANNED_AT_ONCE, 1 / rate)
        )
        for gap in gaps.tolist():
            yield time_s
            time_s += gap
