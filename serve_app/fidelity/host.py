"""What one small host does to its replicas, beyond what a profile of one engine alone says. Pure.

A profile is measured with nothing beside the engine. In service the proxy, the ingress and the
replica's own event loop take their part of the cores; a second replica on the same cores takes
more; its start as well. Each state has a ratio of step time and of step energy, measured on a load
of its own (`calibrate`); the profile as it stands is 1 in all of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel


class Beside(IntEnum):
    """What else the host does while a replica runs a step; also its row of coefficients."""

    NOTHING = 0
    BUSY_REPLICA = 1
    START = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratios:
    """Measured over the profile's, of one step: its seconds and its joules."""

    step_time: float = 1.0
    step_energy: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HostEffects:
    """Constants of the host; the defaults are the profile as it stands.

    `request_overhead_s`: of a TTFT, outside of steps (tokenizer, messages between processes).
    `idle_watts` None: the profile's. `start_watts`: what the meter of a starting replica sees,
    over its whole start; None: the idle draw.
    """

    ratios: dict[Beside, Ratios] = field(default_factory=lambda: {b: Ratios() for b in Beside})
    request_overhead_s: float = 0.0
    idle_watts: float | None = None
    start_watts: float | None = None

    def models(self, profile: FittedModel) -> list[FittedModel]:
        """The profile in each state, in the order of `Beside`."""
        return [
            profile.corrected(
                step_time_ratio=self.ratios[beside].step_time,
                energy_ratio=self.ratios[beside].step_energy,
            )
            for beside in Beside
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the states by name."""
        ratios = {beside.name.lower(): asdict(one) for beside, one in self.ratios.items()}
        return asdict(self) | {"ratios": ratios}
