"""The value types that cross every seam. Frozen, keyword-only; "not known" is None, never 0.

Units are in the names: `_s` seconds, `_joules`, `_watts`, `_tokens`, `_per_s`, `_ratio` (0..1).
Desired, requested and observed are three different words: a *point* is what a policy wants, an
*observation* is what was seen, and neither is ever used for the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from policies.core.memory import Memory

BUDGET_STEP_WATTS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SLO:
    """Latency targets of one deployment.

    `ttft_s`: arrival at the replica → first token, seconds. `tpot_s`: (e2e - TTFT) / (output
    tokens - 1), seconds per token, per request. Both must hold for `percentile` of the requests
    that arrived (0.99 = 99 %).
    """

    ttft_s: float = 1.0
    tpot_s: float = 0.1
    percentile: float = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """One setting of all knobs. `max_num_active_seqs` is the cap on running requests per replica
    (vLLM's word; below its start-time capacity `max_num_seqs`). `power_limit_watts` is per GPU;
    None = the device's own default, not touched by us. `pack_seqs`: the router sends requests to
    the first replica, in a fixed order, that has fewer than so many outstanding and fewer than
    `pack_tokens` prompt tokens waiting; None = to the one with the fewest outstanding."""

    num_replicas: int
    max_num_active_seqs: int
    power_limit_watts: float | None = None
    pack_seqs: int | None = None
    pack_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a policy may choose from. `max_num_seqs` is the engine's start-time capacity;
    `power_limits_watts` the allowed limits, ascending, empty = the limit is not ours to set;
    `max_limit_watts`: no GPU may have more (a power budget), None = the device's own default may
    hold as well; `fleet_budget_watts`: what the limits of all GPUs of the fleet may sum up to."""

    min_replicas: int = 1
    max_replicas: int = 1
    min_active_seqs: int = 1
    max_num_seqs: int = 256
    power_limits_watts: tuple[float, ...] = ()
    max_limit_watts: float | None = None
    fleet_budget_watts: float | None = None

    def shared_by(self, gpus: int) -> Bounds:
        """These bounds for one of so many GPUs that share the fleet's budget evenly, in steps of
        10 W, no lower than the lowest limit."""
        if self.fleet_budget_watts is None:
            return self
        share = BUDGET_STEP_WATTS * (self.fleet_budget_watts / max(gpus, 1) // BUDGET_STEP_WATTS)
        share = max(share, min(self.power_limits_watts, default=0.0))
        most = share if self.max_limit_watts is None else min(share, self.max_limit_watts)
        return replace(self, max_limit_watts=most)

    def affordable(self, gpus_per_replica: int) -> Bounds:
        """These bounds with no more replicas than the fleet's budget feeds at the lowest limit, but
        `min_replicas` in any case."""
        least = min(self.power_limits_watts, default=0.0) * gpus_per_replica
        if self.fleet_budget_watts is None or least <= 0.0:
            return self
        most = max(int(self.fleet_budget_watts // least), self.min_replicas, 1)
        return replace(self, max_replicas=min(self.max_replicas, most))

    @property
    def limits(self) -> tuple[float | None, ...]:
        """All limits that may hold, ascending; the last one is full power, or what a budget leaves
        of it. None = the device's own default."""
        most = self.max_limit_watts
        if most is None:
            return (*self.power_limits_watts, None)
        return (*(one for one in self.power_limits_watts if one < most), most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What arrives, per fleet or per replica as the context says. Mean lengths per request."""

    arrival_rate_per_s: float
    prompt_tokens: float
    output_tokens: float


class Knob(StrEnum):
    """The knobs a tick may be free to move. A knob that is not in `free` never moves."""

    NUM_REPLICAS = "num_replicas"
    MAX_NUM_ACTIVE_SEQS = "max_num_active_seqs"
    POWER_LIMIT = "power_limit"
    PACK_SEQS = "pack_seqs"


class Mode(StrEnum):
    """active: decide and act. approve: decide, and act on what an operator has approved. advisory:
    decide, log, do not act. off: meter only."""

    ACTIVE = "active"
    APPROVE = "approve"
    ADVISORY = "advisory"
    OFF = "off"


class Reason(StrEnum):
    """Why a decision is what it is; a metric label, so the set is closed."""

    CHEAPEST_FEASIBLE = "cheapest_feasible"  # moved to the cheapest point that holds the SLO
    SLO_AT_RISK = "slo_at_risk"  # moved to a dearer point because the SLO was about to break
    NO_BETTER_POINT = "no_better_point"  # the present point is the cheapest feasible one
    SAVING_TOO_SMALL = "saving_too_small"  # a cheaper point exists, below the threshold
    DWELL = "dwell"  # a move is wanted, but the last one is too recent
    NO_FEASIBLE_POINT = "no_feasible_point"  # nothing holds the SLO: the least bad point
    NO_TRAFFIC = "no_traffic"  # no arrivals in the window: towards the floor
    STALE = "stale"  # the observation is too old or absent: safe point
    MODEL_UNTRUSTED = "model_untrusted"  # the model does not fit or is out of range: safe point
    ERROR = "error"  # the policy failed: hold
    STATIC = "static"  # a policy that does not look at the load
    RAY_DEFAULT = "ray_default"  # Ray Serve's own rule


class Binding(StrEnum):
    """Which limit stops a point from being feasible; NONE = feasible."""

    NONE = "none"
    CAPACITY = "capacity"  # arrivals exceed what the point can serve
    TTFT = "ttft"
    TPOT = "tpot"


@dataclass(frozen=True, slots=True)  # by position as well: a controller makes a thousand a second
class ReplicaObservation:
    """One replica as seen at `time_s`. Rates and lengths over the replica's own window; None where
    the window holds no sample. `power_limit_watts` is the *enforced* limit, read back."""

    replica: str
    time_s: float
    num_running: float
    num_waiting: float
    arrival_rate_per_s: float
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    ttft_s: float | None = None  # at the SLO percentile
    tpot_s: float | None = None
    draw_watts: float | None = None
    max_num_active_seqs: int | None = None  # the cap in force
    power_limit_watts: float | None = None
    pack_seqs: int | None = None  # what the router was last told
    pack_tokens: int | None = None
    waiting_prompt_tokens: float | None = None  # prompt tokens arrived and not yet computed
    recent_rate_per_s: float | None = None  # arrivals over the last few seconds
    num_judged: float | None = None  # requests so far that could meet the SLO at all
    num_late: float | None = None  # of those, the ones whose first token was late
    num_slow: float | None = None  # and the ones in time that then decoded too slowly
    margin: float | None = None  # learned: log of the factor by which times are taken longer
    pace_margin: float | None = None  # the same for the gaps between tokens
    prompt_bins: tuple[float, ...] | None = None  # mean lengths between the quantiles
    output_bins: tuple[float, ...] | None = None  # of `policies.core.lengths`


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What a tick sees. `replicas` holds the latest report of each running replica that has
    reported; `observed_replicas` counts all running ones, `requested_replicas` what was asked
    for and may still be starting."""

    now_s: float
    replicas: tuple[ReplicaObservation, ...]
    observed_replicas: int
    requested_replicas: int
    num_queued: float = 0.0  # requests that no replica has taken yet
    pool_replicas: int = 1  # that share the arrivals, as far as who decides knows


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model says about a point under a load. Latencies at the SLO percentile, seconds; watts
    and joules of the whole fleet including idle. `margin_ratio` widens: 0.1 = ±10 %."""

    ttft_s: float
    tpot_s: float
    draw_watts: float
    joules_per_request: float
    utilization_ratio: float
    binding: Binding = Binding.NONE

    @property
    def feasible(self) -> bool:
        return self.binding is Binding.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One decision, with a price on both sides; this is what is logged, exported and explained.

    `proposed` is the best point the objective found, `chosen` what the guard let through;
    `saving_ratio` = 1 - J/request(proposed) / J/request(present), `threshold_ratio` what a move
    had to exceed. `predicted_*` belong to the points of the same name; None where the model could
    not answer. `notes` are the guard's words, for people.
    """

    time_s: float
    policy: str
    reason: Reason
    present: OperatingPoint
    proposed: OperatingPoint
    chosen: OperatingPoint
    predicted_present: Prediction | None = None
    predicted_chosen: Prediction | None = None
    saving_ratio: float | None = None
    threshold_ratio: float | None = None
    load: Load | None = None
    notes: tuple[str, ...] = ()

    @property
    def moves(self) -> bool:
        return self.chosen != self.present


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlSettings:
    """How a tick behaves: SLO, bounds, hysteresis, staleness. One place, no second default.

    `min_saving_ratio`: a move that only saves energy must save at least this share.
    `slo_headroom_ratio`: feasible means predicted ≤ target x (1 - headroom). `dwell_up_s` /
    `dwell_down_s`: the least time between two moves towards more / less capacity.
    `stale_after_s`: a report older than this is not acted on. `max_active_seqs_step_ratio`: the
    cap moves at most this share of `max_num_seqs` per tick (moves to the safe point are exempt).
    """

    slo: SLO = field(default_factory=SLO)
    bounds: Bounds = field(default_factory=Bounds)
    mode: Mode = Mode.ACTIVE
    min_saving_ratio: float = 0.03
    slo_headroom_ratio: float = 0.1
    dwell_up_s: float = 5.0
    dwell_down_s: float = 30.0
    stale_after_s: float = 10.0
    max_active_seqs_step_ratio: float = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlState:
    """What a tick carries to the next one: the last decision and when each direction last moved.
    JSON-able through `policies.core.control.state_to_dict` / `state_from_dict` (Ray keeps policy
    state as a dict)."""

    last_move_up_s: float | None = None
    last_move_down_s: float | None = None
    last_relief_s: float | None = None  # when a measured SLO miss last asked for more capacity
    last_relief_rate_per_s: float | None = None  # the load at that moment, requests/s
    last_cap_move_s: float | None = None  # the batch cap keeps its own clock
    last_decision: Decision | None = None
    memory: Memory = field(default_factory=Memory)
