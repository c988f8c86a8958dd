"""One replica under every power limit and load: how many requests miss, what it draws, what is in.

A prompt waits for the prompts before it, first come first served, while every step also decodes;
a decoding request waits whenever a step computes somebody's prompt. Both are computed from the
distribution of lengths, not from their means: what misses a 99 % target are long prompts behind
long prompts, and short answers beside them.

Symbols: L arrivals/s, p_i and o_j the lengths of `policies.core.lengths` with their weights w, S_i
seconds that prompt i adds to steps, t(n) a step that decodes n sequences, B the token budget.

* Batch: each request decodes in o steps, so n = L o t(n) / (1 - L E[S]), with t(n) = t0 + n g.
* TTFT: rest of the running step + wait + own steps. The prompts are an M/G/1 queue with service
  S'_i = S_i + (p_i / B) t; its wait is taken as exponential beyond an atom at 0,
  P(W > x) = r exp(-x / w), r = L E[S'], w = E[S'] (1 + cs^2) / 2 (1 - r) (Kingman's bound, exact in
  its mean for Poisson arrivals; (ca^2 + cs^2) for others).
* TPOT: a request of k further tokens is late when the prompts computed meanwhile take more than
  k (T - t(n)). They number Poisson(L (k t(n) + TTFT)), what comes while it waits and between its
  own steps: one alone by its bin, several by a normal distribution (logistic approximation of it).
  None is late where a full step takes less than T.
* Cap: with N in the batch of variance n / (1 - L E[S] - L o g) (the chain of `policies.model.batch`
  far from 0), who finds it full is taken as late.
* Draw: natural draw of prompts and of decoding, each at most the limit; idle with probability
  (1 - L E[S]) exp(-n): no prompt in a queue, nobody decoding in a system without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import OutOfRange
from policies.core.lengths import WEIGHTS
from policies.model.fitted import FittedModel

Floats = NDArray[np.float64]
POINTS = 32  # rates per limit
MOST = 8  # prompts that are counted one by one
_W = np.array(WEIGHTS)
# m replicas behind a router act as m^0.6 servers of one queue: who is sent somewhere stays there.
# From simulated fleets of 1 to 12 (tests/policies_sim/test_service.py holds the comparison).
POOLED = 0.6
_LOGISTIC = 1.702  # of the normal distribution function, error below 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Lengths as bins, the targets in seconds, the engine's token budget and cap, the squared
    coefficient of variation of the gaps between arrivals (1 = Poisson), how many replicas share
    the arrivals, and by what factor times are taken longer than the model says: all times where
    the first token is judged, and the gaps between tokens where those are."""

    prompt_bins: tuple[float, ...]
    output_bins: tuple[float, ...]
    ttft_s: float
    tpot_s: float
    budget_tokens: int = 2048
    max_num_seqs: int = 256
    gap_cv2: float = 1.0
    time_ratio: float = 1.0
    pace_ratio: float = 1.0
    pool: int = 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServiceTable:
    """Arrays of the shape (limits, rates), the limits as given. `rates_per_s` ascend from 0.

    `missed_ratio`: share of the requests that could be in time at all and are not; `hopeless_ratio`
    are the others. `watts`: of the replica. `inside`: requests in it, in the mean.
    """

    limits: tuple[float | None, ...]
    rates_per_s: Floats
    missed_ratio: Floats
    watts: Floats
    inside: Floats
    hopeless_ratio: float
    idle_watts: float

    def most_per_s(self, missed_ratio: float) -> Floats:
        """Per limit the highest rate at which no more than that share misses; 0 where none is."""
        found = np.zeros(len(self.limits))
        for row, missed in enumerate(self.missed_ratio):
            above = np.flatnonzero(missed > missed_ratio)
            if not len(above):
                found[row] = self.rates_per_s[-1]
            elif above[0] > 0:
                k = int(above[0])
                low, high = missed[k - 1], min(missed[k], 1.0)
                share = (missed_ratio - low) / max(high - low, 1e-12)
                step = self.rates_per_s[k] - self.rates_per_s[k - 1]
                found[row] = self.rates_per_s[k - 1] + share * step
        return found

    def watts_at(self, rate_per_s: float | Floats) -> Floats:
        """Draw per limit, (limits, ...rates); beyond the last rate that of the last."""
        rates = self.rates_per_s
        wanted = np.minimum(np.asarray(rate_per_s, dtype=np.float64), rates[-1])
        # A third of what `np.clip` takes.
        place = np.minimum(np.maximum(np.searchsorted(rates, wanted) - 1, 0), len(rates) - 2)
        share = (wanted - rates[place]) / (rates[place + 1] - rates[place])
        low, high = self.watts[:, place], self.watts[:, place + 1]
        return np.asarray(low + share * (high - low))

    def inside_at(self, row: int, rate_per_s: float) -> float:
        """Requests in a replica under one limit, in the mean."""
        return float(np.interp(rate_per_s, self.rates_per_s, self.inside[row]))


@lru_cache(maxsize=64)
def service_table(
    model: FittedModel, limits: tuple[float | None, ...], workload: Workload
) -> ServiceTable:
    """The table; limits that the model has no answer for miss everything."""
    steps = _Steps.of(model, limits, workload.time_ratio)
    prompts, outputs = np.array(workload.prompt_bins), np.array(workload.output_bins)
    tokens = max(float(_W @ outputs), 1.0)
    context = float(_W @ prompts) + tokens / 2.0
    fastest = _Steps.of(model, (None,))
    alone_s = fastest.prompt_s(prompts)[0] + np.ceil(prompts / workload.budget_tokens) * float(
        fastest.base_s[0]
    )
    hopeful = np.where(alone_s <= workload.ttft_s, _W, 0.0)
    if not hopeful.any():
        hopeful = _W.copy()
    full_s = float(fastest.prompt_s(prompts)[0] @ _W) + tokens * float(
        fastest.per_seq_s(context)[0]
    )
    rates = np.linspace(0.0, 0.995, POINTS) ** 1.2 / max(workload.time_ratio * full_s, 1e-9)
    grid = _Grid(steps, workload, prompts, outputs, tokens, context, rates)
    late = grid.late_first(hopeful / hopeful.sum())
    slow = grid.slow()
    missed = 1.0 - (1.0 - late) * (1.0 - slow) * (1.0 - grid.full())
    missed = np.where(grid.stable, missed, 1.0)
    return ServiceTable(
        limits=limits,
        rates_per_s=rates,
        missed_ratio=np.maximum.accumulate(missed, axis=1),
        watts=grid.watts(model, limits),
        inside=np.minimum(
            rates * (grid.first_s + tokens * grid.token_s), 2.0 * workload.max_num_seqs
        ),
        hopeless_ratio=float(1.0 - hopeful.sum()),
        idle_watts=model.power.idle_watts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """Step times per limit, (limits,)."""

    base_s: Floats
    seq_s: Floats
    kv_s: Floats
    token_s: Floats
    pair_s: Floats

    @classmethod
    def of(cls, model: FittedModel, limits: tuple[float | None, ...], ratio: float = 1.0) -> _Steps:
        rows = []
        for limit in limits:
            try:
                one = model.latency_under(limit)
            except OutOfRange:
                rows.append((1e9, 1e9, 1e9, 1e9, 1e9))
                continue
            per_token = one.c_s_per_prefill_token + one.d_s_per_token_beyond_knee
            rows.append(
                (
                    one.t0_s,
                    one.a_s_per_seq,
                    one.b_s_per_kv_token,
                    per_token,
                    one.q_s_per_attended_pair,
                )
            )
        return cls(*(ratio * np.array(rows).T))

    def prompt_s(self, tokens: Floats) -> Floats:
        """Seconds that prompts add to steps, (limits, prompts)."""
        pairs = 0.5 * tokens * tokens
        return np.asarray(self.token_s[:, None] * tokens + self.pair_s[:, None] * pairs)

    def per_seq_s(self, context: float) -> Floats:
        """Seconds that a decoding sequence adds to a step, (limits,)."""
        return self.seq_s + self.kv_s * context


class _Grid:
    """The steady state at every (limit, rate)."""

    def __init__(  # noqa: PLR0913, PLR0917  (one place makes it)
        self,
        steps: _Steps,
        workload: Workload,
        prompts: Floats,
        outputs: Floats,
        tokens: float,
        context: float,
        rates: Floats,
    ) -> None:
        self.workload, self.prompts, self.outputs = workload, prompts, outputs
        self.rates, self.tokens, self.context = rates, tokens, context
        self.prompt_s = steps.prompt_s(prompts)  # (limits, bins)
        mean_s = self.prompt_s @ _W
        self.prefill = np.multiply.outer(mean_s, rates)  # share of the time
        grow = np.multiply.outer(steps.per_seq_s(context), rates * tokens)
        slack = 1.0 - self.prefill - grow
        self.stable = slack > 1e-3
        slack = self.slack = np.maximum(slack, 1e-3)
        base = steps.base_s[:, None]
        self.decoding = np.minimum(rates * tokens * base / slack, 4.0 * workload.max_num_seqs)
        self.stable &= self.decoding <= workload.max_num_seqs
        self.idle = np.maximum(1.0 - self.prefill, 0.0) * np.exp(-self.decoding)
        busy = np.maximum(1.0 - self.idle, 1e-9)
        self.batch = np.maximum(self.decoding / busy, np.minimum(self.decoding, 1.0))
        self.step_s = base + self.batch * steps.per_seq_s(context)[:, None]
        self.token_s = self.step_s / np.maximum(1.0 - self.prefill, 1e-3)
        # Prompts as a queue, each with the decoding that its steps carry along.
        chunks = prompts / workload.budget_tokens
        carried = self.prompt_s[:, None, :] + self.step_s[:, :, None] * chunks
        first, second = carried @ _W, (carried * carried) @ _W
        load = np.minimum(first * rates, 0.9999)
        self.stable &= first * rates < 0.999
        service_cv2 = np.maximum(second / np.maximum(first * first, 1e-18) - 1.0, 0.0)
        # With m replicas behind a router that sees who is busy (Sakasegawa 1977, M/G/m): fewer
        # wait, and each place that is free anywhere ends a wait.
        servers = self.servers = float(workload.pool) ** POOLED
        self.wait_load = load ** ((2.0 * (servers + 1.0)) ** 0.5 - 1.0)
        waits = first * (service_cv2 + workload.gap_cv2) / (2.0 * (1.0 - load))
        self.wait_s = waits / servers  # of those that wait
        self.own_s = self.prompt_s[:, None, :] + self.step_s[:, :, None] * np.ceil(chunks)
        rest_s = 0.5 * self.step_s * (1.0 - self.idle)
        self.own_s = self.own_s + rest_s[:, :, None]
        self.first_s = self.own_s @ _W + self.wait_load * self.wait_s

    def late_first(self, weights: Floats) -> Floats:
        """Share of requests whose first token is late, of those with these weights."""
        slack_s = self.workload.ttft_s - self.own_s
        wait_s = np.maximum(self.wait_s, 1e-9)[:, :, None]
        late = np.where(
            slack_s <= 0.0,
            1.0,
            self.wait_load[:, :, None] * np.exp(-np.maximum(slack_s, 0.0) / wait_s),
        )
        return np.asarray(late @ weights)

    def full(self) -> Floats:
        """Share of requests that find no place in the batch."""
        room = self.workload.max_num_seqs - self.decoding
        z = room / np.sqrt(np.maximum(self.decoding, 1e-9) / self.slack)
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(_LOGISTIC * z, -50.0, 50.0))))

    def slow(self) -> Floats:
        """Share of requests that decode too slowly."""
        work = self.workload
        target_s = work.tpot_s * work.time_ratio / work.pace_ratio
        spare_s = target_s - self.step_s
        full_s = self.step_s + self.prompt_s[:, -1:] * np.minimum(
            work.budget_tokens / max(float(self.prompts[-1]), 1.0), 1.0
        )
        tokens = np.maximum(self.outputs - 1.0, 1.0)
        several = np.clip(self.outputs - 1.0, 0.0, 1.0)  # of a bin: more than one token
        need_s = np.maximum(spare_s, 0.0)[:, :, None] * tokens  # (limits, rates, outputs)
        span_s = self.step_s[:, :, None] * tokens + self.first_s[:, :, None]
        # Who is busy with a prompt is passed by where others are not.
        mean = self.rates[None, :, None] * span_s / self.servers
        chance = np.exp(-mean)
        first = (self.prompt_s @ _W)[:, None, None]
        second = (self.prompt_s * self.prompt_s) @ _W
        spread = np.sqrt(np.maximum(second[:, None, None] - first * first, 1e-18))
        over = np.zeros_like(mean)
        left = 1.0 - chance
        for count in range(1, MOST + 1):
            chance = chance * mean / count
            left = left - chance
            if count == 1:
                most_s = (full_s - self.step_s)[:, :, None, None] * tokens[:, None]
                alone_s = np.minimum(self.prompt_s[:, None, None, :], most_s)
                beyond = (alone_s > need_s[..., None]) @ _W
            else:
                z = (need_s - count * first) / (spread * count**0.5)
                beyond = 1.0 / (1.0 + np.exp(np.clip(_LOGISTIC * z, -50.0, 50.0)))
            over += chance * beyond
        z = (need_s - mean * first) / np.sqrt(np.maximum(mean * second[:, None, None], 1e-18))
        over += np.maximum(left, 0.0) / (1.0 + np.exp(np.clip(_LOGISTIC * z, -50.0, 50.0)))
        late = (over * several) @ _W
        late = np.where(full_s <= target_s, 0.0, late)
        return np.asarray(np.where(spare_s <= 0.0, 1.0, np.minimum(late, 1.0)))

    def watts(self, model: FittedModel, limits: tuple[float | None, ...]) -> Floats:
        """Draw at every (limit, rate); past capacity that of a busy replica."""
        power, latency = model.power, model.latency
        per_token = power.e3_joules_per_prefill_token + power.e5_joules_per_token_beyond_knee
        pairs = 0.5 * self.prompts * self.prompts
        prompt_joules = per_token * self.prompts + power.e4_joules_per_attended_pair * pairs
        natural_s = (
            latency.c_s_per_prefill_token + latency.d_s_per_token_beyond_knee
        ) * self.prompts + latency.q_s_per_attended_pair * pairs
        prefill_watts = float(_W @ prompt_joules) / max(float(_W @ natural_s), 1e-12)
        per_seq = power.e1_joules_per_seq + power.e2_joules_per_kv_token * self.context
        per_seq_s = latency.a_s_per_seq + latency.b_s_per_kv_token * self.context
        batch = np.maximum(self.batch, 1.0)
        decode_watts = (power.e0_joules_per_step + batch * per_seq) / (
            latency.t0_s + batch * per_seq_s
        )
        ceilings = np.array([power.ceiling_watts(one) for one in limits])[:, None]
        prefill = np.minimum(self.prefill, 1.0)
        decode = np.maximum(1.0 - self.idle - prefill, 0.0)
        idle = np.maximum(1.0 - prefill - decode, 0.0)
        found = (
            idle * power.idle_watts
            + prefill * np.minimum(prefill_watts, ceilings)
            + decode * np.minimum(decode_watts, ceilings)
        )
        return np.maximum.accumulate(found, axis=1)
