"""One fixed point, whatever the load: the baseline, and the way to pin a deployment by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        return directed(
            observation, state, settings, free, by=(self.name, Reason.STATIC), wish=self._point
        )

    def _point(self, present: OperatingPoint) -> OperatingPoint:
        return replace(
            present,
            num_replicas=self.num_replicas or present.num_replicas,
            max_num_active_seqs=self.max_num_active_seqs or present.max_num_active_seqs,
            power_limit_watts=self.power_limit_watts or present.power_limit_watts,
        )
