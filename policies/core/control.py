"""One tick: observe, predict, decide, guard, record. Pure: the same input gives the same output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from policies.core.guard import GuardContext, Guarded, guard, watts
from policies.core.objective import PerfModel, Question, predict_or_none
from policies.core.observe import View, fleet_load, misses, observe, present_point
from policies.core.plan import Plan, Situation, make_plan
from policies.core.record import decision_to_dict, state_from_dict, state_to_dict
from policies.core.types import (
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Mode,
    Observation,
    OperatingPoint,
    Reason,
)

__all__ = [
    "Policy",
    "conclude",
    "decision_to_dict",
    "directed",
    "fleet_load",
    "hold",
    "present_point",
    "state_from_dict",
    "state_to_dict",
    "tick",
]

TICK_NAME = "energy_slo"
_HELD = {Mode.APPROVE: "approve: waits for an operator"}


class Policy(Protocol):
    """Chooses an operating point from what was seen. `decide` never raises and reads no clock."""

    @property
    def name(self) -> str:
        """The name in the catalog, in logs and in metrics."""

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        """The decision, and the state for the next call."""


def tick(
    observation: Observation,
    state: ControlState,
    settings: ControlSettings,
    model: PerfModel | None,
    free: frozenset[Knob],
) -> tuple[Decision, ControlState]:
    """The decision at `observation.now_s` and the state for the next tick. Never raises.

    A failure inside gives Reason.ERROR and holds the present point.
    """
    try:
        view = observe(observation, state, settings)
        situation = Situation(view=view, state=state, settings=settings, free=free)
        plan = make_plan(situation, model)
        moved = guard(plan.target, view.present, _context(plan, situation))
        decision = _decision(plan, moved, situation)
        if model is not None and view.load is not None:
            question = Question(model=model, load=view.load, slo=settings.slo)
            chosen = predict_or_none(question, decision.chosen)
            decision = replace(decision, predicted_chosen=chosen)
        return conclude(decision, state, settings, relief=plan.relief)
    except Exception as error:
        return hold(observation, state, settings, (TICK_NAME, error))


def conclude(
    decision: Decision, state: ControlState, settings: ControlSettings, *, relief: bool = False
) -> tuple[Decision, ControlState]:
    """The decision as far as the mode lets it act, and the state with each clock that moved."""
    if settings.mode is not Mode.ACTIVE and decision.moves:
        note = _HELD.get(settings.mode, f"{settings.mode.value}: not acted on")
        decision = replace(
            decision,
            chosen=decision.present,
            predicted_chosen=decision.predicted_present,
            notes=(*decision.notes, note),
        )
    old, new, now_s = decision.present, decision.chosen, decision.time_s
    rose = new.num_replicas > old.num_replicas or _limit(new) > _limit(old)
    fell = new.num_replicas < old.num_replicas or _limit(new) < _limit(old)
    relieved = relief and decision.moves
    return decision, ControlState(
        last_move_up_s=now_s if rose else state.last_move_up_s,
        last_move_down_s=now_s if fell else state.last_move_down_s,
        last_cap_move_s=(
            now_s if new.max_num_active_seqs != old.max_num_active_seqs else state.last_cap_move_s
        ),
        last_relief_s=now_s if relieved else state.last_relief_s,
        last_relief_rate_per_s=_rate(decision) if relieved else state.last_relief_rate_per_s,
        last_decision=decision,
        memory=state.memory,
    )


def directed(  # noqa: PLR0913
    observation: Observation,
    state: ControlState,
    settings: ControlSettings,
    free: frozenset[Knob],
    *,
    by: tuple[str, Reason],
    wish: Callable[[OperatingPoint], OperatingPoint],
) -> tuple[Decision, ControlState]:
    """At once to what is wished for at the present point, inside bounds and free knobs. Never
    raises. `by`: the policy's name and the reason."""
    policy, reason = by
    try:
        present = present_point(observation, settings.bounds)
        wanted = wish(present)
        context = GuardContext(now_s=observation.now_s, settings=settings, free=free, exempt=True)
        decision = Decision(
            time_s=observation.now_s,
            policy=policy,
            reason=reason,
            present=present,
            proposed=wanted,
            chosen=guard(wanted, present, context).point,
            load=fleet_load(observation),
        )
        return conclude(decision, state, settings)
    except Exception as error:
        return hold(observation, state, settings, (policy, error))


def hold(
    observation: Observation,
    state: ControlState,
    settings: ControlSettings,
    failure: tuple[str, Exception],
) -> tuple[Decision, ControlState]:
    """Reason.ERROR: everything stays as it was asked for last, and the notes name the failure."""
    policy, error = failure
    try:
        present = present_point(observation, settings.bounds)
    except Exception:
        last = state.last_decision
        present = (
            last.chosen
            if last is not None
            else OperatingPoint(
                num_replicas=observation.requested_replicas,
                max_num_active_seqs=settings.bounds.max_num_seqs,
            )
        )
    decision = Decision(
        time_s=observation.now_s,
        policy=policy,
        reason=Reason.ERROR,
        present=present,
        proposed=present,
        chosen=present,
        notes=(f"{type(error).__name__}: {error}",),
    )
    return decision, replace(state, last_decision=decision)


def _context(plan: Plan, situation: Situation) -> GuardContext:
    view = situation.view
    return GuardContext(
        now_s=view.now_s,
        settings=situation.settings,
        free=situation.free,
        state=situation.state,
        urgent=plan.urgent,
        exempt=plan.exempt,
        no_less=_no_less(view, situation.settings),
        rate_per_s=view.load.arrival_rate_per_s if view.load is not None else 0.0,
    )


def _no_less(view: View, settings: ControlSettings) -> str:
    """Why capacity may not shrink now, or the empty text."""
    if view.partial:
        return "a running replica has no fresh report"
    if any(misses(view.fresh, settings.slo)):
        return "measured latency misses the SLO"
    return ""


def _decision(plan: Plan, moved: Guarded, situation: Situation) -> Decision:
    view: View = situation.view
    held_back = plan.target != view.present and moved.point == view.present
    return Decision(
        time_s=view.now_s,
        policy=TICK_NAME,
        reason=Reason.DWELL if held_back and moved.notes else plan.reason,
        present=view.present,
        proposed=plan.proposed,
        chosen=moved.point,
        predicted_present=plan.predicted_present,
        saving_ratio=plan.saving_ratio,
        threshold_ratio=situation.settings.min_saving_ratio,
        load=view.load,
        notes=plan.notes + moved.notes,
    )


def _rate(decision: Decision) -> float | None:
    return decision.load.arrival_rate_per_s if decision.load is not None else None


def _limit(point: OperatingPoint) -> float:
    return watts(point.power_limit_watts)
