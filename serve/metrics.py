"""What a replica counts. Requests only append to plain Python values; a thread hands them on.

As Prometheus sees them, with the ``ray_`` that Ray puts before every name:

    ray_raybridge_requests_total{model, version, endpoint, code}     counter
    ray_raybridge_request_latency_ms{model, version, endpoint}       histogram
    ray_raybridge_batch_size{model, version}                         histogram
    ray_raybridge_rollout_failures_total{model}                      counter

Every node serves the metrics of its replicas at ``http://NODE:PORT/metrics``; ``python -m serve
status`` tells the addresses. For Prometheus' ``file_sd_configs``, Ray lists them in
``prom_metrics_service_discovery.json`` under its temporary folder on the head node, which is
/tmp/ray by default.
"""

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

REQUESTS = "raybridge_requests"
LATENCY_MS = "raybridge_request_latency_ms"
BATCH_SIZE = "raybridge_batch_size"
ROLLOUT_FAILURES = "raybridge_rollout_failures"

LATENCY_BOUNDARIES_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
BATCH_BOUNDARIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
FLUSH_PERIOD_S = 1.0

NO_VERSION = "-"
"""Version of a request that failed before one was chosen."""


class Sink(Protocol):
    """Where values go: Ray's metrics agent, or a list in a test."""

    def count(self, name: str, value: int, tags: Mapping[str, str]) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Add one observation to a histogram."""


class Meter:
    """Gathers the values of one model and flushes them to a sink."""

    def __init__(self, model: str, sink: Sink) -> None:
        self._model = model
        self._sink = sink
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        # Appending to a deque and taking from it are atomic, so requests need no lock.
        self._requests: deque[tuple[str, str, int, float]] = deque()
        self._batches: deque[tuple[str, int]] = deque()
        self._rollout_failures = 0
        self._stop = threading.Event()

    def start(self) -> None:
        """Flush every second, in a thread of its own."""
        threading.Thread(target=self._flush_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Flush once more and end the thread."""
        self._stop.set()
        self.flush()

    def request(self, endpoint: str, version: str, status: int, latency_ms: float) -> None:
        """One answered request."""
        self._requests.append((endpoint, version, status, latency_ms))

    def batch(self, version: str, rows: int) -> None:
        """One forward pass."""
        self._batches.append((version, rows))

    def rollout_failure(self) -> None:
        """A generation that this replica could not open."""
        with self._lock:
            self._rollout_failures += 1

    def flush(self) -> None:
        """Hand everything gathered so far to the sink."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        requests = [self._requests.popleft() for _ in range(len(self._requests))]
        batches = [self._batches.popleft() for _ in range(len(self._batches))]
        with self._lock:
            failures, self._rollout_failures = self._rollout_failures, 0
        self._flush_requests(requests)
        for version, rows in batches:
            self._sink.observe(BATCH_SIZE, rows, {"model": self._model, "version": version})
        if failures:
            self._sink.count(ROLLOUT_FAILURES, failures, {"model": self._model})

    def _flush_requests(self, requests: Sequence[tuple[str, str, int, float]]) -> None:
        counts = Counter((endpoint, version, status) for endpoint, version, status, _ in requests)
        for (endpoint, version, status), count in counts.items():
            tags = {
                "model": self._model,
                "version": version,
                "endpoint": endpoint,
                "code": str(status),
            }
            self._sink.count(REQUESTS, count, tags)
        for endpoint, version, _, latency_ms in requests:
            tags = {"model": self._model, "version": version, "endpoint": endpoint}
            self._sink.observe(LATENCY_MS, latency_ms, tags)

    def _flush_forever(self) -> None:
        while not self._stop.wait(FLUSH_PERIOD_S):
            self.flush()
