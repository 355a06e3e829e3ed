"""What a load counts while it runs, and the figures that come out of it."""

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any

from serve.load.histogram import Histogram


@dataclass(frozen=True)
class Second:
    """One point of the timeline."""

    time_s: float
    """End of the interval, since the load began."""
    ok_per_s: float
    errors_per_s: float
    p50_ms: float | None
    """From when a request should have been sent; None where nothing was answered."""
    p99_ms: float | None
    replicas: int
    """Replicas that answered in it."""


@dataclass
class Tally:
    """Everything that is counted. Of the warm-up only the timeline and who answered first."""

    requests: int = 0
    ok: int = 0
    ok_in_time: int = 0
    """2xx that came in the measured time, whenever they were asked for: the throughput."""
    statuses: Counter[int] = field(default_factory=Counter)
    """Of answers that were not 2xx."""
    failures: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by kind; see :data:`serve.load.generator.FAILURES`."""
    versions: Counter[str] = field(default_factory=Counter)
    replicas: Counter[str] = field(default_factory=Counter)
    first_s: dict[str, float] = field(default_factory=dict)
    """When each replica answered first, since the load began."""
    sent_bytes: int = 0
    received_bytes: int = 0
    waited: int = 0
    """Requests that found no free connection when they fell due."""
    measured_s: float = 0.0
    actual: Histogram = field(default_factory=Histogram)
    """From sending a request to its answer, if that was 2xx."""
    meant: Histogram = field(default_factory=Histogram)
    """From when a request should have been sent. One that timed out counts with the time that it
    was waited for: less than it would have taken, but not nothing."""
    held: Histogram = field(default_factory=Histogram)
    """As ``meant``, without what lay in the warm-up: for so long a closed loop did not ask."""
    lag: Histogram = field(default_factory=Histogram)
    """By how much the generator itself was late."""
    timeline: list[Second] = field(default_factory=list)
    cpu_s: float = 0.0
    """Of the generator, in the measured time."""

    def __add__(self, other: "Tally") -> "Tally":
        values = {
            one.name: operator.add(getattr(self, one.name), getattr(other, one.name))
            for one in fields(self)
            if one.name != "first_s"
        }
        return Tally(**values, first_s=other.first_s | self.first_s)

    @property
    def errors(self) -> int:
        """Requests that were not answered with 2xx."""
        return self.statuses.total() + self.failures.total()


@dataclass(frozen=True)
class Step:
    """How to ask: in a closed loop, or at a rate."""

    rate: float | None
    """Requests/s whatever the answers are; None lets every connection ask when it was answered."""
    concurrency: int
    """Connections; at a rate, at most."""
    duration_s: float
    warmup_s: float
    timeout_s: float
    poisson: bool = True
    """Random gaps, as many independent callers leave them; else equal ones."""
    seed: int = 0


@dataclass(frozen=True)
class StepResult:
    """What came of a step."""

    step: Step
    tally: Tally

    @property
    def interval_s(self) -> float | None:
        """In a closed loop the time between two requests of a connection, as wrk takes it."""
        tally = self.tally
        if self.step.rate is not None or tally.requests == 0:
            return None
        return tally.measured_s * self.step.concurrency / tally.requests

    @property
    def corrected(self) -> Histogram:
        """Latencies as callers see them who do not wait for a slow server before they ask."""
        interval_s = self.interval_s
        meant = self.tally.meant
        return meant if interval_s is None else meant + self.tally.held.omitted(interval_s)

    @property
    def keeps_up(self) -> bool:
        """At a rate: whether nearly as much was answered in the measured time as fell due in it.

        Answers late by more than the warm-up look as if they were not kept up with.
        """
        tally = self.tally
        # One is always on its way, which is much where there are few.
        return tally.errors == 0 and tally.ok_in_time >= max(1, 0.95 * tally.requests - 1)


@dataclass(frozen=True)
class LoadResult:
    """Steps, one after the other."""

    steps: tuple[StepResult, ...]

    @property
    def total(self) -> Tally:
        """All steps together."""
        return reduce(operator.add, (one.tally for one in self.steps), Tally())

    @property
    def problems(self) -> list[str]:
        """Why figures may tell of the generator, with the rate if there are several."""
        return [
            problem if len(self.steps) == 1 else f"at {one.step.rate:g}/s: {problem}"
            for one in self.steps
            for problem in _problems(one.tally)
        ]

    @property
    def knee_rate(self) -> float | None:
        """Of rising rates the last that was kept up; None in a closed loop or if none was."""
        knee = None
        for one in self.steps:
            if not one.keeps_up:
                break
            knee = one.step.rate
        return knee

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: counts of all steps together, and each step.

        Latencies and the like stand at the top only if there is one step: from 10/s and 5,000/s
        together they would be nobody's.
        """
        total = self.total
        figures = _figures(total, self.steps[0].corrected)
        if len(self.steps) > 1:
            figures |= dict.fromkeys(("throughput", "latency_ms", "latency_uncorrected_ms"))
            figures["generator"] |= dict.fromkeys(("cpu", "lag_ms"))
        figures["generator"]["problems"] = self.problems
        return {
            "mode": "closed" if self.steps[0].step.rate is None else "open",
            **figures,
            "bytes": {"sent": total.sent_bytes, "received": total.received_bytes},
            "versions": dict(total.versions),
            "replicas": {
                name: {"requests": total.replicas[name], "first_s": round(first, 3)}
                for name, first in total.first_s.items()
            },
            "first_answer_s": round(min(total.first_s.values()), 3) if total.first_s else None,
            "timeline": [vars(second) for second in total.timeline],
            "steps": [
                {**vars(one.step), **_figures(one.tally, one.corrected)} for one in self.steps
            ],
            "knee_rate": self.knee_rate,
        }


_FULL_CORE = 0.9
_LATE_S = 0.010


def _problems(tally: Tally) -> Iterable[str]:
    """Why the figures may tell of the generator instead of the server."""
    cpu = _per_second(tally.cpu_s, tally)
    if cpu > _FULL_CORE:
        yield (
            f"the generator is saturated: it used {cpu:.0%} of a core, and one is all it can; "
            "the server may be faster than this"
        )
    lag = tally.lag.quantile(0.99) or 0.0
    if lag > _LATE_S:
        yield (
            f"the generator was late by {lag * 1000:.0f} ms at p99, which is part of the "
            "latencies: this machine is too busy for the rate"
        )


def _figures(tally: Tally, corrected: Histogram) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "ok": tally.ok,
        "throughput": round(_per_second(tally.ok_in_time, tally), 2),
        "measured_s": round(tally.measured_s, 3),
        "errors": {
            "total": tally.errors,
            "by_status": {str(status): count for status, count in sorted(tally.statuses.items())},
            "by_kind": dict(sorted(tally.failures.items())),
        },
        "latency_ms": corrected.summary_ms(),
        "latency_uncorrected_ms": tally.actual.summary_ms(),
        "generator": {
            "cpu": round(_per_second(tally.cpu_s, tally), 3),
            "lag_ms": tally.lag.summary_ms(),
            "waited_for_a_connection": tally.waited,
            "problems": list(_problems(tally)),
        },
    }


def _per_second(value: float, tally: Tally) -> float:
    return value / tally.measured_s if tally.measured_s else 0.0
