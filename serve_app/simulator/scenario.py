"""All that a run is made of besides its trace and its policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from policies.core.errors import ConfigError
from policies.core.types import SLO, Bounds, ControlSettings
from policies.model.fitted import FittedModel
from serve_app.simulator.attainable import attainable_prompt_tokens
from serve_app.simulator.load import TraceLoad, replicas_for
from serve_app.simulator.specs import ROUTERS, PolicySpec

if TYPE_CHECKING:
    from policies.sim.outcome import SimSettings

SPARE_REPLICAS = 4
PEAKS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """`max_replicas` None: twice what the busiest minute needs, and four more. `initial_replicas`
    None: what the busiest minute needs, as a fleet of fixed size has. `cold_start_watts` None: the
    idle draw."""

    truth: FittedModel
    belief: FittedModel
    slo: SLO = field(default_factory=SLO)
    power_limits_watts: tuple[float, ...] = ()
    min_replicas: int = 1
    max_replicas: int | None = None
    initial_replicas: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    kv_capacity_tokens: int = 1 << 40
    cold_start_s: float = 60.0
    cold_start_watts: float | None = None
    report_delay_s: float = 0.0
    tick_s: float = 1.0
    limit_settle_s: float = 2.0
    jitter: float = 0.0
    seed: int = 0

    @property
    def engine(self) -> tuple[int, int]:
        """Token budget and largest batch."""
        return self.max_num_batched_tokens, self.max_num_seqs

    def sized(self, load: TraceLoad) -> Scenario:
        """The same with its fleet sizes settled for a trace. Raises ConfigError."""
        most, first = self.max_replicas, self.initial_replicas
        peak = replicas_for(self.truth, load, load.peak_per_s, self.slo, self.engine)
        if most is None:
            most = max(round(PEAKS * peak) + SPARE_REPLICAS, self.min_replicas)
        if not 0 <= self.min_replicas <= most:
            raise ConfigError(
                f"--min-replicas {self.min_replicas}, --max-replicas {most}: allowed: "
                "0 <= min <= max"
            )
        if first is None:
            first = min(max(peak, self.min_replicas), most)
        if not 0 <= first <= most:
            raise ConfigError(f"--initial-replicas {first}: allowed: 0 to {most}")
        return replace(self, max_replicas=most, initial_replicas=first)

    def control(self, spec: PolicySpec) -> ControlSettings:
        """As a deployment has it, with what the policy was given for itself. Raises ConfigError."""
        own = ControlSettings(
            slo=self.slo,
            bounds=Bounds(
                min_replicas=_whole(spec, "min_replicas", self.min_replicas),
                max_replicas=_whole(spec, "max_replicas", self.max_replicas or 1),
                max_num_seqs=self.max_num_seqs,
                power_limits_watts=self.power_limits_watts,
            ),
        )
        headroom = spec.fleet.get("slo_headroom_ratio")
        if headroom is None:
            return own
        if not isinstance(headroom, int | float) or not 0.0 <= headroom < 1.0:
            raise ConfigError(
                f"policy {spec.name}: slo_headroom_ratio is {headroom!r}; allowed: 0 to below 1"
            )
        return replace(own, slo_headroom_ratio=float(headroom))

    def sim_settings(self, spec: PolicySpec) -> SimSettings:
        """For the simulator. A policy that leaves the replicas' own knobs alone is rarely asked
        about them, one that looks at nothing only every 10 ticks: both change no decision. Requests
        that no idle replica could answer in time, as the policy's model has it, are not judged in
        reports. A fleet that may not be smaller than so many starts with as many."""
        from policies.sim.outcome import SimSettings

        control = self.control(spec)
        own = spec.options.get("num_replicas")
        floor = max(control.bounds.min_replicas, own if isinstance(own, int) else 0)
        return SimSettings(
            control=control,
            initial_replicas=max(self.initial_replicas or 0, floor),
            tick_s=self.tick_s,
            replica_every=_REPLICA_EVERY.get(spec.name, 1),
            fleet_every=10 if spec.name == "static_peak" else 1,
            report_delay_s=self.report_delay_s,
            limit_settle_s=self.limit_settle_s,
            cold_start_s=self.cold_start_s,
            cold_start_watts=self.cold_start_watts,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_capacity_tokens=self.kv_capacity_tokens,
            router=ROUTERS.index(spec.router_name),
            attainable_prompt_tokens=attainable_prompt_tokens(
                self.belief, self.slo, self.max_num_batched_tokens
            ),
            jitter=self.jitter,
            seed=self.seed,
        )


# Those that leave a replica's own knobs alone; those that set them once, when a replica is new.
_REPLICA_EVERY = {"ray_default": 60, "wva": 60, "static_peak": 10, "fixed_limit": 5}


def _whole(spec: PolicySpec, key: str, otherwise: int) -> int:
    value = spec.fleet.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"policy {spec.name}: {key} is {value!r}; allowed: a whole number >= 0")
    return value
