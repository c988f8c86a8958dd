"""What a day costs in joules, money and CO2: the planned point kept, or the policy following.

Start-up of replicas is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from policies.core.errors import ModelError
from policies.core.objective import cheapest_feasible
from policies.core.types import OperatingPoint
from policies.model.fitted import FittedModel
from serve_app.planner.demand import Demand, Slot
from serve_app.planner.question import Question
from serve_app.report.tariff import Tariff

DAY_S = 86_400.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """A day by one way to run it. None: not known, or no price was given.

    `joules_per_request`: over all requests of the day. `grams`: for all joules, at the mean
    intensity of those whose intensity is known, the share `grams_known_ratio`. Of `num_slots`
    spans, `missed_slots` miss the targets in their busy minutes; for `unanswered_slots` the profile
    has no answer, and then the day's joules are not known.
    """

    joules: float | None
    joules_per_request: float | None
    cost: float | None
    grams: float | None
    grams_known_ratio: float | None
    mean_replicas: float | None
    missed_slots: int
    unanswered_slots: int
    num_slots: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """One slot: replicas, mean draw of the fleet, and whether busy minutes hold the targets."""

    num_replicas: int
    draw_watts: float
    holds: bool


Choose = Callable[[Slot], OperatingPoint]


def kept(model: FittedModel, question: Question, demand: Demand, point: OperatingPoint) -> Day:
    """The day with one point kept through all of it."""
    return _day(model, question, demand, lambda _: point)


def followed(model: FittedModel, question: Question, demand: Demand) -> Day:
    """The day with each slot at the point that the policy chooses for its busy minutes; at the
    fewest replicas where nothing arrives."""
    box = question.box(model)
    floor = OperatingPoint(num_replicas=box.replicas[0], max_num_active_seqs=box.caps[1])

    def choose(slot: Slot) -> OperatingPoint:
        if slot.busy is None:
            return floor
        return cheapest_feasible(model, slot.busy, question.policy_slo, box).point

    return _day(model, question, demand, choose)


def _day(model: FittedModel, question: Question, demand: Demand, choose: Choose) -> Day:
    @cache
    def answer(slot: Slot) -> _Answer | None:
        try:
            return _answer(model, question, slot, choose(slot))
        except ModelError:
            return None

    answers = [answer(slot) for slot in demand.slots]
    known = [one for one in answers if one is not None]
    unanswered = len(answers) - len(known)
    whole = not unanswered
    watts = [one.draw_watts for one in known]
    joules = sum(watts) / len(watts) * DAY_S if whole else None
    grams, grams_known = _grams(question.tariff, demand, watts) if whole else (None, None)
    priced = joules if question.tariff.price_per_kwh is not None else None
    return Day(
        joules=joules,
        joules_per_request=_per(joules, demand.mean.arrival_rate_per_s * DAY_S),
        cost=None if priced is None else priced * question.tariff.price_per_joule,
        grams=grams,
        grams_known_ratio=grams_known,
        mean_replicas=sum(one.num_replicas for one in known) / len(known) if whole else None,
        missed_slots=sum(not one.holds for one in known),
        unanswered_slots=unanswered,
        num_slots=len(answers),
    )


def _answer(model: FittedModel, question: Question, slot: Slot, point: OperatingPoint) -> _Answer:
    if slot.mean is None or slot.busy is None:
        idle_watts = point.num_replicas * model.power.idle_watts
        return _Answer(num_replicas=point.num_replicas, draw_watts=idle_watts, holds=True)
    return _Answer(
        num_replicas=point.num_replicas,
        draw_watts=model.predict(point, slot.mean, question.slo).draw_watts,
        holds=model.predict(point, slot.busy, question.slo).feasible,
    )


def _grams(
    tariff: Tariff, demand: Demand, watts: Sequence[float]
) -> tuple[float | None, float | None]:
    """CO2 of a day, and the share of the joules whose intensity is known.

    The slots are laid over the whole file of intensities, from its first time at the demand's own
    time of day, again and again.
    """
    if tariff.intensity is None:
        return None, None
    times_s = tariff.intensity.times_s
    begin, whole_s = _EPOCH, len(watts) * demand.slot_s
    if len(times_s) > 1:
        begin = datetime.fromtimestamp(times_s[0], UTC)
        if demand.start is not None:
            begin += (demand.start - begin) % timedelta(days=1)
        whole_s = max(whole_s, times_s[-1] + tariff.intensity.hold_s - begin.timestamp())
    step_s = min(demand.slot_s, tariff.intensity.hold_s)
    grams = known_joules = joules = 0.0
    for index in range(round(whole_s / step_s)):
        elapsed_s = (index + 0.5) * step_s
        drawn = watts[int(elapsed_s // demand.slot_s) % len(watts)] * step_s
        found = tariff.grams(drawn, begin + timedelta(seconds=elapsed_s))
        joules += drawn
        if found is not None:
            grams += found
            known_joules += drawn
    if not known_joules > 0.0:
        return None, 0.0
    return grams / known_joules * sum(watts) / len(watts) * DAY_S, known_joules / joules


def _per(joules: float | None, requests: float) -> float | None:
    return None if joules is None or not requests > 0.0 else joules / requests
