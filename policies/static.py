"""One fixed point, whatever the load: the baseline, and the way to pin a deployment by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.core.control import conclude, hold
from policies.core.guard import GuardContext, guard
from policies.core.observe import fleet_load, present_point
from policies.core.types import (
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Observation,
    Reason,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Static:
    """Goes to this point at once, inside bounds, and stays. None leaves that knob as it is."""

    num_replicas: int | None = None
    max_num_active_seqs: int | None = None
    power_limit_watts: float | None = None

    @property
    def name(self) -> str:
        """The name in the catalog."""
        return "static"

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        """The fixed point; Reason.STATIC. Never raises."""
        try:
            present = present_point(observation, settings.bounds)
            wanted = replace(
                present,
                num_replicas=self.num_replicas or present.num_replicas,
                max_num_active_seqs=self.max_num_active_seqs or present.max_num_active_seqs,
                power_limit_watts=self.power_limit_watts or present.power_limit_watts,
            )
            context = GuardContext(
                now_s=observation.now_s, settings=settings, free=free, exempt=True
            )
            decision = Decision(
                time_s=observation.now_s,
                policy=self.name,
                reason=Reason.STATIC,
                present=present,
                proposed=wanted,
                chosen=guard(wanted, present, context).point,
                load=fleet_load(observation),
            )
            return conclude(decision, state, settings)
        except Exception as error:
            return hold(observation, state, settings, (self.name, error))
