"""What is asked of every profile: a load, targets, bounds and prices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from policies.core.errors import ConfigError
from policies.core.objective import Candidates, candidates
from policies.core.slo import tightened
from policies.core.types import SLO, Bounds, Knob, Load, OperatingPoint
from policies.model.fitted import FittedModel
from serve_app.report.tariff import Tariff

DEFAULT_MAX_REPLICAS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One load under one SLO, and what may be chosen.

    `max_replicas` None: DEFAULT_MAX_REPLICAS are searched. `max_num_seqs` None: as many as the
    profile's fit has seen. `power_limits_watts`: per device,
    beside the device's own default; empty = no limit is set. `headroom_ratio`: what the policy
    keeps free of each target.
    """

    load: Load
    slo: SLO
    headroom_ratio: float
    min_replicas: int = 1
    max_replicas: int | None = None
    max_num_seqs: int | None = None
    power_limits_watts: tuple[float, ...] = ()
    tariff: Tariff = field(default_factory=Tariff)

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.most_replicas:
            raise ConfigError(
                f"--min-replicas {self.min_replicas}, --max-replicas {self.most_replicas}: "
                "allowed: 1 <= min <= max"
            )
        if not 0.0 <= self.headroom_ratio < 1.0:
            raise ConfigError(
                f"--slo-headroom-ratio {self.headroom_ratio:g}: allowed: a number >= 0 and below 1"
            )
        if self.max_num_seqs is not None and self.max_num_seqs < 1:
            raise ConfigError(f"--max-num-seqs {self.max_num_seqs}: allowed: 1 or more")

    @property
    def most_replicas(self) -> int:
        """The largest replica count that is searched."""
        return DEFAULT_MAX_REPLICAS if self.max_replicas is None else self.max_replicas

    @property
    def policy_slo(self) -> SLO:
        """The targets that the policy plans with."""
        return tightened(self.slo, self.headroom_ratio)

    def at_rate(self, rate_per_s: float) -> Question:
        """The same question at another rate."""
        return replace(self, load=replace(self.load, arrival_rate_per_s=rate_per_s))

    def capacity_of(self, model: FittedModel) -> int:
        """The `max_num_seqs` that the engine is planned to start with."""
        return self.max_num_seqs or model.valid.max_num_seqs

    def box(self, model: FittedModel) -> Candidates:
        """What the policy may choose from when all knobs are free: the same box for everybody."""
        bounds = Bounds(
            min_replicas=self.min_replicas,
            max_replicas=self.most_replicas,
            max_num_seqs=self.capacity_of(model),
            power_limits_watts=self.power_limits_watts,
        )
        present = OperatingPoint(
            num_replicas=self.min_replicas, max_num_active_seqs=bounds.max_num_seqs
        )
        return candidates(present, bounds, frozenset(Knob))


def slo_of(ttft_ms: float, tpot_ms: float, percentile: float) -> SLO:
    """The targets from options. Raises ConfigError."""
    for option, value in (("--ttft-ms", ttft_ms), ("--tpot-ms", tpot_ms)):
        above_0(option, value)
    if not 0.5 < percentile < 1.0:
        raise ConfigError(f"--percentile {percentile:g}: allowed: a number above 0.5 and below 1")
    return SLO(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3, percentile=percentile)


def above_0(option: str, value: float) -> float:
    """The value, if it is a number above 0. Raises ConfigError that names the option."""
    if not 0.0 < value < math.inf:
        raise ConfigError(f"{option} {value:g}: allowed: a number above 0")
    return value


def parse_list(option: str, text: str | None) -> tuple[float, ...]:
    """Numbers above 0 from `A,B,...`, ascending, each once; empty for None. Raises ConfigError."""
    if text is None:
        return ()
    try:
        values = {float(part) for part in text.split(",")}
    except ValueError:
        raise ConfigError(f"{option} {text!r}: allowed: numbers, comma-separated") from None
    return tuple(sorted(above_0(option, value) for value in values))
