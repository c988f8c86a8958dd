"""What else could have been chosen: the points one knob away, and what the model says of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from policies.core.objective import PerfModel, Question, predict_or_none
from policies.core.types import Bounds, ControlSettings, Knob, Load, OperatingPoint, Prediction

CAP_RATIOS = (0.25, 0.5, 2.0, 4.0)
REPLICA_STEPS = (-2, -1, 1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """Another point. `knob`: the one in which it differs."""

    knob: Knob
    point: OperatingPoint
    prediction: Prediction


def alternatives(
    chosen: OperatingPoint,
    load: Load,
    settings: ControlSettings,
    model: PerfModel,
    free: frozenset[Knob],
) -> tuple[Alternative, ...]:
    """The points that differ from `chosen` in one free knob: those that hold the targets first,
    both parts by J/request. What the model cannot judge is left out. Never raises."""
    question = Question(model=model, load=load, slo=settings.slo)
    found = []
    for knob, point in _neighbours(chosen, settings.bounds, free):
        prediction = predict_or_none(question, point)
        if prediction is not None:
            found.append(Alternative(knob=knob, point=point, prediction=prediction))
    found.sort(key=lambda one: (not one.prediction.feasible, one.prediction.joules_per_request))
    return tuple(found)


def _neighbours(
    chosen: OperatingPoint, bounds: Bounds, free: frozenset[Knob]
) -> Iterator[tuple[Knob, OperatingPoint]]:
    if Knob.NUM_REPLICAS in free:
        for step in REPLICA_STEPS:
            count = chosen.num_replicas + step
            if max(bounds.min_replicas, 1) <= count <= bounds.max_replicas:
                yield Knob.NUM_REPLICAS, replace(chosen, num_replicas=count)
    if Knob.POWER_LIMIT in free:
        for limit in bounds.limits:
            if limit != chosen.power_limit_watts:
                yield Knob.POWER_LIMIT, replace(chosen, power_limit_watts=limit)
    if Knob.MAX_NUM_ACTIVE_SEQS in free:
        caps = {round(ratio * chosen.max_num_active_seqs) for ratio in CAP_RATIOS}
        for cap in sorted(caps):
            inside = max(bounds.min_active_seqs, 1) <= cap <= bounds.max_num_seqs
            if inside and cap != chosen.max_num_active_seqs:
                yield Knob.MAX_NUM_ACTIVE_SEQS, replace(chosen, max_num_active_seqs=cap)
