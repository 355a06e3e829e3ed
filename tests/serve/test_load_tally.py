"""The figures that come out of what was counted."""

from typing import Any

import numpy as np
import pytest

from serve.load.report import draw
from serve.load.tally import LoadResult, Step, StepResult, Tally


def _step(rate: float, latency_s: float = 0.01, requests: int = 100, **counts: int) -> StepResult:
    values: dict[str, Any] = {"requests": requests, "ok": requests, "ok_in_time": requests}
    tally = Tally(**{**values, "measured_s": 10.0, **counts})
    tally.meant.record(np.full(requests, latency_s))
    step = Step(rate, concurrency=8, duration_s=10.0, warmup_s=0.0, timeout_s=5.0)
    return StepResult(step, tally)


def test_a_rate_is_kept_up_if_answers_come_as_requests_fall_due() -> None:
    assert _step(10, requests=100, ok_in_time=95).keeps_up
    assert not _step(10, requests=100, ok_in_time=90).keeps_up
    # One is on its way at the end, of however few.
    assert _step(1, requests=10, ok_in_time=9).keeps_up
    assert not _step(1, requests=1, ok_in_time=0).keeps_up
    late = _step(10)
    late.tally.failures["timeout"] += 1
    assert not late.keeps_up


def test_steps_are_told_apart() -> None:
    few, many = _step(10, 0.001), _step(5000, 0.5, requests=50_000)
    many.tally.cpu_s, many.tally.lag = 9.9, many.tally.meant
    result = LoadResult((few, many))
    figures = result.as_json()
    assert (figures["latency_ms"], figures["throughput"]) == (None, None)
    p50s = [step["latency_ms"]["p50"] for step in figures["steps"]]
    assert p50s == pytest.approx([1.0, 500.0], rel=1e-3)
    saturated, late = figures["generator"]["problems"]
    assert saturated.startswith("at 5000/s: the generator is saturated: it used 99%")
    assert late.startswith("at 5000/s: the generator was late by 500 ms")
    curve = draw(result).axes[1]
    assert [line.get_label() for line in curve.lines] == ["10/s", "5000/s"]


def test_one_step_tells_its_figures_at_the_top() -> None:
    one = _step(20, 0.5)
    one.tally.cpu_s = 9.9
    figures = LoadResult((one,)).as_json()
    assert figures["throughput"] == 10.0
    assert figures["latency_ms"] == figures["steps"][0]["latency_ms"]
    (problem,) = figures["generator"]["problems"]
    assert problem.startswith("the generator is saturated")
