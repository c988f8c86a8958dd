"""A sliding window over time-stamped samples: rates, means, percentiles of the recent past."""

from __future__ import annotations

import math
from collections import deque

from policies.core.errors import ConfigError
from policies.core.slo import percentile

MIN_SPAN_S = 1.0  # a rate is never taken over less: one request in 10 ms is not 100 per second


class Window:
    """Samples of the last `horizon_s` seconds, at most `max_samples` of them, oldest dropped first.

    The clock is the caller's: every method takes the time. Times may come slightly out of order;
    a sample with a non-finite time or value is not taken. `add` is amortised O(1).
    """

    def __init__(self, horizon_s: float, max_samples: int = 8192) -> None:
        if not (horizon_s > 0.0 and math.isfinite(horizon_s)):
            raise ConfigError(f"horizon_s is {horizon_s}; allowed: a finite number above 0")
        if max_samples < 1:
            raise ConfigError(f"max_samples is {max_samples}; allowed: a whole number from 1")
        self._horizon_s = horizon_s
        self._max_samples = max_samples
        self._samples: deque[tuple[float, float]] = deque()
        self._first_use_s: float | None = None
        self._dropped_until_s = -math.inf  # samples up to here were lost to `max_samples`

    def add(self, time_s: float, value: float = 1.0) -> None:
        """Take one sample. Out of order costs one step per younger sample."""
        if not (math.isfinite(time_s) and math.isfinite(value)):
            return
        self._start(time_s)
        younger = []
        while self._samples and self._samples[-1][0] > time_s:
            younger.append(self._samples.pop())
        self._samples.append((time_s, value))
        self._samples.extend(reversed(younger))
        self._drop_before(self._samples[-1][0] - self._horizon_s)
        if len(self._samples) > self._max_samples:
            self._dropped_until_s = self._samples.popleft()[0]

    def values(self, now_s: float) -> list[float]:
        """The values not older than the horizon at `now_s`, by time."""
        self._start(now_s)
        oldest_s = now_s - self._horizon_s
        return [value for time_s, value in self._samples if time_s >= oldest_s]

    def count(self, now_s: float) -> int:
        """How many samples the window holds at `now_s`."""
        return len(self.values(now_s))

    def percentile(self, q: float, now_s: float) -> float | None:
        """The nearest-rank percentile, 0 < q <= 1; None when the window is empty."""
        return percentile(self.values(now_s), q)

    def mean(self, now_s: float) -> float | None:
        """The arithmetic mean; None when the window is empty."""
        values = self.values(now_s)
        return math.fsum(values) / len(values) if values else None

    def rate_per_s(self, now_s: float) -> float:
        """Samples per second over the span that was really observed, never less than 1 s.

        The span is the horizon; shorter while the window is younger than that, or while
        `max_samples` and not the horizon limits what is kept.
        """
        self._start(now_s)
        first_s = now_s if self._first_use_s is None else self._first_use_s
        since_s = max(now_s - self._horizon_s, first_s, self._dropped_until_s)
        count = sum(1 for time_s, _ in self._samples if time_s >= now_s - self._horizon_s)
        return count / max(now_s - since_s, MIN_SPAN_S)

    def _start(self, time_s: float) -> None:
        if math.isfinite(time_s) and (self._first_use_s is None or time_s < self._first_use_s):
            self._first_use_s = time_s

    def _drop_before(self, oldest_s: float) -> None:
        while self._samples and self._samples[0][0] < oldest_s:
            self._samples.popleft()
