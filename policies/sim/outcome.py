"""What a simulated run is made of, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.core.observe import RECENT_S
from policies.core.types import ControlSettings
from policies.sim.fleet_state import LEAST_OUTSTANDING
from policies.sim.histogram import Histogram
from policies.sim.moments import Moments


@dataclass(frozen=True, kw_only=True, slots=True)
class SimSettings:
    """What a run is made of besides its trace, its truth and its policy.

    `control`: as a deployment has it, its bounds included. `report_delay_s`: how old a report is
    when the fleet decides. `horizon_s`, `recent_s`: the pasts that a report covers. A new power
    limit holds after `limit_settle_s`; the draw that is reported is `meter_lag_s` old.
    `cold_start_watts` None: the idle draw. `failures`: (second, replica), after which the replica
    is gone with all that it had under way. Requests with more prompt tokens than
    `attainable_prompt_tokens` are not judged in reports; they count in the result.
    `drain_s`: how long after the last arrival a run may go on.
    """

    control: ControlSettings
    initial_replicas: int = 1
    tick_s: float = 1.0
    replica_every: int = 1  # ticks
    fleet_every: int = 1
    report_delay_s: float = 0.0
    horizon_s: float = 60.0
    recent_s: float = RECENT_S
    tails_every: int = 5  # ticks between two looks at the measured percentiles
    limit_settle_s: float = 2.0
    meter_lag_s: float = 1.0
    cold_start_s: float = 60.0
    cold_start_watts: float | None = None
    failures: tuple[tuple[float, int], ...] = ()
    drain_s: float = 3600.0
    max_num_batched_tokens: int = 2048
    kv_capacity_tokens: int = 1 << 40
    max_outstanding: int = 1 << 18
    router: int = LEAST_OUTSTANDING
    pack_seqs: int = 0
    attainable_prompt_tokens: int = 1 << 40
    jitter: float = 0.0
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class SimResult:
    """What a run came to. Joules of everything that was there: active, idle, cold starts. A request
    attained its targets if both held; one that never ended, or was lost, did not."""

    policy: str
    arrived: int = 0
    completed: int = 0
    lost: int = 0
    attained: int = 0
    late_first: int = 0  # of the completed: TTFT above its target
    slow: int = 0  # TPOT above its target
    output_tokens: int = 0
    active_joules: float = 0.0
    prefill_joules: float = 0.0
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
    moments: Moments = field(default_factory=Moments)

    @property
    def joules(self) -> float:
        """All of it."""
        return self.active_joules + self.idle_joules + self.start_joules

    @property
    def joules_per_request(self) -> float | None:
        """None where no request ended."""
        return self.joules / self.completed if self.completed else None

    @property
    def joules_per_output_token(self) -> float | None:
        """None where no token was made."""
        return self.joules / self.output_tokens if self.output_tokens else None

    @property
    def attainment_ratio(self) -> float | None:
        """Share of the arrived requests; None where none arrived."""
        return self.attained / self.arrived if self.arrived else None

    @property
    def mean_replicas(self) -> float:
        """Replicas there or starting, over time."""
        return self.replica_s / self.duration_s if self.duration_s else 0.0
