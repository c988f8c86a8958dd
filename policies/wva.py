"""llm-d's workload-variant-autoscaler: replicas by a queueing model, at full batch and full power.

Source: llm-d/workload-variant-autoscaler. `pkg/core/server.go`: replicas = ceil(arrival rate / the
largest rate of one replica within the targets), see `policies.wva_queue`. Over it the saturation
guard of `internal/saturation/analyzer.go` with its default thresholds: a replica is saturated at
80 % of its KV cache or 5 queued requests; one more replica when the replicas that are not saturated
have on average less than 10 % of KV or 3 places to spare, unless a move is under way; no fewer
where one replica less would leave less than that, nor while a move is under way. The count is
then actuated by a HorizontalPodAutoscaler: up at once, down to the largest wish of the last
`down_after_s` (Kubernetes' stabilization window, 300 s by default).

Simplified, none to its harm: it decides every `interval_s` = 10 s, not 60; demand counts the
backlog on top of the arrivals; its Kalman filter, which learns alpha, beta and gamma online, is
left out, for the profile is given (with a wrong one the real system would recover); KV is estimated
as running requests x mean context where `kv_capacity_tokens` is given, else only queues count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from policies.core.observe import View
from policies.core.types import (
    SLO,
    Load,
    Reason,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel
from policies.model.latency import mean_context_tokens
from policies.peer_memory import Due, Memo, RecentMost, number
from policies.peer_parts import Ask, Wish, WishingPeer, full_point, rounded
from policies.wva_queue import ReplicaQueue

KV_THRESHOLD, QUEUE_THRESHOLD = 0.80, 5.0
KV_SPARE, QUEUE_SPARE = 0.10, 3.0
MOST_REPLICAS = 1e6  # bounds come after
FEWEST_TO_SHRINK = 2  # replicas that are not saturated (MinNonSaturatedReplicasForScaleDown)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saturation:
    """What the guard says: one replica more is needed; one less would do."""

    grow: bool
    may_shrink: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Wva(WishingPeer):
    """`tail`: judge the wait at the SLO's percentile (True), or its mean as the original (False).
    Remembers its wishes: one object per run."""

    NAME: ClassVar[str] = "wva"

    model: FittedModel
    interval_s: float = 10.0
    down_after_s: float = 300.0
    tail: bool = True
    kv_capacity_tokens: float | None = None
    _due: Due = field(default_factory=Due, init=False, repr=False, compare=False)
    _wishes: RecentMost = field(default_factory=RecentMost, init=False, repr=False, compare=False)
    _rates: Memo[tuple[Load, int, SLO], float | None] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def _wish(self, ask: Ask, view: View) -> Wish:
        full = full_point(view.present, ask.bounds)
        if not ask.chooses_replicas:
            return Wish(point=full, reason=Reason.STATIC)
        if not self._due.again("fleet", view.now_s, self.interval_s):
            return Wish(point=full, reason=Reason.NO_BETTER_POINT)
        wanted, reason = self._wanted(ask, view)
        present = view.present.num_replicas
        self._wishes.add(view.now_s, wanted)
        if wanted < present:
            recent = self._wishes.most(view.now_s, self.down_after_s)
            wanted = min(present, wanted if recent is None else int(recent))
            if not self._may_shrink(ask, view):
                wanted = present
        return Wish(point=replace(full, num_replicas=wanted), reason=reason)

    def _wanted(self, ask: Ask, view: View) -> tuple[int, Reason]:
        present = view.present.num_replicas
        if not view.fresh:
            return present, Reason.STALE
        if view.load is None:
            if view.traffic:
                return present, Reason.MODEL_UNTRUSTED
            return max(ask.bounds.min_replicas, 1), Reason.NO_TRAFFIC
        most_per_s = self.most_per_s(view.load, ask)
        if most_per_s is None:  # the original leaves the variant as it is
            wanted, reason = present, Reason.NO_FEASIBLE_POINT
        else:
            wanted = math.ceil(min(view.load.arrival_rate_per_s / most_per_s, MOST_REPLICAS))
            reason = Reason.CHEAPEST_FEASIBLE
        steady = present == ask.observation.observed_replicas
        if steady and wanted <= present and self.saturation(view.fresh).grow:
            return present + 1, Reason.SLO_AT_RISK
        return max(wanted, 1), reason

    def _may_shrink(self, ask: Ask, view: View) -> bool:
        steady = view.present.num_replicas == ask.observation.observed_replicas
        return steady and self.saturation(view.fresh).may_shrink

    def most_per_s(self, load: Load, ask: Ask) -> float | None:
        """The largest rate of one replica within the targets; None where there is none."""
        near = replace(rounded(load), arrival_rate_per_s=0.0)
        cap = ask.bounds.max_num_seqs
        percentile = min(max(ask.slo.percentile, 0.0), 1.0 - 1e-9)
        queue = ReplicaQueue(
            curve=self.model.latency.curve(near),
            max_batch=cap,
            wait_factor=-math.log(1.0 - percentile) if self.tail else 1.0,
        )
        return self._rates.get((near, cap, ask.slo), lambda: queue.most_per_s(ask.slo))

    def saturation(self, replicas: tuple[ReplicaObservation, ...]) -> Saturation:
        """The guard's word on these replicas."""
        if not replicas:
            return Saturation(grow=False, may_shrink=False)
        used = [(self._kv_ratio(one), number(one.num_waiting)) for one in replicas]
        free = [(kv, queue) for kv, queue in used if kv < KV_THRESHOLD and queue < QUEUE_THRESHOLD]
        if not free:
            return Saturation(grow=True, may_shrink=False)
        kv_load = math.fsum(kv for kv, _ in free) / len(free)
        queue_load = math.fsum(queue for _, queue in free) / len(free)
        grow = not _spare(kv_load, queue_load)
        if len(free) < FEWEST_TO_SHRINK:
            return Saturation(grow=grow, may_shrink=False)
        more = len(free) / (len(free) - 1)
        return Saturation(grow=grow, may_shrink=_spare(kv_load * more, queue_load * more))

    def _kv_ratio(self, one: ReplicaObservation) -> float:
        if not self.kv_capacity_tokens or one.prompt_tokens is None or one.output_tokens is None:
            return 0.0
        load = Load(
            arrival_rate_per_s=0.0,
            prompt_tokens=number(one.prompt_tokens),
            output_tokens=number(one.output_tokens),
        )
        return number(one.num_running) * mean_context_tokens(load) / self.kv_capacity_tokens


def _spare(kv_load: float, queue_load: float) -> bool:
    """Whether both have enough to spare."""
    return KV_THRESHOLD - kv_load >= KV_SPARE and QUEUE_THRESHOLD - queue_load >= QUEUE_SPARE
