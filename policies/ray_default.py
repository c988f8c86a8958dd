"""Ray Serve's own replica rule at full batch and full power: what we compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from policies.core.control import conclude, hold
from policies.core.guard import GuardContext, guard
from policies.core.observe import fleet_load, present_point
from policies.core.types import (
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Observation,
    OperatingPoint,
    Reason,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RayDefault:
    """`desired_num_replicas` is Ray's function, handed in by the edge that imports Ray: live the
    bare rule, to which Ray adds its delays (`serve_app.ray_policy`); in the simulator all of it
    (`serve_app.simulator.ray_rule`). It is asked once per tick of the fleet, and may remember."""

    desired_num_replicas: Callable[[Observation], int]

    @property
    def name(self) -> str:
        """The name in the catalog."""
        return "ray_default"

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        """Ray's replica count inside bounds; Reason.RAY_DEFAULT. Never raises."""
        try:
            present = present_point(observation, settings.bounds)
            asked = Knob.NUM_REPLICAS in free  # a replica's own tick is none of Ray's
            wanted = OperatingPoint(
                num_replicas=(
                    self.desired_num_replicas(observation) if asked else present.num_replicas
                ),
                max_num_active_seqs=settings.bounds.max_num_seqs,
                power_limit_watts=None,
            )
            context = GuardContext(
                now_s=observation.now_s, settings=settings, free=free, exempt=True
            )
            decision = Decision(
                time_s=observation.now_s,
                policy=self.name,
                reason=Reason.RAY_DEFAULT,
                present=present,
                proposed=wanted,
                chosen=guard(wanted, present, context).point,
                load=fleet_load(observation),
            )
            return conclude(decision, state, settings)
        except Exception as error:
            return hold(observation, state, settings, (self.name, error))
