"""How many requests are in a replica at a time: a birth-death chain with a batch-dependent rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from policies.model.curve import Number, StepCurve

Floats = NDArray[np.float64]

MAX_STABLE_RATIO = 0.999  # beyond this share of the capacity the chain has no useful steady state
_TAIL_STATES = 8192  # of a chain without a cap: with a ratio of 0.99 the rest weighs e^-80
_MAX_TAIL_RATIO = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchProcess:
    """One replica as a queue: arrivals/s, steps that last `curve.mean(n)` seconds, batch <= cap.

    With n requests inside, min(n, cap) run and leave at the rate mu(n) = n / (tout t(n)), and mu(n)
    = mu(cap) beyond. The balance equations give p(n) / p(n-1) = arrivals / mu(n). With a constant t
    this is Erlang's M/M/cap queue. Every running request gets the same share of the step, so the
    chain without a cap does not depend on the distribution of output lengths (processor sharing);
    with a cap that is an approximation.
    """

    arrival_rate_per_s: float
    curve: StepCurve
    cap: int

    @property
    def output_tokens(self) -> float:
        """Steps of a request."""
        return self.curve.output_tokens

    @property
    def capacity_per_s(self) -> float:
        """mu(cap): what the replica completes when it is full."""
        return completed_per_s(self.curve, self.cap)

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
        """The percentile of the time that an arriving request waits for a slot, seconds."""
        capacity_per_s = self.capacity_per_s
        rate_per_s = min(self.arrival_rate_per_s, MAX_STABLE_RATIO * capacity_per_s)
        return slot_wait_s(float(probabilities[-1]), capacity_per_s - rate_per_s, percentile)

    def batch_at(self, percentile: float) -> int:
        """The batch that a request shares at `percentile`, itself included, 1..cap.

        Taken from the chain *without* a cap and cut at the cap: near Poisson for small loads, wider
        by 1 / (1 - arrivals tout g) above. So a smaller cap never gives a larger batch.
        """
        return uncapped_batch(self.curve, self.arrival_rate_per_s, percentile, self.cap)

    def _log_weights(self, rate_per_s: float) -> Floats:
        states, log_steps = tables(self.curve, self.cap)
        return states * math.log(rate_per_s * self.output_tokens) + log_steps


def completed_per_s(curve: StepCurve, batch: Number) -> Number:
    """mu(n): requests/s that a replica completes while `batch` of them run."""
    return batch / (curve.output_tokens * curve.mean(batch))


def slot_wait_s(full_share: Number, slack_per_s: Number, percentile: float) -> Number:
    """The percentile of the time that an arriving request waits for a slot, seconds.

    An arrival waits with probability p(n >= cap) = `full_share`, then exponentially at the rate
    mu - arrivals = `slack_per_s` > 0 (the form of Erlang C), so
    W = ln(P(wait) / (1 - percentile)) / (mu - arrivals), at least 0.
    """
    return log_above_one(full_share / max(1.0 - percentile, 1e-9)) / slack_per_s


def log_above_one(ratio: Number) -> Number:
    """ln(ratio), 0 below 1."""
    if isinstance(ratio, float):
        return math.log(ratio) if ratio > 1.0 else 0.0
    return np.asarray(np.log(np.maximum(ratio, 1.0)))


def uncapped_batch(curve: StepCurve, rate_per_s: float, percentile: float, at_most: int) -> int:
    """The batch at `percentile`, itself included, where nothing caps it, cut at `at_most`."""
    load = rate_per_s * curve.output_tokens
    ratio = load * (curve.mean_per_seq + curve.beyond)  # of neighbouring weights, for large n
    percentile = min(percentile, 1.0 - 1e-9)
    if curve.beyond:
        if ratio >= _MAX_TAIL_RATIO:
            return at_most
        states, log_steps = tables(curve, _TAIL_STATES)
        weights = states * math.log(load) + log_steps
        terms = np.exp(weights - weights.max())
        terms /= terms.sum()
    else:
        if ratio >= 1.0:
            return at_most
        states, log_steps = tables(curve, at_most)
        terms = np.exp(states * math.log(load) + log_steps - _log_norm(curve, load))
    others = int(np.searchsorted(np.cumsum(terms), percentile))
    return min(others + 1, at_most)


def _log_norm(curve: StepCurve, load: float) -> float:
    """Log of the sum of all weights without a cap: a negative binomial; Poisson where g = 0."""
    p = load * curve.mean_per_seq
    if p < 1e-9:
        return load * (curve.base + curve.mean_per_seq)
    return -(1.0 + curve.base / curve.mean_per_seq) * math.log1p(-p)


def tables(curve: StepCurve, cap: int) -> tuple[Floats, Floats]:
    """0..cap, and the sums of log(t(n) / n): the part of the weights that no load changes."""
    states, sums = _tables(curve, 1 << (cap - 1).bit_length())  # one table for neighbouring caps
    return states[: cap + 1], sums[: cap + 1]


@lru_cache(maxsize=128)
def _tables(curve: StepCurve, size: int) -> tuple[Floats, Floats]:
    states = np.arange(size + 1, dtype=np.float64)
    sums = np.zeros(size + 1)
    np.cumsum(np.log(curve.mean(states[1:]) / states[1:]), out=sums[1:])
    states.setflags(write=False)
    sums.setflags(write=False)
    return states, sums
