"""What the joint policy is told besides its model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from policies.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class JointOptions:
    """What a deployment may set of the joint policy; what nobody should, stands where it is used.

    `cold_start_s`, `start_watts` (per replica; None: its idle draw x 2): what a new replica takes;
    `restart_ratio` x what a start costs is what an idle replica may cost before it is let go.
    `packed`: the router fills replicas in a fixed order. `max_num_batched_tokens`: the engine's.
    `unknown_growth`: by what factor the load is taken to grow within a cold start until that has
    been seen; `again_ratio` of the highest load of the last hours may always come again and must
    not overload the fleet. `allowed_share` of the misses that the SLO allows are planned for;
    `edge_share` of what it allows may be a replica's own: the rest is for what no replica foresees.
    `hold_s`: how fast a replica forgets a peak. `backlog_ratio`: the share of the TTFT target that
    computing what waits may take before the limit is lifted, `gate_ratio` before a packing router
    goes on.
    A limit is too low for a replica that holds `crowded_ratio` times what it would at its most.
    `first_margin`: the margin of a fresh replica. `explain`: put the model's prediction into the
    decisions. `min_saving_ratio` of `ControlSettings` holds for moves that only save.
    """

    cold_start_s: float = 60.0
    start_watts: float | None = None
    restart_ratio: float = 1.0
    packed: bool = True
    max_num_batched_tokens: int = 2048
    unknown_growth: float = 1.3
    again_ratio: float = 1.0
    allowed_share: float = 0.8
    edge_share: float = 0.5
    hold_s: float = 20.0
    backlog_ratio: float = 0.3
    gate_ratio: float = 0.05
    crowded_ratio: float = 1.15
    first_margin: float = 0.1
    explain: bool = True

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or value is None:
                continue
            low, high = _RANGES[item.name]
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{item.name} is {value}; allowed: {low:g} to {high:g}")


_RANGES = {
    "cold_start_s": (0.0, 86_400.0),
    "start_watts": (0.0, 1e6),
    "restart_ratio": (0.0, 1000.0),
    "max_num_batched_tokens": (1, 1 << 24),
    "unknown_growth": (1.0, 100.0),
    "again_ratio": (0.0, 2.0),
    "allowed_share": (0.01, 1.0),
    "edge_share": (0.01, 1.0),
    "hold_s": (0.1, 3600.0),
    "backlog_ratio": (0.01, 10.0),
    "gate_ratio": (0.01, 10.0),
    "crowded_ratio": (1.0, 10.0),
    "first_margin": (-0.3, 0.7),
}
