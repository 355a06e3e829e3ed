"""What is counted, and that nothing is counted twice or lost."""

import threading
from collections import Counter
from collections.abc import Mapping

from serve.metrics import BATCH_SIZE, LATENCY_MS, REQUESTS, ROLLOUT_FAILURES, Meter


class TallySink:
    """Adds up counts and numbers of observations."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.observed: Counter[str] = Counter()

    def count(self, name: str, value: int, tags: Mapping[str, str]) -> None:
        self.counts[(name, *tags.values())] += value

    def observe(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        self.observed[name] += 1


def test_values_are_gathered_and_handed_on_once() -> None:
    sink = TallySink()
    meter = Meter("net", sink)
    meter.request("infer", "1", 200, 1.5)
    meter.request("infer", "1", 200, 2.5)
    meter.request("infer", "-", 400, 0.1)
    meter.batch("1", 2)
    meter.rollout_failure()
    assert not sink.counts
    for _ in range(2):
        meter.flush()
        assert sink.counts == {
            (REQUESTS, "net", "1", "infer", "200"): 2,
            (REQUESTS, "net", "-", "infer", "400"): 1,
            (ROLLOUT_FAILURES, "net"): 1,
        }
        assert sink.observed == {LATENCY_MS: 3, BATCH_SIZE: 1}


def test_nothing_is_lost_between_threads() -> None:
    sink = TallySink()
    meter = Meter("net", sink)
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            meter.flush()

    thread = threading.Thread(target=flush)
    thread.start()
    for _ in range(20_000):
        meter.request("infer", "1", 200, 1.0)
    done.set()
    thread.join()
    meter.stop()
    assert sink.counts[(REQUESTS, "net", "1", "infer", "200")] == 20_000
    assert sink.observed[LATENCY_MS] == 20_000
