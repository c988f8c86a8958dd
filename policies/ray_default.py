"""Ray Serve's own replica rule at full batch and full power: what we compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from policies.core.control import directed
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

        def wish(present: OperatingPoint) -> OperatingPoint:
            asked = Knob.NUM_REPLICAS in free  # a replica's own tick is none of Ray's
            wanted = self.desired_num_replicas(observation) if asked else present.num_replicas
            return OperatingPoint(
                num_replicas=wanted,
                max_num_active_seqs=settings.bounds.max_num_seqs,
                power_limit_watts=None,
            )

        return directed(
            observation, state, settings, free, by=(self.name, Reason.RAY_DEFAULT), wish=wish
        )
