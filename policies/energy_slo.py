"""The policy this project is about: replicas x batch cap x power limit, jointly, under the SLO.

Each replica takes the cheapest limit that holds its present load and what waits at it; the fleet
has as many replicas as the load may need until a new one would be there, or as many more as save
energy. Both ask the same table (`policies.model.service`) of what one replica can do under every
limit, made of the lengths that are seen and of a margin that is learned from the requests that
missed (`policies.core.memory`). Whatever is in doubt (no report, no model, a model out of its
range) goes the careful way of `policies.core.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from policies.core.control import conclude, hold, tick
from policies.core.errors import ModelError
from policies.core.guard import clamp, project
from policies.core.lengths import mean_of
from policies.core.memory import Memory
from policies.core.objective import PerfModel, Question, predict_or_none
from policies.core.observe import View, observe
from policies.core.types import (
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Load,
    Observation,
    OperatingPoint,
    Reason,
)
from policies.joint.fleet import fleet_learned, needing, wish_of_fleet
from policies.joint.options import JointOptions
from policies.joint.replica import Wish, learned, wish_of_replica
from policies.model.fitted import FittedModel
from policies.model.online import Correction

NAME = "energy_slo"
WAITED_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergySlo:
    """The joint policy by a fitted model; without a trusted one every decision is the safe point.

    `note` stands in every decision: what else to know about the model.
    """

    model: PerfModel | None
    note: str = ""
    options: JointOptions = field(default_factory=JointOptions)

    @property
    def name(self) -> str:
        """The name in the catalog."""
        return NAME

    @property
    def believed(self) -> FittedModel | None:
        """The model, where live steps may correct it."""
        return self.model if isinstance(self.model, FittedModel) else None

    def corrected(self, correction: Correction) -> EnergySlo:
        """The same policy on the model as live steps correct it; on none at their bound."""
        if self.believed is None:
            return self
        return replace(self, model=correction.apply(self.believed), note=correction.note)

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        """The decision and the state for the next tick. Never raises."""
        try:
            decision, state = self._decide(observation, state, settings, free)
        except Exception as error:
            return hold(observation, state, settings, (NAME, error))
        if self.note:
            decision = replace(decision, notes=(*decision.notes, self.note))
            state = replace(state, last_decision=decision)
        return decision, state

    def _decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        view = observe(observation, state, settings)
        state = replace(state, memory=self._learn(observation, view, state, settings, free))
        if observation.observed_replicas == 0 and Knob.NUM_REPLICAS in free:
            return conclude(self._from_zero(observation, view, settings), state, settings)
        if not self._can_plan(view, state):
            if self._too_early(view, state):
                state, asleep = self._needing(observation, view, state, settings, free)
                if asleep is not None:
                    return conclude(asleep, state, settings)
                free = free - {Knob.NUM_REPLICAS}
            return tick(observation, state, settings, self.model, free)
        wish = self._wish(observation, view, state, settings, free)
        state = replace(state, memory=wish.memory)
        present, bounds = view.present, settings.bounds
        chosen = project(clamp(wish.target, present, bounds), present, free, bounds)
        decision = Decision(
            time_s=view.now_s,
            policy=NAME,
            reason=wish.reason,
            present=present,
            proposed=wish.target,
            chosen=chosen,
            saving_ratio=wish.saving_ratio,
            threshold_ratio=settings.min_saving_ratio,
            load=view.load,
            notes=wish.notes,
        )
        if self.options.explain:
            decision = self._explained(decision, settings)
        return conclude(decision, state, settings)

    def _from_zero(
        self, observation: Observation, view: View, settings: ControlSettings
    ) -> Decision:
        """Nobody is there: one replica as soon as somebody asks."""
        present, asked = view.present.num_replicas, observation.num_queued > 0.0
        reason = Reason.SLO_AT_RISK if asked else Reason.NO_TRAFFIC
        return _sized(view, settings, max(present, int(asked)), reason)

    def _learn(
        self,
        observation: Observation,
        view: View,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> Memory:
        """What is known after these reports: one replica's own, or the fleet's."""
        if Knob.NUM_REPLICAS in free:
            return fleet_learned(observation, view, state.memory, settings, self.options)
        if not view.fresh:
            return state.memory
        return learned(view.fresh[0], state.memory, settings, self.options)

    def _can_plan(self, view: View, state: ControlState) -> bool:
        """Whether a trusted model knows these lengths, and somebody has just reported."""
        memory, model = state.memory, self.model
        if not isinstance(model, FittedModel) or not view.fresh or not memory.prompt_bins:
            return False
        prompts, outputs = mean_of(memory.prompt_bins), mean_of(memory.output_bins)
        load = Load(
            arrival_rate_per_s=max(view.load.arrival_rate_per_s, 1e-3) if view.load else 1e-3,
            prompt_tokens=prompts,
            output_tokens=max(outputs, 1.0),
        )
        try:
            model.check(OperatingPoint(num_replicas=1, max_num_active_seqs=1), load)
        except ModelError:
            return False
        return True

    def _too_early(self, view: View, state: ControlState) -> bool:
        """Whether lengths are on their way: too few requests to say how many replicas they need.
        For ten minutes; who then still has too few has too little load to be held for."""
        coming = any(one.prompt_bins is not None for one in view.fresh)
        memory = state.memory
        return coming and not memory.prompt_bins and memory.seen_s < WAITED_S

    def _needing(
        self,
        observation: Observation,
        view: View,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[ControlState, Decision | None]:
        """What is needed while nobody knows lengths: what there is, but no replica once nobody has
        asked for as long as a start costs, where that is allowed."""
        model = self.model
        if not isinstance(model, FittedModel) or Knob.NUM_REPLICAS not in free:
            return state, None
        silent = not view.traffic and observation.num_queued <= 0.0 and not view.partial
        need = 0 if silent and settings.bounds.min_replicas == 0 else view.present.num_replicas
        memory = needing(state.memory, view, need, model, settings=settings, options=self.options)
        state = replace(state, memory=memory)
        if memory.needs[0][1] > 0:
            return state, None
        return state, _sized(view, settings, 0, Reason.NO_TRAFFIC)

    def _wish(
        self,
        observation: Observation,
        view: View,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> Wish:
        model, options = self.model, self.options
        assert isinstance(model, FittedModel)  # `_can_plan` has seen to that
        if Knob.NUM_REPLICAS in free:
            return wish_of_fleet(
                observation, view, state.memory, model, settings=settings, options=options
            )
        pool = observation.pool_replicas
        return wish_of_replica(view, state.memory, model, settings, options, pool)

    def _explained(self, decision: Decision, settings: ControlSettings) -> Decision:
        """With what the model says about the point in force and about the chosen one."""
        if self.model is None or decision.load is None:
            return decision
        question = Question(model=self.model, load=decision.load, slo=settings.slo)
        present = chosen = predict_or_none(question, decision.present)
        if decision.chosen != decision.present:
            chosen = predict_or_none(question, decision.chosen)
        return replace(decision, predicted_present=present, predicted_chosen=chosen)


def _sized(view: View, settings: ControlSettings, num_replicas: int, reason: Reason) -> Decision:
    """The present point with another number of replicas."""
    present = view.present
    wanted = replace(present, num_replicas=num_replicas)
    return Decision(
        time_s=view.now_s,
        policy=NAME,
        reason=reason,
        present=present,
        proposed=wanted,
        chosen=clamp(wanted, present, settings.bounds),
    )
