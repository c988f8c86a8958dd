"""throttLL'eM: the clock that just meets the projected latencies, and engines by their known load.

Source: Kakolyris et al., "throttLL'eM: Predictive GPU Throttling for Energy Efficient LLM Inference
Serving", HPCA 2025, arXiv 2408.05235. Per iteration it projects batch size and KV usage of the
scheduled requests, a model turns (clock, batch, KV) into iterations/s, and the lowest clock is
taken at which every request keeps its end-to-end target and the mean time between tokens its own;
found by bisection over the clocks. The autoscaler knows the most requests/s of each engine within
the SLO and takes the smallest engine for the measured rate: up at once, down after a grace period.

Here: power limits instead of clocks, the number of replicas instead of the engine's size, the
profile instead of their gradient-boosted trees (their R2 is .97; the profile is exact where truth
and belief are one). Projection for the next tick: what runs, what waits and what arrives meanwhile,
at the mean context; a step at that batch gives the time between tokens (with the prefills that fall
into a request's life, at the SLO's percentile), the prompts that wait and two steps give the TTFT,
and TTFT + (tout - 1) x TPOT the end-to-end time, which holds where both targets do. The paper
predicts each request's length; here the means stand for them, since no observation holds more.

Made stronger: TTFT is projected too; of the limits that meet the targets the one with the fewest
joules per token at the projected batch is taken (`cheapest`; False: the lowest, as in the paper,
which may lie below the most efficient one); a measured miss goes to full power.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from policies.core.observe import View
from policies.core.types import (
    SLO,
    Bounds,
    Load,
    Reason,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel
from policies.peer_memory import Memo, Misses, RecentMost, number
from policies.peer_parts import (
    Ask,
    Limit,
    Wish,
    WishingPeer,
    backlog_s,
    fewest_replicas,
    full_point,
    known_limits,
    rounded,
    shared,
    stay,
)

BUSIEST = 0.999  # share of its prefill capacity that a projection may use


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """One replica at one limit for the next tick."""

    ttft_s: float
    tpot_s: float
    joules_per_token: float

    def holds(self, slo: SLO) -> bool:
        """Whether both targets are kept, and with them the end-to-end time they allow."""
        return self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s


@dataclass(frozen=True, kw_only=True, slots=True)
class ThrottLlem(WishingPeer):
    """Remembers the counts it wanted: one object per run."""

    NAME: ClassVar[str] = "throttllem"

    model: FittedModel
    tick_s: float = 1.0
    grace_s: float = 60.0
    cheapest: bool = True
    _misses: Misses = field(default_factory=Misses, init=False, repr=False, compare=False)
    _wanted: RecentMost = field(default_factory=RecentMost, init=False, repr=False, compare=False)
    _counts: Memo[tuple[Load, SLO, Bounds], int | None] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def _wish(self, ask: Ask, view: View) -> Wish:
        return self._fleet(ask, view) if ask.chooses_replicas else self._replica(ask, view)

    def _fleet(self, ask: Ask, view: View) -> Wish:
        full, bounds = full_point(view.present, ask.bounds), ask.bounds
        if not view.fresh:
            return Wish(point=full, reason=Reason.STALE)
        reason = Reason.CHEAPEST_FEASIBLE
        if view.load is not None:
            near = rounded(view.load)
            found = self._counts.get(
                (near, ask.slo, bounds),
                lambda: fewest_replicas(self.model, near, ask.slo, bounds),
            )
            wanted = max(bounds.max_replicas, 1) if found is None else found
            reason = reason if found is not None else Reason.NO_FEASIBLE_POINT
        elif view.traffic:
            return Wish(point=full, reason=Reason.MODEL_UNTRUSTED)
        else:
            wanted, reason = max(bounds.min_replicas, 1), Reason.NO_TRAFFIC
        self._wanted.add(view.now_s, wanted)
        recent = self._wanted.most(view.now_s, self.grace_s)
        if recent is not None and wanted < view.present.num_replicas:
            wanted = min(view.present.num_replicas, int(recent))
        return Wish(point=replace(full, num_replicas=wanted), reason=reason)

    def _replica(self, ask: Ask, view: View) -> Wish:
        full = full_point(view.present, ask.bounds)
        if not view.fresh:
            return Wish(point=full, reason=Reason.STALE)
        if view.load is None:
            if view.traffic:
                return Wish(point=full, reason=Reason.MODEL_UNTRUSTED)
            return stay(view, Reason.NO_TRAFFIC)
        if self._misses.late(view.fresh, view.now_s, ask.settings.slo):
            return Wish(point=full, reason=Reason.SLO_AT_RISK)
        load, one = shared(view.load, len(view.fresh)), _busiest(view.fresh)
        found = [
            (limit, projection)
            for limit in known_limits(self.model, ask.bounds)
            if (projection := self.project(one, load, ask, limit)).holds(ask.slo)
        ]
        if not found:
            return Wish(point=full, reason=Reason.NO_FEASIBLE_POINT)
        limit = found[-1][0]
        if self.cheapest:
            limit = min(found, key=lambda pair: pair[1].joules_per_token)[0]
        point = full_point(view.present, ask.bounds, limit)
        return Wish(point=point, reason=Reason.CHEAPEST_FEASIBLE)

    def project(self, one: ReplicaObservation, load: Load, ask: Ask, limit: Limit) -> Projection:
        """What the next tick brings a replica under this limit. `load`: its own."""
        cap = ask.bounds.max_num_seqs
        latency = self.model.latency_under(limit)
        curve = latency.curve(load)
        coming = load.arrival_rate_per_s * self.tick_s
        batch = min(max(number(one.num_running) + number(one.num_waiting) + coming, 1.0), cap)
        admitted = min(load.arrival_rate_per_s, BUSIEST * latency.capacity_per_s(load, cap))
        tpot_s = latency.tpot_s(
            replace(load, arrival_rate_per_s=admitted), batch, ask.slo.percentile
        )
        # The running step, the prompts that wait, and the step that computes its own.
        ttft_s = 2.0 * curve.decode(batch) + backlog_s(one, load, curve) + curve.per_prompt
        draw_watts = self.model.draw_by_batch(load, cap, limit)[round(batch)]
        return Projection(
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            joules_per_token=float(draw_watts) * curve.mean(batch) / batch,
        )


def _busiest(replicas: tuple[ReplicaObservation, ...]) -> ReplicaObservation:
    return max(replicas, key=lambda one: number(one.num_running) + number(one.num_waiting))
