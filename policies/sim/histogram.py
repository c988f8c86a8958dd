"""Latencies of any number of requests in fixed memory."""

from __future__ import annotations

import math

import numpy as np

from policies.core.slo import nearest_rank
from policies.sim.fleet_state import Floats

LEAST_S, MOST_S = 1e-5, 1e5
RATIO = 1.01  # of a bin's ends: a percentile is known to 0.5 %
BINS = math.ceil(math.log(MOST_S / LEAST_S) / math.log(RATIO)) + 2


class Histogram:
    """Counts by bins of equal ratio. Values outside 10 µs to 10^5 s go to the ends."""

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, dtype=np.int64)
        self.count = 0
        self.total_s = 0.0

    def add(self, seconds: Floats) -> None:
        """Take these values; NaN is left out."""
        known = seconds[~np.isnan(seconds)]
        bins = np.log(np.clip(known, LEAST_S, MOST_S) / LEAST_S) / math.log(RATIO)
        self._counts += np.bincount(bins.astype(np.int64), minlength=BINS)
        self.count += len(known)
        self.total_s += float(known.sum())

    def percentile(self, q: float) -> float | None:
        """The nearest-rank percentile, 0 < q <= 1, as the middle of its bin; None when empty."""
        if self.count == 0:
            return None
        rank = nearest_rank(self.count, q)
        place = int(np.searchsorted(np.cumsum(self._counts), rank, side="right"))
        return float(LEAST_S * RATIO ** (place + 0.5))

    @property
    def mean(self) -> float | None:
        """The arithmetic mean, exact; None when empty."""
        return self.total_s / self.count if self.count else None
