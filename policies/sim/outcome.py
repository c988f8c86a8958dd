"""What a simulated run is made of, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.core.types import ControlSettings
from policies.sim.fleet_state import LEAST_OUTSTANDING
from policies.sim.histogram import Histogram


@dataclass(frozen=True, kw_only=True, slots=True)
class SimSettings:
    """What a run is made of besides its trace, its truth and its policy.

    `control`: as a deployment has it, its bounds included. `report_delay_s`: how old a report is
    when the fleet decides. `horizon_s`: the past that a report covers. `cold_start_watts` None: the
    idle draw. `drain_s`: how long after the last arrival a run may go on.
    """

    control: ControlSettings
    initial_replicas: int = 1
    tick_s: float = 1.0
    replica_every: int = 1  # ticks
    fleet_every: int = 1
    report_delay_s: float = 0.0
    horizon_s: float = 60.0
    cold_start_s: float = 60.0
    cold_start_watts: float | None = None
    drain_s: float = 3600.0
    max_num_batched_tokens: int = 2048
    kv_capacity_tokens: int = 1 << 40
    max_outstanding: int = 1 << 18
    router: int = LEAST_OUTSTANDING
    pack_seqs: int = 0
    jitter: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The fleet at the end of a tick. `draw_watts`: mean over the tick."""

    time_s: float
    arrived: int
    outstanding: int
    accepting: int
    starting: int
    draining: int
    mean_cap: float
    mean_limit_watts: float | None
    draw_watts: float


@dataclass(kw_only=True, slots=True)
class SimResult:
    """What a run came to. Joules of everything that was there: active, idle, cold starts. A request
    attained its targets if both held; one that never ended did not."""

    policy: str
    arrived: int = 0
    completed: int = 0
    attained: int = 0
    output_tokens: int = 0
    active_joules: float = 0.0
    idle_joules: float = 0.0
    start_joules: float = 0.0
    replica_s: float = 0.0
    duration_s: float = 0.0
    scale_actions: int = 0
    cap_actions: int = 0
    limit_actions: int = 0
    preemptions: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    moments: list[Moment] = field(default_factory=list)

    @property
    def joules(self) -> float:
        """All of it."""
        return self.active_joules + self.idle_joules + self.start_joules

    @property
    def joules_per_request(self) -> float | None:
        """None where no request ended."""
        return self.joules / self.completed if self.completed else None

    @property
    def attainment_ratio(self) -> float | None:
        """Share of the arrived requests; None where none arrived."""
        return self.attained / self.arrived if self.arrived else None

    @property
    def mean_replicas(self) -> float:
        """Replicas there or starting, over time."""
        return self.replica_s / self.duration_s if self.duration_s else 0.0
