"""How many requests are in a replica at a time: a birth-death chain with a batch-dependent rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_STABLE_RATIO = 0.999  # beyond this share of the capacity the chain has no useful steady state


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchProcess:
    """One replica as a queue: arrivals/s, output tokens per request, step = t0 + n g, batch <= cap.

    With n requests inside, min(n, cap) run and leave at the rate mu(n) = n / (tout (t0 + n g)),
    mu(n) = mu(cap) beyond. The balance equations give p(n) / p(n-1) = arrivals / mu(n). With g = 0
    this is Erlang's M/M/cap queue. Every running request gets the same share of the step, so the
    chain without a cap does not depend on the distribution of output lengths (processor sharing);
    with a cap that is an approximation.
    """

    arrival_rate_per_s: float
    output_tokens: float
    t0_s: float
    g_s: float
    cap: int

    @property
    def capacity_per_s(self) -> float:
        """mu(cap): what the replica completes when it is full."""
        return self.cap / (self.output_tokens * (self.t0_s + self.cap * self.g_s))

    def probabilities(self) -> Floats:
        """p(0..cap): the share of time with that many requests running; the last also holds queues.

        Arrivals beyond 0.999 of the capacity are taken as 0.999 of it.
        """
        capacity_per_s = self.capacity_per_s
        rate_per_s = min(self.arrival_rate_per_s, MAX_STABLE_RATIO * capacity_per_s)
        weights = self._log_weights(rate_per_s)
        weights = np.exp(weights - weights.max())
        weights[-1] /= 1.0 - rate_per_s / capacity_per_s  # the geometric tail of waiting requests
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def wait_s(self, probabilities: Floats, percentile: float) -> float:
        """The percentile of the time that an arriving request waits for a slot, seconds.

        An arrival waits with probability p(n >= cap), then exponentially at the rate mu - arrivals
        (the form of Erlang C), so W = ln(P(wait) / (1 - percentile)) / (mu - arrivals), at least 0.
        """
        capacity_per_s = self.capacity_per_s
        rate_per_s = min(self.arrival_rate_per_s, MAX_STABLE_RATIO * capacity_per_s)
        ratio = float(probabilities[-1]) / max(1.0 - percentile, 1e-9)
        return math.log(ratio) / (capacity_per_s - rate_per_s) if ratio > 1.0 else 0.0

    def batch_at(self, percentile: float) -> int:
        """The batch that a request shares at `percentile`, itself included, 1..cap.

        Taken from the chain *without* a cap and cut at the cap: near Poisson for small loads, wider
        by 1 / (1 - arrivals tout g) above. So a smaller cap never gives a larger batch.
        """
        load = self.arrival_rate_per_s * self.output_tokens
        if load * self.g_s >= 1.0:
            return self.cap
        terms = np.exp(self._log_weights(self.arrival_rate_per_s) - self._log_norm(load))
        others = int(np.searchsorted(np.cumsum(terms), min(percentile, 1.0 - 1e-9)))
        return min(others + 1, self.cap)

    def _log_weights(self, rate_per_s: float) -> Floats:
        states, log_steps = _tables(self.t0_s, self.g_s, self.cap)
        return states * math.log(rate_per_s * self.output_tokens) + log_steps

    def _log_norm(self, load: float) -> float:
        """Log of the sum of all weights without a cap: a negative binomial; Poisson where g = 0."""
        p = load * self.g_s
        if p < 1e-9:
            return load * (self.t0_s + self.g_s) if self.g_s else load * self.t0_s
        return -(1.0 + self.t0_s / self.g_s) * math.log1p(-p)


@lru_cache(maxsize=256)
def _tables(t0_s: float, g_s: float, cap: int) -> tuple[Floats, Floats]:
    """0..cap, and the sums of log(t0 / n + g): the part of the weights that no load changes."""
    states = np.arange(cap + 1, dtype=np.float64)
    sums = np.zeros(cap + 1)
    np.cumsum(np.log(t0_s / states[1:] + g_s), out=sums[1:])
    states.setflags(write=False)
    sums.setflags(write=False)
    return states, sums
