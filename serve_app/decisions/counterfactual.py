"""What the policy would have made of the load that did come: the simulator, fed with the request
log, plays it under the policy and under the fixed point, and is checked against what was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from policies.core.errors import ConfigError
from policies.core.types import Mode, OperatingPoint
from policies.model.fitted import FittedModel
from policies.sim.arrivals import TraceRow
from policies.sim.blocks import Block, block_of
from serve_app.decisions.feed import AGAIN_S
from serve_app.decisions.log import Decisions
from serve_app.decisions.record import Record, model_of, point_of
from serve_app.request_log.row import Row
from serve_app.simulator.run import Run, simulate_trace
from serve_app.simulator.scenario import Scenario
from serve_app.simulator.specs import PolicySpec

SEEDS = 5
T_95 = 2.776  # Student's t, 4 degrees of freedom, two-sided 95 %
LEAST_REQUESTS = 50
_JITTER = 0.05
_DOWN_AFTER_S = 3.0 * AGAIN_S  # without a record


@dataclass(frozen=True, kw_only=True, slots=True)
class Counterfactual:
    """J/request of the window, all simulated but `measured`. `ran`: what held, `instead`: what is
    compared with it. `joules_per_request` ± `error`: of `instead`, on the scale of the meter where
    there is one; the error adds that over the seeds (95 %) and how far the simulator is off on what
    did run (`model_error_ratio`, None = not metered)."""

    deployment: str
    minutes: float
    requests: int
    ran: str
    instead: str
    measured: float | None
    simulated_ran: float
    simulated_instead: float
    joules_per_request: float
    error: float
    model_error_ratio: float | None
    attainment_ran_ratio: float
    attainment_instead_ratio: float


def counterfactual(found: Decisions, rows: Iterable[Row], minutes: float) -> Counterfactual:
    """Of the deployment that decided last, over its last `minutes`, or since it came up. Raises
    ConfigError where the logs do not hold enough."""
    fleet, replica = _last(found)
    end_s = max(record.time_utc_s for record in (fleet, replica) if record is not None)
    begin_s = max(end_s - 60.0 * minutes, _up_since(found, replica.deployment, end_s))
    minutes = (end_s - begin_s) / 60.0
    model = model_of(replica, found.profiles)
    if model is not None and replica.correction is not None:
        model = replica.correction.apply(model)
    if model is None:
        raise ConfigError("the decisions were made without a model that may be acted on")
    block = _trace(rows, replica.deployment, begin_s, end_s)
    if block.rows < LEAST_REQUESTS:
        raise ConfigError(
            f"the request log holds {block.rows} completed requests of {replica.deployment} in the "
            f"last {minutes:.3g} minutes; {LEAST_REQUESTS} are needed"
        )
    scenario, fixed = _scenario(model, fleet, replica), _fixed(fleet, replica)
    still = PolicySpec(
        name="static",
        options={
            "num_replicas": fixed.num_replicas,
            "max_num_active_seqs": fixed.max_num_active_seqs,
            "power_limit_watts": fixed.power_limit_watts,
        },
    )
    moving = PolicySpec(name="energy_slo", router="packed" if replica.serving.packed else "least")
    active = replica.settings.mode is Mode.ACTIVE
    ran, instead = (moving, still) if active else (still, moving)
    first = [_play(block, ran, scenario, seed) for seed in range(SEEDS)]
    other = [_play(block, instead, scenario, seed) for seed in range(SEEDS)]
    measured = _measured(found, fleet or replica, begin_s)
    return _concluded(
        _Played(replica.deployment, minutes, block.rows, ran, instead), first, other, measured
    )


@dataclass(frozen=True, slots=True)
class _Played:
    deployment: str
    minutes: float
    requests: int
    ran: PolicySpec
    instead: PolicySpec


def _concluded(
    played: _Played, ran: list[Run], instead: list[Run], measured: float | None
) -> Counterfactual:
    ratios = [_cost(two) / _cost(one) for one, two in zip(ran, instead, strict=True)]
    ratio = statistics.fmean(ratios)
    spread = T_95 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    was = statistics.fmean(map(_cost, ran))
    off = None if measured is None else was / measured - 1.0
    base = was if measured is None else measured
    return Counterfactual(
        deployment=played.deployment,
        minutes=played.minutes,
        requests=played.requests,
        ran=played.ran.text,
        instead=played.instead.text,
        measured=measured,
        simulated_ran=was,
        simulated_instead=statistics.fmean(map(_cost, instead)),
        joules_per_request=base * ratio,
        error=base * (spread + ratio * abs(off or 0.0)),
        model_error_ratio=off,
        attainment_ran_ratio=statistics.fmean(_attained(run) for run in ran),
        attainment_instead_ratio=statistics.fmean(_attained(run) for run in instead),
    )


def sentences(found: Counterfactual) -> list[str]:
    """For people."""
    active = found.ran.startswith("energy_slo")
    what = "Had everything stayed as it was found" if active else "Had the policy been active"
    measured = "unavailable" if found.measured is None else f"{found.measured:.3g} J/request"
    cost, requests = f"{found.joules_per_request:.3g} ± {found.error:.2g} J", found.requests
    shares = [found.attainment_ran_ratio, found.attainment_instead_ratio]
    ran, instead = (f"{100 * share:.4g} %" for share in shares)
    off = found.model_error_ratio
    return [
        f"{what}, a request would have cost {cost}",
        f"(simulated; {requests} requests of the last {found.minutes:.3g} minutes).",
        f"Measured: {measured}.",
        f"Simulated as it ran: {found.simulated_ran:.3g} J/request, {ran} within the targets.",
        f"Simulated instead: {found.simulated_instead:.3g} J/request, {instead} within them.",
        "Without a meter nothing says how far the simulator is off: trust the ratio."
        if off is None
        else f"The simulator is {100 * off:+.0f} % off on what did run.",
    ]


def _last(found: Decisions) -> tuple[Record | None, Record]:
    replicas = [record for record in found.records if record.replica is not None]
    if not replicas:
        raise ConfigError("no decision of a replica is recorded")
    last = replicas[-1]
    fleets = [
        record
        for record in found.records
        if record.replica is None and record.deployment == last.deployment
    ]
    return (fleets[-1] if fleets else None), last


def _up_since(found: Decisions, deployment: str, end_s: float) -> float:
    """Since when the deployment has run without a break: who runs writes a record once a minute."""
    times_s = [one.time_utc_s for one in found.records if one.deployment == deployment]
    since_s = end_s
    for time_s in sorted(times_s, reverse=True):
        if since_s - time_s > _DOWN_AFTER_S:
            break
        since_s = min(since_s, time_s)
    return since_s


def _trace(rows: Iterable[Row], deployment: str, begin_s: float, end_s: float) -> Block:
    """The requests that ended well, in order of arrival."""
    kept = [
        (row.start.timestamp() - begin_s, row.prompt_tokens, row.output_tokens)
        for row in rows
        if row.deployment == deployment
        and row.outcome == "completed"
        and row.prompt_tokens
        and row.output_tokens
        and begin_s <= row.start.timestamp() <= end_s
    ]
    return block_of(
        TraceRow(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output)
        for arrival_s, prompt, output in sorted(kept)
    )


def _scenario(model: FittedModel, fleet: Record | None, replica: Record) -> Scenario:
    bounds = replica.settings.bounds
    count = replica.observation.pool_replicas
    sizes = (fleet.settings.bounds if fleet else None) or bounds
    least = sizes.min_replicas if fleet else count
    most = sizes.max_replicas if fleet else count
    tokens = replica.serving.max_num_batched_tokens
    scenario = Scenario(
        truth=model,
        belief=model,
        slo=replica.settings.slo,
        power_limits_watts=bounds.power_limits_watts,
        min_replicas=least,
        max_replicas=most,
        initial_replicas=min(max(count, least), most),
        max_num_seqs=bounds.max_num_seqs,
        cold_start_s=replica.policy.cold_start_s,
        jitter=_JITTER,
    )
    return scenario if tokens is None else replace(scenario, max_num_batched_tokens=tokens)


def _fixed(fleet: Record | None, replica: Record) -> OperatingPoint:
    """What holds without the policy: while it acts, the engine's own cap and the default limit."""
    present = point_of(replica.decision, "present")
    active = replica.settings.mode is Mode.ACTIVE
    count = fleet.observation.observed_replicas if fleet else replica.observation.pool_replicas
    return OperatingPoint(
        num_replicas=max(count, 1),
        max_num_active_seqs=(
            replica.settings.bounds.max_num_seqs if active else present.max_num_active_seqs
        ),
        power_limit_watts=None if active else present.power_limit_watts,
    )


def _play(block: Block, spec: PolicySpec, scenario: Scenario, seed: int) -> Run:
    return simulate_trace(("live", block), spec, replace(scenario, seed=seed))


def _measured(found: Decisions, owner: Record, begin_s: float) -> float | None:
    """J/request of the window by the meter, idle joules included: from what came of the decisions
    of the fleet, or of the one replica."""
    came: list[dict[str, Any]] = [
        found.outcomes[record.id]
        for record in found.records
        if record.key == owner.key and record.time_utc_s >= begin_s and record.id in found.outcomes
    ]
    requests = sum(one["requests"] for one in came)
    if not requests or any(one["joules"] is None for one in came):
        return None
    return float(sum(one["joules"] for one in came) / requests)


def _cost(run: Run) -> float:
    cost = run.result.joules_per_request
    if cost is None:
        raise ConfigError(f"the simulator completes nothing under {run.spec.text}")
    return cost


def _attained(run: Run) -> float:
    return run.result.attainment_ratio or 0.0
