"""Latencies in buckets: three digits, and the requests that a stalled caller did not make."""

import numpy as np
import pytest

from serve.load.histogram import Histogram


def _histogram(*seconds: float) -> Histogram:
    histogram = Histogram()
    histogram.record(seconds)
    return histogram


def test_quantiles_are_right_to_three_digits_over_seven_orders_of_magnitude() -> None:
    seconds = np.random.default_rng(0).lognormal(-5, 2.5, 50_000).clip(1e-5, 1e3)
    histogram = Histogram()
    for part in np.array_split(seconds, 7):
        histogram.record(part)
    assert histogram.total == len(seconds)
    for share in (0.001, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = np.quantile(seconds, share, method="inverted_cdf")
        # Half a bucket, and half of the microsecond that values are rounded to.
        assert histogram.quantile(share) == pytest.approx(exact, rel=1e-3, abs=6e-7)
    assert histogram.mean() == pytest.approx(seconds.mean(), rel=1e-3)


def test_values_beyond_the_range_are_counted_at_its_end() -> None:
    histogram = _histogram(0.0, 1e6)
    assert histogram.total == 2
    assert histogram.quantile(0.5) == 0
    assert histogram.quantile(1) == pytest.approx(2**32 / 1e6, rel=1e-3)


def test_nothing_has_no_quantiles() -> None:
    assert Histogram().quantile(0.5) is None
    assert set(Histogram().summary_ms().values()) == {None}


def test_correction_adds_what_a_stalled_caller_left_out() -> None:
    # HdrHistogram's own example: 100 s of 1 ms answers, 100 a second, then a stall of 100 s.
    seen = _histogram(*[0.001] * 10_000, 100.0)
    assert seen.quantile(0.9999) == pytest.approx(0.001)
    corrected = seen + seen.omitted(0.010)
    assert corrected.total == pytest.approx(20_000, rel=1e-3)
    for share, seconds in ((0.30, 0.001), (0.50, 0.001), (0.75, 50.0), (0.90, 80.0), (0.99, 98.0)):
        assert corrected.quantile(share) == pytest.approx(seconds, rel=2e-3)
    assert corrected.quantile(1.0) == pytest.approx(100.0, rel=1e-3)
    assert seen.total == 10_001


def test_nothing_was_omitted_where_nobody_waited() -> None:
    assert _histogram(*np.linspace(0.001, 0.019, 100)).omitted(0.010).total == 0


def test_two_histograms_add_up() -> None:
    both = _histogram(0.001, 0.002) + _histogram(0.003)
    assert both.counts.tolist() == _histogram(0.003, 0.002, 0.001).counts.tolist()
