"""PALS: power limit and batch cap together, by an offline model under feedback, at given replicas.

Source: Hankendi et al., "PALS: Power-Aware LLM Serving", arXiv 2605.21427: lightweight offline
power-performance models and a feedback controller, every 500 ms, choose the (limit, batch) of the
most tokens per joule among those that reach a throughput target.

Here, per replica and tick (1 s): the target is the measured token rate with `margin_ratio` on top
and the backlog to be cleared in 10 s; each (limit, cap) is judged by the profile at that load, and
of those that reach the target the one with the fewest joules per request is taken, which is most
tokens per joule at equal work. Feedback: the profile's step times are multiplied by the measured
over the predicted TPOT, averaged over time, never below 1 and at most 2; while the measured
latency misses the SLO the limit goes one step higher every `step_s`, and back one step at a time.

Made stronger than the paper: `latency_guard` leaves out the pairs of which the profile says that
they break the SLO (PALS knows no latency), and each replica sees its own load. Simplified: caps
come from a ladder of powers of two, as the paper's batches do; loads within 2 % share an answer.
Replicas are those of `replicas`, another policy, or stay as they are (the paper's case).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from policies.core.control import Policy
from policies.core.errors import ModelError
from policies.core.objective import TIE_RATIO
from policies.core.observe import View
from policies.core.types import (
    SLO,
    Bounds,
    Knob,
    Load,
    OperatingPoint,
    Reason,
)
from policies.model.fitted import FittedModel
from policies.peer_memory import Due, Memo, Misses, number
from policies.peer_parts import (
    Ask,
    Limit,
    Result,
    Wish,
    WishingPeer,
    full_point,
    known_limits,
    rounded,
    shared,
    stay,
    with_replicas_of,
)

SLOWEST = 2.0  # x the profile's step time: what feedback may go to
SLOW_GRID = 0.05  # a difference below this is none
WEIGHT = 0.05  # of a new measurement in the average


@dataclass(kw_only=True, slots=True)
class _Feedback:
    """What one replica's measurements say."""

    slow_ratio: float = 1.0
    steps_up: int = 0
    last_step_s: float = float("-inf")


_Question = tuple[Load, SLO, Bounds, float, bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pals(WishingPeer):
    """Remembers its feedback per replica: one object per run."""

    NAME: ClassVar[str] = "pals"

    model: FittedModel
    replicas: Policy | None = None
    margin_ratio: float = 0.1
    interval_s: float = 1.0
    step_s: float = 10.0
    latency_guard: bool = True
    _misses: Misses = field(default_factory=Misses, init=False, repr=False, compare=False)
    _due: Due = field(default_factory=Due, init=False, repr=False, compare=False)
    _feedback: dict[str, _Feedback] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _answers: Memo[_Question, OperatingPoint | None] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def _answer(self, ask: Ask) -> Result:
        return with_replicas_of(self.NAME, ask, self.replicas, self._wish)

    def _wish(self, ask: Ask, view: View) -> Wish:
        if ask.free == frozenset({Knob.NUM_REPLICAS}):
            return stay(view, Reason.STATIC)
        if not view.fresh:
            return Wish(point=full_point(view.present, ask.bounds), reason=Reason.STALE)
        name = view.fresh[0].replica
        if not self._due.again(name, view.now_s, self.interval_s):
            return stay(view, Reason.NO_BETTER_POINT)
        if view.load is None:
            reason = Reason.MODEL_UNTRUSTED if view.traffic else Reason.NO_TRAFFIC
            return Wish(point=full_point(view.present, ask.bounds), reason=reason)
        load = shared(view.load, len(view.fresh))
        feedback = self._feedback.setdefault(name, _Feedback())
        self._learn(feedback, ask, view, load)
        target = rounded(
            replace(load, arrival_rate_per_s=load.arrival_rate_per_s * (1.0 + self.margin_ratio))
        )
        slow = 1.0 + SLOW_GRID * round((feedback.slow_ratio - 1.0) / SLOW_GRID)
        key = (target, ask.slo, ask.bounds, slow, self.latency_guard)
        best = self._answers.get(key, lambda: self._best(target, ask, slow))
        if best is None:  # nothing reaches the target: all there is
            return Wish(point=full_point(view.present, ask.bounds), reason=Reason.NO_FEASIBLE_POINT)
        limits = known_limits(self.model, ask.bounds)
        place = max(limits.index(best.power_limit_watts) - feedback.steps_up, 0)
        point = replace(
            best, num_replicas=view.present.num_replicas, power_limit_watts=limits[place]
        )
        reason = Reason.SLO_AT_RISK if feedback.steps_up else Reason.CHEAPEST_FEASIBLE
        return Wish(point=point, reason=reason)

    def _learn(self, feedback: _Feedback, ask: Ask, view: View, load: Load) -> None:
        late = self._misses.late(view.fresh, view.now_s, ask.settings.slo)
        if (late or feedback.steps_up) and view.now_s >= feedback.last_step_s + self.step_s:
            most = len(known_limits(self.model, ask.bounds)) - 1
            feedback.steps_up = min(max(feedback.steps_up + (1 if late else -1), 0), most)
            feedback.last_step_s = view.now_s
        measured_s = max(number(one.tpot_s) for one in view.fresh)
        if late or not measured_s:  # a backlog says nothing about how long a step takes
            return
        point = replace(view.present, num_replicas=1)
        try:
            predicted_s = self.model.predict(point, load, ask.settings.slo).tpot_s
        except ModelError:
            return
        ratio = min(max(measured_s / predicted_s, 1.0), SLOWEST)
        feedback.slow_ratio += WEIGHT * (ratio - feedback.slow_ratio)

    def _best(self, target: Load, ask: Ask, slow: float) -> OperatingPoint | None:
        """The pair with the fewest joules per request that reaches the target."""
        model = self.model.corrected(step_time_ratio=slow)
        found: list[tuple[float, OperatingPoint]] = []
        for limit in known_limits(self.model, ask.bounds):
            for cap in _ladder(ask.bounds):
                joules = self._joules(model, _point(cap, limit), target, ask.slo)
                if joules is not None:
                    found.append((joules, _point(cap, limit)))
        if not found:
            return None
        least = (1.0 + TIE_RATIO) * min(joules for joules, _ in found)
        ties = [point for joules, point in found if joules <= least]
        return max(ties, key=lambda point: (point.max_num_active_seqs, _watts(point)))

    def _joules(
        self, model: FittedModel, point: OperatingPoint, target: Load, slo: SLO
    ) -> float | None:
        """Joules per request; None where the pair does not reach the target."""
        try:
            if model.capacity_per_s(point, target) < target.arrival_rate_per_s:
                return None
            prediction = model.predict(point, target, slo)
        except ModelError:
            return None
        if self.latency_guard and not prediction.feasible:
            return None
        return prediction.joules_per_request


def _ladder(bounds: Bounds) -> list[int]:
    caps, cap = [], max(bounds.max_num_seqs, 1)
    while cap >= max(bounds.min_active_seqs, 1):
        caps.append(cap)
        cap //= 2
    return caps


def _watts(point: OperatingPoint) -> float:
    return math.inf if point.power_limit_watts is None else point.power_limit_watts


def _point(cap: int, limit: Limit) -> OperatingPoint:
    return OperatingPoint(num_replicas=1, max_num_active_seqs=cap, power_limit_watts=limit)
