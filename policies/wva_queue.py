"""llm-d's queue of one replica: how many requests/s it takes within TTFT and ITL targets.

Source: llm-d workload-variant-autoscaler, `pkg/analyzer/queueanalyzer.go` and
`mm1modelstatedependent.go`. A state-dependent M/M/1/K queue: with n requests inside, min(n, N) are
served, each for prefill(n) + tout decode(n) seconds, where
    iteration T(n) = alpha + n (beta c + gamma m),  c = (tin + tout)/(tout + 1),  m = tin + tout/2
    prefill(n)     = T(n) + (beta + gamma) tin
    decode(n)      = T(n) + beta + gamma (tin + tout/2)
so mu(n) = n / (prefill(n) + tout decode(n)), p(n)/p(n-1) = rate / mu(min(n, N)), n <= K, K = 11 N
(a queue of ten batches). With n' = mean requests in service and S = n' / throughput:
    ITL = (S - prefill(n')) / tout,   TTFT = W + prefill(n') + ITL,   W = mean wait.
Both rise with the rate; the largest rate that holds each is found by bisection between 0.001 mu(1)
and 0.999 mu(N), and the smaller one counts.

The three coefficients are taken from the profile one finer than in the original, which has one beta
for prompt and decoded tokens and one gamma for both kinds of attention: T(n) is the profile's mean
step, (beta + gamma) tin its time for one prompt, beta + gamma m its time for one sequence. The
original's means are compared with percentile targets; `wait_factor` (earlier versions of the same
optimizer: SLOMargin = -ln(1 - percentile), for exponential waits) multiplies W to judge its tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.core.types import SLO
from policies.model.curve import StepCurve

EPSILON = 0.001  # how far the rate stays from its ends, as in the original
QUEUE_TO_BATCH = 10  # places in the queue per place in the batch (MaxQueueToBatchRatio)
STEPS = 40  # of a bisection: to 1e-12 of the range

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueState:
    """The queue at one rate; means over requests, and over time of those in service."""

    throughput_per_s: float
    wait_s: float
    ttft_s: float
    itl_s: float
    in_service: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaQueue:
    """One replica with at most `max_batch` running requests. `curve`: seconds per step under the
    mean lengths."""

    curve: StepCurve
    max_batch: int
    wait_factor: float = 1.0

    def prefill_s(self, batch: float) -> float:
        """Seconds of prefill(batch)."""
        return float(self.curve.mean(batch)) + self.curve.per_prompt

    def service_rates(self) -> Floats:
        """mu(1..N), requests/s."""
        batch = np.arange(1, self.max_batch + 1, dtype=np.float64)
        steps = self.curve.mean(batch)
        prefill = steps + self.curve.per_prompt
        decode = steps + self.curve.per_seq
        return np.asarray(batch / (prefill + self.curve.output_tokens * decode))

    def at(self, rate_per_s: float, rates: Floats | None = None) -> QueueState:
        """The steady state at a rate > 0; `rates`: the service rates, where they are at hand."""
        rates = self.service_rates() if rates is None else rates
        logs = np.concatenate(([0.0], np.cumsum(math.log(rate_per_s) - np.log(rates))))
        weights = np.exp(logs - logs.max())
        ratio = rate_per_s / float(rates[-1])  # of neighbouring states beyond the full batch
        places = QUEUE_TO_BATCH * self.max_batch
        tail, tail_mean = _geometric(ratio, places)
        queued, blocked = weights[-1] * tail, weights[-1] * ratio**places
        total = float(weights.sum() + queued)
        batch = np.arange(self.max_batch + 1)
        in_service = float(batch @ weights + self.max_batch * queued) / total
        waiting = float(weights[-1]) * tail_mean / total
        throughput = rate_per_s * (1.0 - float(blocked) / total)
        wait_s, service_s = waiting / throughput, in_service / throughput
        prefill_s = self.prefill_s(in_service)
        itl_s = (service_s - prefill_s) / self.curve.output_tokens
        return QueueState(
            throughput_per_s=throughput,
            wait_s=wait_s,
            ttft_s=self.wait_factor * wait_s + prefill_s + itl_s,
            itl_s=itl_s,
            in_service=in_service,
        )

    def most_per_s(self, slo: SLO) -> float | None:
        """The largest rate that holds both targets; None where even the smallest does not."""
        rates = self.service_rates()
        low, high = EPSILON * float(rates[0]), (1.0 - EPSILON) * float(rates[-1])

        def largest(holds: Callable[[QueueState], bool]) -> float | None:
            below, above = low, high
            if holds(self.at(above, rates)):
                return above
            if not holds(self.at(below, rates)):
                return None
            for _ in range(STEPS):
                middle = 0.5 * (below + above)
                if holds(self.at(middle, rates)):
                    below = middle
                else:
                    above = middle
            return below

        by_ttft = largest(lambda state: state.ttft_s <= slo.ttft_s)
        by_itl = largest(lambda state: state.itl_s <= slo.tpot_s)
        return None if by_ttft is None or by_itl is None else min(by_ttft, by_itl)


def _geometric(ratio: float, places: int) -> tuple[float, float]:
    """Sums of ratio^k and of k ratio^k over k = 1..places."""
    if abs(1.0 - ratio) < 1e-9:
        return float(places), 0.5 * places * (places + 1)
    last = ratio**places
    total = ratio * (1.0 - last) / (1.0 - ratio)
    mean = (total - places * last * ratio) / (1.0 - ratio)
    return total, mean
