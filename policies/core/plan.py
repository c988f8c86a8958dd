"""What a tick wants, before the guard: the cheapest point weighed against the one in force.

Hysteresis around the SLO with headroom h: a point is *proposed* only if it holds target x (1 - h),
and the present one is *left* only if it misses target x (1 - h/2); the cap is raised only if its
full batch is faster than target x (1 - 3h/2). In between, only a saving above the threshold moves.
Near saturation a little more load doubles the wait, so a band of latency is none of load: fewer
replicas or a lower limit must also hold the present targets with 5 % more requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.core.errors import ModelError, NotFitted
from policies.core.guard import project, safe_point, since, watts
from policies.core.objective import (
    Choice,
    PerfModel,
    Question,
    candidates,
    cheapest_feasible,
    predict_or_none,
)
from policies.core.observe import View, misses
from policies.core.slo import tightened
from policies.core.types import (
    SLO,
    ControlSettings,
    ControlState,
    Knob,
    OperatingPoint,
    Prediction,
    Reason,
)

SAME_RATIO = 1e-9  # a saving below this is rounding
LOAD_BAND_RATIO = 0.05  # what is shrunk to must hold with this much more load: noise is no news


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A wish with its reason.

    `proposed`: the best point the objective found; `target`: where to go from here (another one
    when a measured miss, or only the cap, moves).
    """

    reason: Reason
    proposed: OperatingPoint
    target: OperatingPoint
    predicted_present: Prediction | None = None
    saving_ratio: float | None = None
    urgent: bool = False
    exempt: bool = False
    relief: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """Everything a plan is made from."""

    view: View
    state: ControlState
    settings: ControlSettings
    free: frozenset[Knob]


def make_plan(situation: Situation, model: PerfModel | None) -> Plan:
    """The plan for a view; any ModelError leads to the safe point."""
    view, settings = situation.view, situation.settings
    if not view.fresh:
        return _safe(situation, Reason.STALE, "no report is fresh")
    if not view.traffic:
        return _to_floor(situation)
    try:
        if model is None or not model.trusted:
            raise NotFitted("no trusted model")
        if view.load is None:
            raise NotFitted("request lengths are not known yet")
        slo = tightened(settings.slo, settings.slo_headroom_ratio)
        box = candidates(view.present, settings.bounds, situation.free)
        choice = cheapest_feasible(model, view.load, slo, box)
    except ModelError as error:
        return _safe(situation, Reason.MODEL_UNTRUSTED, str(error))
    return _weigh(situation, Question(model=model, load=view.load, slo=slo), choice)


def _weigh(situation: Situation, question: Question, choice: Choice) -> Plan:
    """A move that the SLO needs, whatever it costs; else one that saves."""
    settings, present = situation.settings, situation.view.present
    held = _held(situation, question, present)
    plan = Plan(
        reason=Reason.NO_BETTER_POINT,
        proposed=choice.point,
        target=project(choice.point, present, situation.free, settings.bounds),
        predicted_present=predict_or_none(replace(question, slo=settings.slo), present),
        saving_ratio=_saving(choice.prediction, held),
    )
    cap_band = _cap_band(situation, question)
    at_risk = held is None or not held.feasible or cap_band < 0
    relieved = _relief(situation)
    if not choice.feasible:
        return replace(plan, reason=Reason.NO_FEASIBLE_POINT)
    if at_risk and plan.target != present:
        return replace(plan, reason=Reason.SLO_AT_RISK, urgent=True)
    if relieved is not None:
        note = "measured latency misses the SLO although the model says it holds"
        risk = replace(plan, reason=Reason.SLO_AT_RISK, target=relieved, notes=(note,))
        return replace(risk, urgent=True, relief=True)
    if _shrinks(plan.target, present) and not _holds_more(situation, question, plan.target):
        note = f"{plan.target.num_replicas} replicas would not hold {LOAD_BAND_RATIO:.0%} more load"
        return replace(plan, target=present, notes=(note,))
    return _save(plan, situation, cap_may_rise=cap_band > 0)


def _shrinks(target: OperatingPoint, present: OperatingPoint) -> bool:
    fewer = target.num_replicas < present.num_replicas
    return fewer or watts(target.power_limit_watts) < watts(present.power_limit_watts)


def _holds_more(situation: Situation, question: Question, target: OperatingPoint) -> bool:
    """Whether `target` still would not have to be left with LOAD_BAND_RATIO more requests."""
    load = question.load
    more = replace(load, arrival_rate_per_s=(1.0 + LOAD_BAND_RATIO) * load.arrival_rate_per_s)
    held = _held(situation, replace(question, load=more), target)
    return held is not None and held.feasible


def _save(plan: Plan, situation: Situation, *, cap_may_rise: bool) -> Plan:
    """The move if it saves enough, only the cap if that is too small, else none."""
    present, target, saving = situation.view.present, plan.target, plan.saving_ratio or 0.0
    if target == present:
        return plan
    if saving >= situation.settings.min_saving_ratio:
        return replace(plan, reason=Reason.CHEAPEST_FEASIBLE)
    if cap_may_rise and target.max_num_active_seqs > present.max_num_active_seqs:
        target = replace(present, max_num_active_seqs=target.max_num_active_seqs)
        return replace(plan, reason=Reason.CHEAPEST_FEASIBLE, target=target)
    stay = Reason.SAVING_TOO_SMALL if saving > SAME_RATIO else Reason.NO_BETTER_POINT
    return replace(plan, reason=stay, target=present)


def _held(situation: Situation, question: Question, point: OperatingPoint) -> Prediction | None:
    """What being at `point` means, judged with half of the headroom; None where nobody can tell.

    Whoever chooses replicas, but not the cap or the limit, compares with those that the replicas
    will choose by themselves at that count: a cap on its way is no reason to scale.
    """
    settings = situation.settings
    slo = _half_tightened(settings)
    if Knob.NUM_REPLICAS not in situation.free:
        return predict_or_none(replace(question, slo=slo), point)
    box = candidates(point, settings.bounds, situation.free)
    here = replace(box, replicas=(point.num_replicas, point.num_replicas))
    if Knob.MAX_NUM_ACTIVE_SEQS in situation.free:
        here = replace(here, caps=(point.max_num_active_seqs, point.max_num_active_seqs))
    if Knob.POWER_LIMIT in situation.free:
        here = replace(here, limits=(point.power_limit_watts,))
    try:
        return cheapest_feasible(question.model, question.load, slo, here).prediction
    except ModelError:
        return None


def _half_tightened(settings: ControlSettings) -> SLO:
    return tightened(settings.slo, settings.slo_headroom_ratio / 2.0)


def _cap_band(situation: Situation, question: Question) -> int:
    """-1: a full batch at the present cap is too slow; 1: it could be larger; 0: leave it."""
    if Knob.MAX_NUM_ACTIVE_SEQS not in situation.free:
        return 0
    settings = situation.settings
    try:
        tpot_s = question.model.full_batch_tpot_s(
            situation.view.present, question.load, question.slo
        )
    except ModelError:
        return -1
    if tpot_s > _half_tightened(settings).tpot_s:
        return -1
    loose = tightened(settings.slo, 1.5 * settings.slo_headroom_ratio).tpot_s
    return 1 if tpot_s < loose else 0


def _saving(wanted: Prediction, held: Prediction | None) -> float | None:
    if held is None or not held.joules_per_request > 0.0:
        return None
    return 1.0 - wanted.joules_per_request / held.joules_per_request


def _relief(situation: Situation) -> OperatingPoint | None:
    """One step to more capacity when measured latency misses the SLO; None when there is none.

    In this order: the next higher power limit; one more replica; the cap, down when TPOT misses
    (fewer requests share a step), up when only TTFT does (more leave the queue), by a share of
    itself: a fixed step would throw a small cap to the floor. Only when nothing has moved for
    `dwell_down_s`, since the measurement must show the present point.
    """
    view, state, settings = situation.view, situation.state, situation.settings
    late_ttft, late_tpot = misses(view.fresh, settings.slo)
    moves = (state.last_move_up_s, state.last_move_down_s, state.last_cap_move_s)
    settled = all(since(view.now_s, one) >= settings.dwell_down_s for one in moves)
    if not (late_ttft or late_tpot) or not settled:
        return None
    present, bounds, free = view.present, settings.bounds, situation.free
    limit_watts = present.power_limit_watts
    if Knob.POWER_LIMIT in free and bounds.power_limits_watts and limit_watts is not None:
        higher = [one for one in bounds.power_limits_watts if one > limit_watts]
        if higher:
            return replace(present, power_limit_watts=min(higher))
    if Knob.NUM_REPLICAS in free:
        more = present.num_replicas + 1
        return replace(present, num_replicas=more) if more <= bounds.max_replicas else None
    if Knob.MAX_NUM_ACTIVE_SEQS not in free:
        return None
    ratio = settings.max_active_seqs_step_ratio
    step = max(1, int(ratio * present.max_num_active_seqs)) * (-1 if late_tpot else 1)
    cap = max(present.max_num_active_seqs + step, bounds.min_active_seqs)
    cap = min(cap, bounds.max_num_seqs)
    return replace(present, max_num_active_seqs=cap) if cap != present.max_num_active_seqs else None


def _safe(situation: Situation, reason: Reason, note: str) -> Plan:
    """The safe point; one replica more when what is measured misses the SLO without a model."""
    view = situation.view
    point = safe_point(view.present, situation.settings.bounds)
    relieved = _relief(situation)
    if relieved is not None and relieved.num_replicas > point.num_replicas:
        point = replace(point, num_replicas=relieved.num_replicas)
        return Plan(
            reason=reason, proposed=point, target=point, exempt=True, relief=True, notes=(note,)
        )
    return Plan(reason=reason, proposed=point, target=point, exempt=True, notes=(note,))


def _to_floor(situation: Situation) -> Plan:
    """Nothing arrives: the fewest replicas, the full batch, the limit as it is."""
    bounds = situation.settings.bounds
    point = replace(
        situation.view.present,
        num_replicas=min(bounds.min_replicas, situation.view.present.num_replicas),
        max_num_active_seqs=bounds.max_num_seqs,
    )
    return Plan(reason=Reason.NO_TRAFFIC, proposed=point, target=point)
