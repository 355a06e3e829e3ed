"""The load generator against real sockets that answer well, badly, late or never."""

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import pytest
import uvloop
from harness import free_port
from scripted import Script, answer, scripted_server

from serve.load.generator import Endpoint, run_load
from serve.load.histogram import Histogram
from serve.load.tally import LoadResult, Second, Step

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
MARKS = ("X-Raybridge-Version: 3", "X-Raybridge-Replica: one")


def _step(**changes: Any) -> Step:
    values: dict[str, Any] = {"rate": None, "concurrency": 4, "duration_s": 0.4, "warmup_s": 0.0}
    return Step(**{**values, "timeout_s": 5.0, "poisson": False, **changes})


def _load(script: Script, *steps: Step, seconds: list[Second] | None = None) -> LoadResult:
    told: list[Second] = [] if seconds is None else seconds
    with scripted_server(script) as port:
        return run_load(Endpoint("127.0.0.1", port), [REQUEST], steps, told.append)


async def _well(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(200, b"{}", *MARKS))


def _slow(histogram: Histogram, above_s: float) -> int:
    seconds, counts = histogram.filled()
    return int(counts[seconds > above_s].sum())


def test_a_closed_loop_counts_answers_by_status_and_by_who_gave_them() -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(503) if number % 4 == 3 else answer(200, b"{}", *MARKS))

    result = _load(script, _step())
    tally = result.total
    assert tally.requests == tally.ok + tally.errors > 20
    assert tally.statuses == {503: tally.errors}
    assert tally.errors == pytest.approx(tally.requests / 4, abs=4)
    assert tally.failures == {}
    assert tally.versions == {"3": tally.ok}
    assert tally.replicas == {"one": tally.ok}
    assert 0 < tally.first_s["one"] < 5
    assert tally.actual.total == tally.ok
    assert tally.sent_bytes == tally.requests * len(REQUEST)
    good, bad = len(answer(200, b"{}", *MARKS)), len(answer(503))
    assert tally.received_bytes == tally.ok * good + tally.errors * bad


def test_the_warm_up_is_not_counted_but_told() -> None:
    seconds: list[Second] = []

    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(500 if time.monotonic() < good_from_s else 200))

    good_from_s = time.monotonic() + 1.0
    step = _step(rate=100.0, duration_s=0.5, warmup_s=2.0)
    tally = _load(script, step, seconds=seconds).total
    assert tally.requests == tally.ok == pytest.approx(50, abs=1)
    assert tally.measured_s == 0.5
    assert seconds[0].errors_per_s > 0
    assert tally.timeline == seconds


def test_a_rate_is_kept_whatever_the_server_does_and_shows_its_stall() -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 20:
            await asyncio.sleep(0.6)
        await _well(number, writer)

    # One connection: whoever sends after the answer only sees one slow request.
    (one,) = _load(script, _step(rate=100.0, concurrency=1, duration_s=1.0)).steps
    tally = one.tally
    assert tally.requests == tally.ok == pytest.approx(100, abs=1)
    assert _slow(one.corrected, 0.2) >= 35
    assert _slow(tally.actual, 0.2) < _slow(one.corrected, 0.2) / 3
    assert tally.waited >= 35


def test_a_closed_loop_is_corrected_for_what_it_did_not_ask() -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5 if number == 20 else 0.005)
        await _well(number, writer)

    (one,) = _load(script, _step(concurrency=1, duration_s=1.0)).steps
    assert one.interval_s == pytest.approx(1.0 / one.tally.requests)
    assert _slow(one.corrected, 0.2) > 3 * _slow(one.tally.actual, 0.2)


@pytest.mark.parametrize("stall_s", [1.0, 2.0])
def test_a_stall_that_begins_in_the_warm_up_of_a_closed_loop_shows(stall_s: float) -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        now_s = time.monotonic()
        if stalls_s < now_s < stalls_s + stall_s:
            await asyncio.sleep(stalls_s + stall_s - now_s)
        await asyncio.sleep(0.005)
        await _well(number, writer)

    # Measured are 1.0 to 2.0 s: the stall ends in the middle of it, or after it.
    stalls_s = time.monotonic() + 0.5
    (one,) = _load(script, _step(concurrency=2, warmup_s=1.0, duration_s=1.0)).steps
    assert _slow(one.tally.actual, 0.9 * stall_s) == 2
    if stall_s == 1.0:
        # Half of the callers who ask without waiting meet it, and none waits for more than is left.
        assert _slow(one.corrected, 0.1) > 10
        assert _slow(one.corrected, 0.55) == 2
    else:
        assert one.tally.ok == 2
        assert one.tally.ok_in_time == 0


def test_a_steady_slow_server_has_the_throughput_that_it_has() -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        await _well(number, writer)

    # Four callers are answered at 0.4, 0.8 and 1.2 s of 0.2 to 1.4 s.
    (closed,) = _load(script, _step(warmup_s=0.2, duration_s=1.2)).steps
    assert closed.tally.ok_in_time == 12
    assert closed.corrected.quantile(0.01) == pytest.approx(0.4, abs=0.1)
    opened = _load(script, _step(rate=20.0, concurrency=64, warmup_s=0.6, duration_s=1.0))
    assert opened.as_json()["throughput"] == pytest.approx(20, abs=1)
    assert opened.knee_rate == 20.0


def test_poisson_arrivals_have_the_rate_and_are_the_same_for_a_seed() -> None:
    step = _step(rate=400.0, poisson=True, concurrency=64)
    first, second = (_load(_well, step).total.requests for _ in range(2))
    assert first == second
    assert 100 < first < 230
    assert _load(_well, _step(rate=400.0, poisson=True, concurrency=64, seed=1)).total.requests > 0


def test_what_is_not_answered_in_time_is_a_timeout_even_if_it_was_never_sent() -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    step = _step(rate=50.0, concurrency=2, duration_s=0.4, timeout_s=0.3)
    result = _load(script, step)
    tally = result.total
    assert tally.requests == pytest.approx(20, abs=1)
    assert tally.failures == {"timeout": tally.requests}
    assert tally.first_s == {}
    # Nobody was answered, and yet the latencies say so: as far as was waited.
    assert tally.actual.total == 0
    assert _slow(result.steps[0].corrected, 0.29) == tally.requests
    assert result.knee_rate is None


async def _close(number: int, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _babble(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")


@pytest.mark.parametrize(("script", "kind"), [(_close, "reset"), (_babble, "protocol")])
def test_a_server_that_breaks_off_is_counted_by_how(script: Script, kind: str) -> None:
    tally = _load(script, _step()).total
    # Whoever is cut off waits a moment, so these are not thousands.
    assert tally.failures == {kind: tally.requests}
    assert 4 <= tally.requests <= 40


class BusyLoop(asyncio.SelectorEventLoop):
    """Comes late to a connection that stands, as a loop does that has much else to do."""

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        made = await super().create_connection(*args, **options)
        await asyncio.sleep(0.05)
        return made


def test_a_connection_that_is_lost_before_its_first_request_is_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uvloop, "new_event_loop", BusyLoop)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        endpoint = Endpoint(*listener.getsockname())
        tally = run_load(endpoint, [REQUEST], [_step(timeout_s=1.0)], lambda _: None).total
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert tally.failures == {"reset": tally.requests}
    assert 4 <= tally.requests <= 40


def test_nobody_listening_is_refused() -> None:
    result = run_load(Endpoint("127.0.0.1", free_port()), [REQUEST], [_step()], lambda _: None)
    assert result.total.failures == {"refused": result.total.requests}
    assert result.as_json()["throughput"] == 0


async def _in_chunks(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.write(b"0\r\n\r\n")


async def _and_close(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(200, b"{}", "Connection: close"))
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("script", [_in_chunks, _and_close])
def test_answers_come_in_every_form_of_http(script: Script) -> None:
    tally = _load(script, _step()).total
    assert tally.failures == {}
    assert tally.requests == tally.ok > 8


def test_steps_find_the_rate_that_is_kept_up() -> None:
    async def script(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        await _well(number, writer)

    # One connection and 20 ms each: fewer than 50 a second.
    rates = [2.0, 4.0, 80.0]
    steps = [_step(rate=rate, concurrency=1, duration_s=0.95) for rate in rates]
    result = _load(script, *steps)
    assert result.knee_rate == 4.0
    figures = result.as_json()
    assert [step["rate"] for step in figures["steps"]] == rates
    assert figures["requests"] == sum(step["requests"] for step in figures["steps"])
    assert figures["mode"] == "open"
    assert figures["latency_ms"] is None
    times = [second["time_s"] for second in figures["timeline"]]
    assert times == sorted(times)
