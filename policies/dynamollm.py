"""DynamoLLM: replicas by forecast once per epoch, clocks every few seconds, here power limits.

Source: Stojkovic et al., "DynamoLLM: Designing LLM Inference Clusters for Performance and Energy
Efficiency", HPCA 2025, arXiv 2408.00741. A hierarchy of controllers: the cluster manager sizes the
pools every 30 min for the predicted peak of the coming epoch, choosing the configuration of least
energy that its profile says serves it; the instance manager sets each instance's clock every 5 s to
the one of least energy that meets the SLO at the present load, and goes to the highest clock at
once in an emergency, when requests build up or a target is missed.

Here: one pool and one tensor parallelism, since neither can be changed on a running deployment; so
the paper's mixed-integer programme is a search over replicas x limits at the full batch, and exact.
Forecast: the larger of the epoch's peak so far and its end carried on along its trend, with
`headroom_ratio` on top (the paper predicts from the same hour of former weeks, which a trace of a
day does not have); `peak_rate_per_s` (start, end → requests/s) replaces it, for a forecast made
elsewhere or in hindsight.

Made stronger: epochs of 5 min instead of 30; `early`: a load above what was planned for starts a
new epoch at once. Emergency: a measured miss, or prompts that wait for more than half of the TTFT
target at full power.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from policies.core.errors import ModelError
from policies.core.objective import Candidates, cheapest_feasible
from policies.core.observe import View
from policies.core.types import (
    SLO,
    Bounds,
    Load,
    OperatingPoint,
    Reason,
)
from policies.model.fitted import FittedModel
from policies.peer_memory import Due, Memo, Misses
from policies.peer_parts import (
    Ask,
    Limit,
    Wish,
    WishingPeer,
    backlog_s,
    full_point,
    known_limits,
    rounded,
    shared,
    stay,
)

BACKLOG_SHARE = 0.5  # of the TTFT target: more waiting than this is an emergency


@dataclass(kw_only=True, slots=True)
class _Epoch:
    """What the cluster manager has seen since its last plan, and what that plan was for."""

    start_s: float | None = None
    planned_per_s: float = 0.0
    seen: deque[tuple[float, float]] = field(default_factory=deque)

    def forecast_per_s(self, epoch_s: float) -> float:
        """The largest rate so far, or the last one carried on by an epoch along its trend."""
        if not self.seen:
            return 0.0
        (first_s, first), (last_s, last) = self.seen[0], self.seen[-1]
        span_s = last_s - first_s
        slope = (last - first) / span_s if span_s >= 0.5 * epoch_s else 0.0
        return max(*(rate for _, rate in self.seen), last + slope * epoch_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamoLlm(WishingPeer):
    """Remembers the epoch's load and each replica's last choice: one object per run."""

    NAME: ClassVar[str] = "dynamollm"

    model: FittedModel
    epoch_s: float = 300.0
    interval_s: float = 5.0
    headroom_ratio: float = 0.1
    early: bool = True
    peak_rate_per_s: Callable[[float, float], float] | None = None
    _epoch: _Epoch = field(default_factory=_Epoch, init=False, repr=False, compare=False)
    _misses: Misses = field(default_factory=Misses, init=False, repr=False, compare=False)
    _due: Due = field(default_factory=Due, init=False, repr=False, compare=False)
    _answers: Memo[tuple[Load, SLO, Bounds], tuple[bool, Limit]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def _wish(self, ask: Ask, view: View) -> Wish:
        return self._cluster(ask, view) if ask.chooses_replicas else self._instance(ask, view)

    def _cluster(self, ask: Ask, view: View) -> Wish:
        full = full_point(view.present, ask.bounds)
        if not view.fresh:
            return Wish(point=full, reason=Reason.STALE)
        epoch, now_s = self._epoch, view.now_s
        rate_per_s = view.load.arrival_rate_per_s if view.load is not None else 0.0
        epoch.seen.append((now_s, rate_per_s))
        while epoch.seen[0][0] < now_s - self.epoch_s:
            epoch.seen.popleft()
        over = epoch.start_s is None or not epoch.start_s <= now_s < epoch.start_s + self.epoch_s
        surprised = self.early and rate_per_s > epoch.planned_per_s
        if not over and not surprised:
            return Wish(point=full, reason=Reason.NO_BETTER_POINT)
        if view.load is None:
            if view.traffic:
                return Wish(point=full, reason=Reason.MODEL_UNTRUSTED)
            epoch.start_s, epoch.planned_per_s = now_s, 0.0
            fewest = max(ask.bounds.min_replicas, 1)
            return Wish(point=replace(full, num_replicas=fewest), reason=Reason.NO_TRAFFIC)
        peak_per_s = max(self._peak(now_s), rate_per_s) * (1.0 + self.headroom_ratio)
        epoch.start_s, epoch.planned_per_s = now_s, peak_per_s
        try:
            wanted, feasible = self._size(replace(view.load, arrival_rate_per_s=peak_per_s), ask)
        except ModelError as error:
            return Wish(point=full, reason=Reason.MODEL_UNTRUSTED, notes=(str(error),))
        if surprised and not over:
            wanted = max(wanted, view.present.num_replicas)
        reason = Reason.CHEAPEST_FEASIBLE if feasible else Reason.NO_FEASIBLE_POINT
        return Wish(point=replace(full, num_replicas=wanted), reason=reason)

    def _peak(self, now_s: float) -> float:
        if self.peak_rate_per_s is not None:
            return self.peak_rate_per_s(now_s, now_s + self.epoch_s)
        return self._epoch.forecast_per_s(self.epoch_s)

    def _size(self, load: Load, ask: Ask) -> tuple[int, bool]:
        """The replicas of least energy that serve the load at some limit, with the full batch."""
        bounds = ask.bounds
        low = max(bounds.min_replicas, 1)
        box = Candidates(
            replicas=(low, max(bounds.max_replicas, low)),
            caps=(bounds.max_num_seqs, bounds.max_num_seqs),
            limits=known_limits(self.model, bounds),
        )
        choice = cheapest_feasible(self.model, load, ask.slo, box)
        return choice.point.num_replicas, choice.feasible

    def _instance(self, ask: Ask, view: View) -> Wish:
        full = full_point(view.present, ask.bounds)
        if not view.fresh:
            return Wish(point=full, reason=Reason.STALE)
        if view.load is None:
            if view.traffic:
                return Wish(point=full, reason=Reason.MODEL_UNTRUSTED)
            return stay(view, Reason.NO_TRAFFIC)
        load = shared(view.load, len(view.fresh))
        if self._emergency(ask, view, load):
            return Wish(point=full, reason=Reason.SLO_AT_RISK, notes=("emergency",))
        if not self._due.again(view.fresh[0].replica, view.now_s, self.interval_s):
            return stay(view, Reason.NO_BETTER_POINT)
        near = rounded(load)
        feasible, limit = self._answers.get(
            (near, ask.slo, ask.bounds), lambda: self._cheapest_limit(near, ask)
        )
        point = full_point(view.present, ask.bounds, limit)
        reason = Reason.CHEAPEST_FEASIBLE if feasible else Reason.NO_FEASIBLE_POINT
        return Wish(point=point, reason=reason)

    def _emergency(self, ask: Ask, view: View, load: Load) -> bool:
        slo = ask.settings.slo
        if self._misses.late(view.fresh, view.now_s, slo):
            return True
        curve = self.model.latency.curve(load)
        return any(backlog_s(one, load, curve) > BACKLOG_SHARE * slo.ttft_s for one in view.fresh)

    def _cheapest_limit(self, load: Load, ask: Ask) -> tuple[bool, Limit]:
        """Whether one replica can hold the targets, and the limit at which it does so cheapest."""
        found: list[tuple[float, Limit]] = []
        for limit in known_limits(self.model, ask.bounds):
            point = OperatingPoint(
                num_replicas=1,
                max_num_active_seqs=ask.bounds.max_num_seqs,
                power_limit_watts=limit,
            )
            try:
                prediction = self.model.predict(point, load, ask.slo)
            except ModelError:
                continue
            if prediction.feasible:
                found.append((prediction.joules_per_request, limit))
        return (True, min(found, key=lambda one: one[0])[1]) if found else (False, None)
