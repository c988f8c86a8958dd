"""The policy this project is about: the cheapest point that holds the SLO, by a fitted model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.core.control import tick
from policies.core.objective import PerfModel
from policies.core.types import ControlSettings, ControlState, Decision, Knob, Observation


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergySlo:
    """`tick` with a model; without one (None) every decision is the safe point.

    `note` stands in every decision: what else to know about the model.
    """

    model: PerfModel | None
    note: str = ""

    @property
    def name(self) -> str:
        """The name in the catalog."""
        return "energy_slo"

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        """The decision of `policies.core.control.tick`, with the note."""
        decision, state = tick(observation, state, settings, self.model, free)
        if self.note:
            decision = replace(decision, notes=(*decision.notes, self.note))
            state = replace(state, last_decision=decision)
        return decision, state
