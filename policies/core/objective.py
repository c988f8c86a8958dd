"""The cheapest operating point that holds the targets: a search over replicas, cap and limit.

The cap rule: for given replicas and power limit take the *largest* cap whose TPOT percentile holds
when the batch is full under the present arrival rate. The cap is the TPOT guarantee in bursts, and
larger batches cost fewer joules; TTFT is then checked by queueing at that cap. So the cap falls as
the arrival rate or the prompts grow, and rises again when they shrink. Where nothing holds both
targets, the cap is the one whose worse miss is the smallest: in overload the largest, since the
queue makes every request late and the largest batch drains it soonest, for the fewest joules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from policies.core.errors import ModelError, OutOfRange
from policies.core.types import SLO, Bounds, Knob, Load, OperatingPoint, Prediction

TIE_RATIO = 0.005  # closer than this in J/request is a tie: below what any fit can tell apart
UNLOADED_PER_S = 1e-3  # one request in 1000 s: what a replica that has nothing else to do shows
MISSED_BY = 2.0  # an unattainable target is replaced by this multiple of what an idle replica does


class PerfModel(Protocol):
    """What a decision needs to know about engine and device. Both methods raise ModelError."""

    @property
    def trusted(self) -> bool:
        """Whether the model may be acted on at all."""

    def predict(self, point: OperatingPoint, load: Load, slo: SLO) -> Prediction:
        """Latency, draw and joules of the fleet at `point` under the fleet's `load`."""

    def full_batch_tpot_s(self, point: OperatingPoint, load: Load, slo: SLO) -> float:
        """TPOT at `slo.percentile` with a full batch; never falls with the cap or the load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The box to search: replicas and caps inclusive, power limits best first (None = default)."""

    replicas: tuple[int, int]
    caps: tuple[int, int]
    limits: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A point and what the model says about it under the SLO that was asked for."""

    point: OperatingPoint
    prediction: Prediction

    @property
    def feasible(self) -> bool:
        """Whether the point holds every target."""
        return self.prediction.feasible


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked of a model: this load under these targets."""

    model: PerfModel
    load: Load
    slo: SLO


def candidates(present: OperatingPoint, bounds: Bounds, free: frozenset[Knob]) -> Candidates:
    """What a tick may plan with. A knob that is not free keeps its present value.

    With one exception: whoever chooses the replica count plans with the cap and the limit that each
    replica will then choose for its own share (`bounds` says what those may be).
    """
    plans_all = Knob.NUM_REPLICAS in free
    replicas = caps = None
    if plans_all:
        replicas = _span(bounds.min_replicas, bounds.max_replicas)
    if plans_all or Knob.MAX_NUM_ACTIVE_SEQS in free:
        caps = _span(bounds.min_active_seqs, bounds.max_num_seqs)
    limits: tuple[float | None, ...] = (present.power_limit_watts,)
    if bounds.power_limits_watts and (plans_all or Knob.POWER_LIMIT in free):
        default = bounds.max_limit_watts is None and present.power_limit_watts is None
        offered = tuple(one for one in bounds.limits if one is not None)
        limits = ((None,) if default else ()) + tuple(sorted(offered, reverse=True))
    return Candidates(
        replicas=replicas or (present.num_replicas, present.num_replicas),
        caps=caps or (present.max_num_active_seqs, present.max_num_active_seqs),
        limits=limits,
    )


def cheapest_feasible(model: PerfModel, load: Load, slo: SLO, box: Candidates) -> Choice:
    """The point in `box` with the fewest joules per request among those that hold `slo`.

    Within 0.5 % of the fewest: fewer replicas, then the larger cap, then the higher limit. If
    nothing is feasible, the least bad point: a target that even an idle replica misses is replaced
    by twice what an idle replica does, so that it does not ask for every replica; if that does not
    help either, all replicas at the highest limit, with the cap of the smallest miss.
    The search: per limit the fewest feasible replicas by bracketing (fewer requests per replica are
    never harder), then upwards only while that saves (draw is concave in load, so it rarely does).
    Raises ModelError where the model has no answer for any point.
    """
    question = Question(model=model, load=load, slo=slo)
    found = _search(question, box)
    if found is not None:
        return found
    relaxed = replace(question, slo=_attainable(question, box))
    if relaxed.slo != slo:
        found = _search(relaxed, box)
    if found is None:
        found = _smallest_miss(relaxed, box, _best_of_limits(relaxed, box, box.replicas[1]))
    return Choice(point=found.point, prediction=model.predict(found.point, load, slo))


def at_limit(
    question: Question, box: Candidates, num_replicas: int, limit: float | None
) -> Choice | None:
    """The choice by the cap rule for these replicas and this limit; None where it has no answer."""
    low, high = box.caps
    while low < high:  # invariant: `low` holds the target or is the smallest cap there is
        middle = (low + high + 1) // 2
        if _cap_holds(question, _point(num_replicas, middle, limit)):
            low = middle
        else:
            high = middle - 1
    point = _point(num_replicas, low, limit)
    try:
        prediction = question.model.predict(point, question.load, question.slo)
    except OutOfRange:
        return None
    return Choice(point=point, prediction=prediction)


def cheapest_of(found: list[Choice]) -> Choice | None:
    """The choice by joules with the documented tie rule; None of an empty list."""
    if not found:
        return None
    limit_joules = (1.0 + TIE_RATIO) * min(one.prediction.joules_per_request for one in found)
    ties = [one for one in found if one.prediction.joules_per_request <= limit_joules]
    return min(ties, key=lambda one: _preference(one.point))


def _preference(point: OperatingPoint) -> tuple[int, int, float]:
    limit_watts = point.power_limit_watts
    return (
        point.num_replicas,
        -point.max_num_active_seqs,
        float("-inf") if limit_watts is None else -limit_watts,
    )


def _span(low: int, high: int) -> tuple[int, int]:
    low = max(low, 1)
    return low, max(high, low)


def _point(num_replicas: int, cap: int, limit: float | None) -> OperatingPoint:
    return OperatingPoint(
        num_replicas=num_replicas, max_num_active_seqs=cap, power_limit_watts=limit
    )


def _cap_holds(question: Question, point: OperatingPoint) -> bool:
    try:
        tpot_s = question.model.full_batch_tpot_s(point, question.load, question.slo)
    except OutOfRange:
        return False
    return tpot_s <= question.slo.tpot_s


def _search(question: Question, box: Candidates) -> Choice | None:
    """The cheapest feasible choice; None when nothing in the box is feasible."""
    found: list[Choice] = []
    fewest = box.replicas[0]
    for limit in box.limits:  # best first: a lower limit never needs fewer replicas
        least = _fewest_replicas(question, replace(box, replicas=(fewest, box.replicas[1])), limit)
        if least is None:
            continue
        fewest = least.point.num_replicas
        found += _while_cheaper(question, box, least)
    return cheapest_of(found)


def _fewest_replicas(question: Question, box: Candidates, limit: float | None) -> Choice | None:
    """The feasible choice with the fewest replicas at this limit; None if there is none."""
    low, high = box.replicas
    least = at_limit(question, box, low, limit)
    if least is None or least.feasible:
        return least
    # The first guess is what the capacity asks for; from there the distance doubles.
    best, step = None, 1
    tried = math.ceil(min(low * least.prediction.utilization_ratio, high))
    box = replace(box, caps=(least.point.max_num_active_seqs, box.caps[1]))
    while low < high:
        tried = min(max(tried, low + 1), high)
        choice = at_limit(question, box, tried, limit)
        cap = box.caps[0] if choice is None else choice.point.max_num_active_seqs
        if choice is not None and choice.feasible:
            high, best, tried = tried - 1, choice, tried - step
            box = replace(box, caps=(box.caps[0], cap))  # fewer replicas: no larger cap
        else:
            low, tried = tried, tried + step
            box = replace(box, caps=(cap, box.caps[1]))  # more replicas: no smaller cap
        step *= 2
        if best is not None and not low < tried <= high:
            tried, step = (low + high + 1) // 2, 1
    return best


def _while_cheaper(question: Question, box: Candidates, least: Choice) -> list[Choice]:
    found = [least]
    for num_replicas in range(least.point.num_replicas + 1, box.replicas[1] + 1):
        tried = at_limit(question, box, num_replicas, least.point.power_limit_watts)
        if tried is None or not tried.feasible:
            break
        if tried.prediction.joules_per_request >= found[-1].prediction.joules_per_request:
            break
        found.append(tried)
    return found


def _attainable(question: Question, box: Candidates) -> SLO:
    """The SLO, with each target that even an idle replica misses replaced by twice what it does."""
    idle = replace(question.load, arrival_rate_per_s=UNLOADED_PER_S)
    best = _best_of_limits(replace(question, load=idle), box, box.replicas[1]).prediction
    slo = question.slo
    ttft_s = slo.ttft_s if best.ttft_s <= slo.ttft_s else MISSED_BY * best.ttft_s
    tpot_s = slo.tpot_s if best.tpot_s <= slo.tpot_s else MISSED_BY * best.tpot_s
    return replace(slo, ttft_s=ttft_s, tpot_s=tpot_s)


def _best_of_limits(question: Question, box: Candidates, num_replicas: int) -> Choice:
    """The choice at the highest limit that the model can answer for; raises its ModelError else."""
    for limit in box.limits:
        choice = at_limit(question, box, num_replicas, limit)
        if choice is not None:
            return choice
    point = _point(num_replicas, box.caps[0], box.limits[0])
    prediction = question.model.predict(point, question.load, question.slo)
    return Choice(point=point, prediction=prediction)


def _smallest_miss(question: Question, box: Candidates, by_rule: Choice) -> Choice:
    """The cap from that of `by_rule` upwards whose larger of TTFT and TPOT, each over its target,
    is the smallest. While requests queue, TTFT falls and TPOT grows with the cap: bisection finds
    where they meet; of all that it tries the best is kept, so that the rule's is never made worse.
    """
    low, high = by_rule.point.max_num_active_seqs, box.caps[1]
    best = by_rule
    while low < high:  # invariant: at `low` TTFT is the larger, or it is the cap rule's
        middle = (low + high + 1) // 2
        point = replace(by_rule.point, max_num_active_seqs=middle)
        prediction = predict_or_none(question, point)
        if prediction is None:
            high = middle - 1
            continue
        choice = Choice(point=point, prediction=prediction)
        if _miss(question, choice) < _miss(question, best):
            best = choice
        ttft_ratio, tpot_ratio = _miss_ratios(question, choice)
        if ttft_ratio > tpot_ratio:
            low = middle
        else:
            high = middle - 1
    return best


def _miss(question: Question, choice: Choice) -> float:
    return max(_miss_ratios(question, choice))


def _miss_ratios(question: Question, choice: Choice) -> tuple[float, float]:
    predicted, slo = choice.prediction, question.slo
    return predicted.ttft_s / slo.ttft_s, predicted.tpot_s / slo.tpot_s


def predict_or_none(question: Question, point: OperatingPoint) -> Prediction | None:
    """What the model says about the point; None where it has no answer."""
    try:
        return question.model.predict(point, question.load, question.slo)
    except ModelError:
        return None
