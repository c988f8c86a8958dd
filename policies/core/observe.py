"""From reports to what a decision needs: the present point, the load, what is fresh or late."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Load,
    Observation,
    OperatingPoint,
    ReplicaObservation,
)

CATCH_UP_S = 10.0  # a backlog is to be gone within this time
INFINITE = math.inf
RECENT_S = 5.0  # that `ReplicaObservation.recent_rate_per_s` covers


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """An observation as a tick reads it.

    `fresh`: reports that are not stale. `load` None: no arrivals (`traffic` False), or lengths that
    are not known yet. `partial`: a running replica has no fresh report.
    """

    now_s: float
    present: OperatingPoint
    fresh: tuple[ReplicaObservation, ...]
    load: Load | None
    traffic: bool
    partial: bool


def observe(observation: Observation, state: ControlState, settings: ControlSettings) -> View:
    """The view of an observation; lengths not measured now are those of the last decision."""
    now_s, stale_after_s = observation.now_s, settings.stale_after_s
    fresh = tuple([one for one in observation.replicas if abs(now_s - one.time_s) <= stale_after_s])
    seen = replace(observation, replicas=fresh)
    rate_per_s = demand_per_s(fresh)
    load = _load(fresh, rate_per_s)
    last = state.last_decision.load if state.last_decision is not None else None
    if load is None and rate_per_s > 0.0 and last is not None:
        load = replace(last, arrival_rate_per_s=rate_per_s)
    return View(
        now_s=observation.now_s,
        present=present_point(seen, settings.bounds),
        fresh=fresh,
        load=load,
        traffic=rate_per_s > 0.0,
        partial=len(fresh) < observation.observed_replicas,
    )


def present_point(observation: Observation, bounds: Bounds) -> OperatingPoint:
    """The point in force: replicas as requested, the smallest cap and limit that replicas report.

    Without a report: the full batch and the device's default limit. A limit that `bounds` does not
    offer to set at all is the device's business: None.
    """
    replicas = observation.replicas
    caps = [one.max_num_active_seqs for one in replicas]
    limits = [
        watts
        for one in replicas
        if (watts := one.power_limit_watts) is not None and 0.0 < watts < INFINITE
    ]
    return OperatingPoint(
        num_replicas=observation.requested_replicas,
        max_num_active_seqs=min(
            [cap for cap in caps if cap and 0 < cap < INFINITE], default=bounds.max_num_seqs
        ),
        power_limit_watts=min(limits, default=None) if bounds.power_limits_watts else None,
        pack_seqs=min([one.pack_seqs for one in replicas if one.pack_seqs], default=None),
        pack_tokens=min([one.pack_tokens for one in replicas if one.pack_tokens], default=None),
    )


def fleet_load(observation: Observation) -> Load | None:
    """What the fleet must serve: the demand in requests/s, and mean lengths weighted by rate.

    Demand = sum of arrival rates + sum of waiting requests / 10 s. The rates already hold the
    waiting requests as arrivals; what they do not hold is that a backlog must be served *on top* of
    what keeps arriving, and 10 s is the time given to it. None when nothing arrives, or no replica
    knows its lengths. A value that is no finite number >= 0 counts as not reported.
    """
    return _load(observation.replicas, demand_per_s(observation.replicas))


def _load(replicas: tuple[ReplicaObservation, ...], rate_per_s: float) -> Load | None:
    if rate_per_s <= 0.0:
        return None
    rates = _counts([one.arrival_rate_per_s for one in replicas])
    prompt_tokens = _weighted(rates, [one.prompt_tokens for one in replicas])
    output_tokens = _weighted(rates, [one.output_tokens for one in replicas])
    if prompt_tokens is None or output_tokens is None:
        return None
    return Load(
        arrival_rate_per_s=rate_per_s,
        prompt_tokens=prompt_tokens,
        output_tokens=max(output_tokens, 1.0),
    )


def demand_per_s(replicas: Iterable[ReplicaObservation]) -> float:
    """Requests/s that arrive, plus the backlog over the time it may take to clear."""
    seen = tuple(replicas)
    rates = _counts([one.arrival_rate_per_s for one in seen])
    waiting = _counts([one.num_waiting for one in seen])
    return math.fsum(
        [rate + count / CATCH_UP_S for rate, count in zip(rates, waiting, strict=True)]
    )


def misses(replicas: Iterable[ReplicaObservation], slo: SLO) -> tuple[bool, bool]:
    """Whether any replica's measured TTFT, TPOT exceed their targets."""
    seen = tuple(replicas)
    return (
        any(one.ttft_s is not None and one.ttft_s > slo.ttft_s for one in seen),
        any(one.tpot_s is not None and one.tpot_s > slo.tpot_s for one in seen),
    )


def _counts(values: list[float] | list[float | None]) -> list[float]:
    """What is no finite number above 0 counts as none."""
    return [one if one is not None and 0.0 < one < INFINITE else 0.0 for one in values]


def _weighted(weights: list[float], values: list[float | None]) -> float | None:
    """The mean of the values weighted by the first; evenly where all weights are 0."""
    known = [
        (weight, value)
        for weight, value in zip(weights, values, strict=True)
        if value is not None and 0.0 <= value < INFINITE
    ]
    if not known:
        return None
    total = math.fsum([weight for weight, _ in known])
    if total <= 0.0:
        return math.fsum([value for _, value in known]) / len(known)
    return math.fsum([weight * value for weight, value in known]) / total
