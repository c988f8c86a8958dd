"""From what was learned to the table of what a replica can do, made anew only when that changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from policies.core.errors import ModelError
from policies.core.lengths import WEIGHTS
from policies.core.memory import MARGIN_HIGH, Memory
from policies.core.types import ControlSettings
from policies.joint.options import JointOptions
from policies.model.fitted import FittedModel
from policies.model.latency import LatencyModel
from policies.model.service import Floats, ServiceTable, Workload, service_table

POOLS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
MARGIN_STEP = 0.05  # margins are rounded to this, so that tables are used again
SPARE = 0.3  # margins lower than minus this
SLACK = 0.09  # of the load between few misses and all: so little asks for a slack of all of it
WEIGHTS_OF = np.array(WEIGHTS)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Capability:
    """What one replica can do under each limit, the lowest first and the device's own last.

    `most_per_s`: the highest load that holds the SLO; `best`: the limit with the fewest joules per
    request at its highest load; `most_inside`: how many are in the replica at its highest load,
    per limit; `pack_seqs`: how many at the load to fill it up to, that of the fewest joules per
    request. Under a higher limit the same load is fewer requests: a router that counts requests
    would else give it more load the faster it is; `caps`: the largest batch whose every step is in
    time when it is full; `prefill_s_per_token`: how long a waiting prompt token takes;
    `full_per_s`: the load under which queues grow without end at full power.
    """

    limits: tuple[float | None, ...]
    table: ServiceTable
    most_per_s: Floats
    best: int
    pack_seqs: tuple[int, ...]
    most_inside: Floats
    caps: tuple[int, ...]
    prefill_s_per_token: Floats
    full_per_s: float

    @property
    def slack_ratio(self) -> float:
        """By how much more than a top load a fleet must be able to serve: 1.1 where misses rise
        slowly with the load, up to 1.8 where a few percent lie between none and all of them."""
        steep = self.full_per_s / max(float(self.most_per_s[-1]), 1e-9) - 1.0
        return 1.0 + min((SLACK / max(steep, 1e-9)) ** 2, 0.8)

    @property
    def top_per_s(self) -> float:
        """The highest load that any limit holds."""
        return float(self.most_per_s.max())


def capability(
    model: FittedModel,
    memory: Memory,
    settings: ControlSettings,
    options: JointOptions,
    pool: int = 1,
) -> Capability:
    """The capability for the lengths in use and the margin, rounded; `pool` replicas share the
    arrivals."""
    bounds, slo = settings.bounds, settings.slo
    # A margin below 0 says first that less is late than modelled; that more can be served it only
    # says when it stays there, and by half.
    first, pace = _ratio(memory.margin), _ratio(memory.pace_margin)
    spare = _ratio(min(max(memory.margin or 0.0, memory.pace_margin or 0.0) + SPARE, 0.0) / 2.0)
    workload = Workload(
        prompt_bins=memory.prompt_bins,
        output_bins=memory.output_bins,
        ttft_s=slo.ttft_s / min(first, 1.0),
        tpot_s=slo.tpot_s / min(pace, 1.0),
        budget_tokens=options.max_num_batched_tokens,
        max_num_seqs=bounds.max_num_seqs,
        time_ratio=max(first, 1.0) * spare,
        pace_ratio=max(pace, 1.0) * spare,
        pool=pool_of(pool),
    )
    allowed = (1.0 - slo.percentile) * options.allowed_share
    return _capability(model, bounds.limits, workload, allowed)


def pool_of(replicas: int) -> int:
    """The pool that tables are made for: of two that share one, neither is asked twice."""
    return max(one for one in POOLS if one <= max(replicas, 1))


def _ratio(margin: float | None) -> float:
    rounded = MARGIN_STEP * round((margin or 0.0) / MARGIN_STEP)
    return math.exp(min(rounded, MARGIN_HIGH))


@lru_cache(maxsize=256)
def _capability(
    model: FittedModel, limits: tuple[float | None, ...], workload: Workload, allowed: float
) -> Capability:
    table = service_table(model, limits, workload)
    floor = float(table.missed_ratio[:, 0].min())
    most = table.most_per_s(allowed + floor)
    most = np.maximum.accumulate(most)  # a higher limit never serves less
    costs = [
        float(np.interp(rate, table.rates_per_s, row)) / rate if rate > 0.0 else np.inf
        for rate, row in zip(most, table.watts, strict=True)
    ]
    best = int(np.argmin(costs))
    inside = np.array([table.inside_at(row, float(rate)) for row, rate in enumerate(most)])
    filled = [table.inside_at(max(row, best), float(most[best])) for row in range(len(limits))]
    stable = np.flatnonzero(table.missed_ratio[-1] < 1.0)
    packs = tuple(int(min(max(round(one), 1), workload.max_num_seqs)) for one in filled)
    caps, per_token = [], []
    for limit in limits:
        try:
            latency = model.latency_under(limit)
        except ModelError:
            latency = model.latency
        # A margin says that modelled times are short, not that a queue should wait for it.
        least = max(2 * packs[best], _full_batch(latency, replace(workload, pace_ratio=1.0)) // 2)
        caps.append(max(_full_batch(latency, workload), min(least, workload.max_num_seqs)))
        per_token.append(
            (latency.c_s_per_prefill_token + latency.d_s_per_token_beyond_knee)
            * workload.time_ratio
        )
    return Capability(
        limits=limits,
        table=table,
        most_per_s=most,
        best=best,
        pack_seqs=packs,
        most_inside=inside,
        caps=tuple(caps),
        prefill_s_per_token=np.array(per_token),
        full_per_s=float(table.rates_per_s[stable[-1]]) if len(stable) else 0.0,
    )


def _full_batch(latency: LatencyModel, workload: Workload) -> int:
    """The largest batch n with t0 + n (g + E[S]/o) <= T: full, it takes in n / o prompts a step."""
    prompts = np.array(workload.prompt_bins)
    tokens = max(float(np.dot(WEIGHTS_OF, workload.output_bins)), 1.0)
    per_token = latency.c_s_per_prefill_token + latency.d_s_per_token_beyond_knee
    prefill_s = float(
        WEIGHTS_OF @ (per_token * prompts + latency.q_s_per_attended_pair * 0.5 * prompts**2)
    )
    context = float(WEIGHTS_OF @ prompts) + tokens / 2.0
    per_seq = latency.a_s_per_seq + latency.b_s_per_kv_token * context + prefill_s / tokens
    spare = workload.tpot_s / workload.pace_ratio - latency.t0_s
    full = spare / max(per_seq, 1e-12)
    return int(min(max(full, 1.0), workload.max_num_seqs))
