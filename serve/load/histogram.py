"""Latencies counted in log-linear buckets: three significant digits, whatever the range.

As in HdrHistogram (https://github.com/HdrHistogram/HdrHistogram), a power of two is divided into
1,024 equal buckets, so memory is bounded and no bucket is wider than a thousandth of its value.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_BITS = 10
_HALF = 1 << _BITS
_MAX_US = 2**32 - 1
"""71 minutes; more is counted as that."""
_BUCKETS = _HALF * (32 - _BITS + 1)


class Histogram:
    """Counts of durations, in microseconds."""

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(_BUCKETS, np.int64)

    def record(self, seconds: npt.ArrayLike) -> None:
        """Add durations, in seconds."""
        self._add(np.asarray(seconds, np.float64) * 1e6)

    def __add__(self, other: "Histogram") -> "Histogram":
        both = Histogram()
        both.counts = self.counts + other.counts
        return both

    @property
    def total(self) -> int:
        """Number of durations."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """Seconds that ``share`` of the durations do not exceed; None if there are none."""
        total = self.total
        if total == 0:
            return None
        rank = max(1, int(np.ceil(share * total - 1e-9)))
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return float(_values()[bucket]) / 1e6

    def mean(self) -> float | None:
        """Seconds, or None if there are none."""
        total = self.total
        return float(self.counts @ _values()) / total / 1e6 if total else None

    def filled(self) -> tuple[npt.NDArray[np.float64], Counts]:
        """Seconds and counts of the buckets that are not empty, in order."""
        (buckets,) = self.counts.nonzero()
        return _values()[buckets] / 1e6, self.counts[buckets]

    def omitted(self, interval_s: float) -> "Histogram":
        """What a caller did not ask while it waited, if it should have every ``interval_s``.

        A caller that waits for its answer before it asks again leaves out just those requests that
        would have waited as well: for each duration above the interval one that is shorter by an
        interval, by two, and so on. Added to what was seen, they make what HdrHistogram calls
        ``copyCorrectedForCoordinatedOmission``, and wrk (https://github.com/wg/wrk, src/stats.c)
        ``stats_correct``.
        """
        omitted = Histogram()
        interval_us = max(1.0, interval_s * 1e6)
        for value, count in zip(*self.filled(), strict=True):
            missing = np.arange(value * 1e6 - interval_us, interval_us - 1e-6, -interval_us)
            if len(missing):
                omitted._add(missing, int(count))
        return omitted

    def summary_ms(self) -> dict[str, float | None]:
        """Percentiles, mean and maximum in milliseconds."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        values = {name: self.quantile(share) for name, share in shares.items()}
        return {name: _ms(value) for name, value in {"mean": self.mean(), **values}.items()}

    def _add(self, microseconds: npt.NDArray[np.float64], times: int = 1) -> None:
        if microseconds.size == 0:
            return
        whole = np.clip(np.rint(microseconds), 0, _MAX_US).astype(np.int64)
        shift = np.maximum(np.frexp(whole.astype(np.float64))[1] - (_BITS + 1), 0)
        buckets = _HALF * shift + (whole >> shift)
        self.counts += times * np.bincount(buckets.ravel(), minlength=_BUCKETS)


def _values() -> npt.NDArray[np.float64]:
    """The middle of every bucket, in microseconds."""
    buckets = np.arange(_BUCKETS)
    shift = np.maximum(buckets // _HALF - 1, 0)
    lowest = (buckets - _HALF * shift) << shift
    return np.asarray(lowest + ((1 << shift) - 1) / 2, np.float64)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 4)
