"""Takes down what happens to every request of a step, and sums it up each second."""

from collections.abc import Callable

from serve.load.histogram import Histogram
from serve.load.tally import Second, Tally

Progress = Callable[[Second], None]
_SECOND = 1.0


class Recorder:
    """Fills a :class:`Tally`. All times are seconds of one monotonic clock."""

    def __init__(
        self,
        began_s: float,
        start_s: float,
        measure_s: float,
        end_s: float,
        progress: Progress,
        *,
        closed: bool,
    ) -> None:
        """Begin.

        Args:
            began_s: when the whole load began; told times count from it.
            start_s: when this step begins.
            measure_s: when the warm-up is over.
            end_s: an answer after this does not count into the throughput.
            progress: told of every second.
            closed: requests that end after the warm-up count, for one that a stall holds keeps
                its caller from asking others; at a rate, those that fell due after it.
        """
        self.tally = Tally(measured_s=end_s - measure_s)
        self._began_s = began_s
        self._measure_s = measure_s
        self._end_s = end_s
        self._progress = progress
        self._closed = closed
        # Plain lists, counted into histograms once a second: cheaper than one by one.
        self._actual: list[float] = []
        self._meant: list[float] = []
        self._held: list[float] = []
        self._lag: list[float] = []
        self._last_s = start_s
        self._window: list[float] = []
        self._window_errors = 0
        self._window_replicas: set[str] = set()

    def late(self, now_s: float, meant_s: float) -> None:
        """A request fell due, which was noticed now."""
        if meant_s >= self._measure_s:
            self._lag.append(now_s - meant_s)

    def waits(self, meant_s: float) -> None:
        """A request fell due, and no connection is free for it."""
        self.tally.waited += meant_s >= self._measure_s

    def sent(self, meant_s: float, size: int) -> None:
        """A request of ``size`` bytes was sent."""
        if meant_s >= self._measure_s:
            self.tally.sent_bytes += size

    def answered(
        self,
        now_s: float,
        meant_s: float,
        sent_s: float,
        status: int,
        version: bytes,
        replica: bytes,
        size: int,
    ) -> None:
        """A request was answered, with ``size`` bytes."""
        tally = self.tally
        name = replica.decode("latin-1")
        ok = 200 <= status < 300
        if ok:
            self._window.append(now_s - meant_s)
            self._window_replicas.add(name)
            tally.first_s.setdefault(name, now_s - self._began_s)
        else:
            self._window_errors += 1
        tally.ok_in_time += ok and self._measure_s <= now_s <= self._end_s
        if not self._counts(now_s, meant_s):
            return
        tally.requests += 1
        tally.received_bytes += size
        if not ok:
            tally.statuses[status] += 1
            return
        tally.ok += 1
        tally.versions[version.decode("latin-1")] += 1
        tally.replicas[name] += 1
        self._actual.append(now_s - sent_s)
        self._lasted(now_s, meant_s)

    def failed(self, now_s: float, meant_s: float, kind: str) -> None:
        """A request got no answer."""
        self._window_errors += 1
        if not self._counts(now_s, meant_s):
            return
        self.tally.requests += 1
        self.tally.failures[kind] += 1
        if kind == "timeout":
            self._lasted(now_s, meant_s)

    def _counts(self, now_s: float, meant_s: float) -> bool:
        return (now_s if self._closed else meant_s) >= self._measure_s

    def _lasted(self, now_s: float, meant_s: float) -> None:
        self._meant.append(now_s - meant_s)
        self._held.append(now_s - max(meant_s, self._measure_s))

    def tick(self, now_s: float, *, last: bool = False) -> None:
        """Sum up if a second is over, or if this was the ``last`` of it."""
        elapsed_s = now_s - self._last_s
        if elapsed_s < _SECOND and not last:
            return
        latencies = Histogram()
        latencies.record(self._window)
        p50_s, p99_s = latencies.quantile(0.5), latencies.quantile(0.99)
        second = Second(
            time_s=round(now_s - self._began_s, 3),
            ok_per_s=round(len(self._window) / elapsed_s, 2),
            errors_per_s=round(self._window_errors / elapsed_s, 2),
            p50_ms=None if p50_s is None else round(p50_s * 1000, 3),
            p99_ms=None if p99_s is None else round(p99_s * 1000, 3),
            replicas=len(self._window_replicas),
        )
        # A last scrap of a second gives rates that mean nothing.
        if elapsed_s >= _SECOND / 2:
            self.tally.timeline.append(second)
            self._progress(second)
        self._last_s = now_s
        self._window, self._window_errors, self._window_replicas = [], 0, set()
        for histogram, values in (
            (self.tally.actual, self._actual),
            (self.tally.meant, self._meant),
            (self.tally.held, self._held),
            (self.tally.lag, self._lag),
        ):
            histogram.record(values)
            values.clear()
