"""How many replicas: what the load of the next cold start needs, and what is cheapest beyond."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from policies.core.forecast import (
    Outlook,
    Swings,
    burst_outlook,
    known_ratio,
    outlooks,
    swings_of,
    with_level,
)
from policies.core.lengths import mixed
from policies.core.memory import Memory, lengths_due, with_lengths, with_need, with_pressure
from policies.core.observe import CATCH_UP_S, View
from policies.core.types import (
    Bounds,
    ControlSettings,
    Observation,
    Reason,
    ReplicaObservation,
)
from policies.joint.options import JointOptions
from policies.joint.replica import Wish, load_now
from policies.joint.tables import Capability, capability, pool_of
from policies.model.fitted import FittedModel

FLEET_MARGIN = 0.3  # beyond, misses tell of replicas that came late, not of slow ones
SEEN_REQUESTS, FEW_REQUESTS = 512.0, 64.0  # that bins are made of: at most; too few for a tail
AGAIN, CAUTION = 0.15, 0.1  # of the pressure: on what may come again, and on the fleet
BURSTS = 2.0  # times its mean beyond it: what makes a load one of bursts
IDLE_SHARE = 0.1  # of what it can serve: what a replica with so little misses, more do not cure
MISS_PRICE = 6.0  # joules of a miss, by those of a request
USUAL_PRESSURE = 0.5  # at which a miss costs that; e times as much at 2.5
GRID = 16  # fleet sizes compared at once
PAYBACK_S = 300.0  # a replica that only saves must have paid for its start by then


def fleet_learned(
    observation: Observation,
    view: View,
    memory: Memory,
    settings: ControlSettings,
    options: JointOptions,
) -> Memory:
    """What the fleet knows after one more look at its reports."""
    fresh = view.fresh
    if lengths_due(memory, view.now_s):
        memory = with_lengths(memory, view.now_s, *_lengths(fresh))
    steady_per_s, recent_per_s = _arrivals(fresh)
    queued_per_s = _queued_per_s(observation)
    memory = with_level(
        memory,
        view.now_s,
        recent_per_s + queued_per_s,
        steady_per_s + queued_per_s,
        options.cold_start_s,
    )
    counted = [
        (one.replica, one.num_judged, (one.num_late or 0.0) + (one.num_slow or 0.0))
        for one in fresh
        if one.num_judged is not None
    ]
    names = {one.replica for one in observation.replicas}
    memory = with_pressure(memory, counted, _allowed(settings, options), names)
    return replace(
        memory,
        first_replicas=memory.first_replicas or observation.requested_replicas,
        margin=_calmest((one.margin for one in fresh), options),
        pace_margin=_calmest((one.pace_margin for one in fresh), options),
        time_s=view.now_s,
    )


def _allowed(settings: ControlSettings, options: JointOptions) -> float:
    return (1.0 - settings.slo.percentile) * options.allowed_share


def _lengths(
    fresh: tuple[ReplicaObservation, ...],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Bins of the fleet's prompts and answers, each replica's by how many requests they are made
    of. Who has seen few knows no tail: their bins are left out; None where nobody has more."""
    pairs = [
        (min(one.num_judged or 0.0, SEEN_REQUESTS), one)
        for one in fresh
        if one.prompt_bins and one.output_bins and (one.num_judged or 0.0) >= FEW_REQUESTS
    ]
    prompts = mixed((weight, one.prompt_bins or ()) for weight, one in pairs)
    return prompts, mixed((weight, one.output_bins or ()) for weight, one in pairs)


def _calmest(margins: Iterable[float | None], options: JointOptions) -> float:
    """By how much the lowest of the replicas' margins has grown since they began, 0 to 0.3. Those
    that are filled first work at the edge of their SLO whatever stands beside them; that more are
    needed shows where the last misses."""
    known = [one for one in margins if one is not None]
    return min(max(min(known, default=0.0) - options.first_margin, 0.0), FLEET_MARGIN)


def demand_now(observation: Observation, fresh: tuple[ReplicaObservation, ...]) -> float:
    """Requests/s: what arrives in the mean of the window, or surely more in the last seconds, and
    what nobody has taken yet over the time it may wait."""
    steady_per_s, recent_per_s = _arrivals(fresh)
    return load_now(steady_per_s, recent_per_s) + _queued_per_s(observation)


def _arrivals(fresh: tuple[ReplicaObservation, ...]) -> tuple[float, float]:
    """Requests/s over the window of the reports, and over the last seconds where that is told."""
    steady = [one.arrival_rate_per_s for one in fresh]
    recent = [
        rate if one.recent_rate_per_s is None else one.recent_rate_per_s
        for rate, one in zip(steady, fresh, strict=True)
    ]
    return sum(steady), sum(recent)


def _queued_per_s(observation: Observation) -> float:
    return observation.num_queued / CATCH_UP_S


def wish_of_fleet(  # noqa: PLR0913
    observation: Observation,
    view: View,
    memory: Memory,
    model: FittedModel,
    *,
    settings: ControlSettings,
    options: JointOptions,
) -> Wish:
    """Enough replicas for the load that is to be expected within a cold start, more where that is
    cheaper, fewer once nobody has needed them for as long as a start costs in idle energy (the
    break-even rule of ski rental: at most twice what a clairvoyant would pay)."""
    tables: dict[tuple[int, float | None], Capability] = {}

    def known_of(replicas: int) -> Capability:
        shared = settings.bounds.shared_by(replicas * model.power.num_devices)
        key = (pool_of(replicas), shared.max_limit_watts)
        if key not in tables:
            under = settings if shared is settings.bounds else replace(settings, bounds=shared)
            tables[key] = capability(model, memory, under, options, key[0])
        return tables[key]

    known = known_of(observation.pool_replicas)
    bounds, present = settings.bounds, view.present
    now = demand_now(observation, view.fresh)
    low = max(bounds.min_replicas, 1 if now > 0.0 else 0)
    if known.full_per_s <= 0.0:  # nothing holds: as many as are busy, not all there are
        need = max(low, math.ceil(_busy(view)))
    else:
        swings, most = swings_of(memory), bounds.max_replicas
        if swings.bursts:
            outlook = burst_outlook(memory, swings)
            least = worthwhile(known_of, known, outlook, memory.pressure, most)
        else:
            allowed = _allowed(settings, options) * math.exp(-memory.pressure)
            seen = outlooks(memory, now, options.unknown_growth)
            least = most
            for outlook in seen:
                least = _enough(known_of, known.full_per_s, outlook, allowed, least)
        again = _again(known, memory, options, swings)
        least = round(least * math.exp(CAUTION * memory.pressure))
        need = max(low, least, again)
    kept = math.ceil(memory.first_replicas * (1.0 - known_ratio(memory)))
    need = min(max(need, kept), bounds.max_replicas)
    if now <= 0.0 and bounds.min_replicas == 0:
        need = 0  # asleep once that has lasted as long as a start is worth
    cheapest = _cheapest(known, now, need, view, settings, options)
    memory = needing(memory, view, cheapest, model, settings=settings, options=options)
    wanted = max(cheapest, memory.needs[0][1])
    reason = Reason.NO_BETTER_POINT
    if wanted > present.num_replicas:
        reason = Reason.SLO_AT_RISK if need > present.num_replicas else Reason.CHEAPEST_FEASIBLE
    elif wanted < present.num_replicas:
        reason = Reason.CHEAPEST_FEASIBLE
    if view.partial and wanted < present.num_replicas:
        wanted, reason = present.num_replicas, Reason.DWELL
    return Wish(
        target=replace(present, num_replicas=wanted),
        reason=reason,
        memory=memory,
        notes=(_note(now, memory, need), *_budget_notes(bounds, need)),
    )


def _budget_notes(bounds: Bounds, need: int) -> tuple[str, ...]:
    """What a power budget costs, said where it does."""
    if bounds.fleet_budget_watts is None or need < bounds.max_replicas:
        return ()
    fed = f"{bounds.fleet_budget_watts:g} W feed no more than {bounds.max_replicas} replicas"
    return (f"power budget: {fed}, so the SLO may break",)


def needing(  # noqa: PLR0913
    memory: Memory,
    view: View,
    replicas: int,
    model: FittedModel,
    *,
    settings: ControlSettings,
    options: JointOptions,
) -> Memory:
    """With the need of now beside those of as long as a start costs in idle energy."""
    start_joules = start_watts(model, options) * options.cold_start_s
    window_s = options.restart_ratio * start_joules / max(model.power.idle_watts, 1e-9)
    window_s = max(window_s, settings.dwell_down_s)
    if not memory.needs:  # whoever started these had a reason
        memory = with_need(memory, view.now_s, view.present.num_replicas, window_s)
    return with_need(memory, view.now_s, replicas, window_s)


def _again(known: Capability, memory: Memory, options: JointOptions, swings: Swings) -> int:
    """Replicas that the highest load of the last hours does not overload. Where it rises far above
    its mean within seconds, a queue is there before limits are lifted, and needs slack to go."""
    top = options.again_ratio * math.exp(AGAIN * memory.pressure) * memory.top_per_s
    burstiness = min(max(swings.top_ratio - 1.0, 0.0) / BURSTS, 1.0)
    slack_ratio = 1.0 + burstiness * (known.slack_ratio - 1.0)
    return math.ceil(top * slack_ratio / known.full_per_s) if known.full_per_s > 0.0 else 0


def _note(now_per_s: float, memory: Memory, need: int) -> str:
    margin = memory.margin or 0.0
    return (
        f"load {now_per_s:.2f}/s, margin {margin:.2f}, need {need}, pressure {memory.pressure:.2f}"
    )


def _enough(
    known_of: Callable[[int], Capability],
    full_per_s: float,
    outlook: Outlook,
    allowed: float,
    most: int,
) -> int:
    """The fewest replicas, each at full power, with which no more than the allowed share of all
    requests misses in the mean over the outlook, beyond what a fleet that has next to nothing to
    do misses as well; at most `most`. Of many, each serves more."""
    mean_per_s = _mean_per_s(outlook)
    if mean_per_s <= 0.0:
        return 1
    missed_ratio = _misses_of(known_of, outlook)
    idlest = math.ceil(mean_per_s / max(IDLE_SHARE * full_per_s, 1e-9))
    allowed = allowed + missed_ratio(max(idlest, 1))
    low, high = 1, max(most, 1)
    if high > 1 and missed_ratio(high - 1) > allowed:
        return high  # as most often where another outlook has needed no more
    while low < high:
        middle = (low + high) // 2
        if missed_ratio(middle) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def worthwhile(
    known_of: Callable[[int], Capability],
    known: Capability,
    outlook: Outlook,
    pressure: float,
    most: int,
) -> int:
    """The replicas, each at full power, with which idling and misses cost the least in the mean
    over the outlook; no fewer than its mean keeps busy, at most `most`. Bursts reach so high that
    a share of misses is a matter of the rarest few; what one more replica saves on all of them is
    known better. `known` is what one can do in the fleet of now."""
    mean_per_s = _mean_per_s(outlook)
    if mean_per_s <= 0.0:
        return 1
    each_per_s = float(known.most_per_s[known.best])
    watts = float(known.table.watts_at(np.array([each_per_s]))[known.best, 0])
    idle_price = known.table.idle_watts * each_per_s / max(mean_per_s * watts, 1e-9)
    miss_price = MISS_PRICE * math.exp((pressure - USUAL_PRESSURE) / 2.0)

    missed_ratio = _misses_of(known_of, outlook)

    def cost(replicas: int) -> float:
        """In joules of a request at the load of the fewest of them."""
        return idle_price * replicas + miss_price * missed_ratio(replicas)

    high = max(most, 1)
    low = min(math.ceil(mean_per_s / known.full_per_s), high)
    while high - low > GRID:
        counts = np.unique(np.geomspace(low, high, GRID).round()).astype(int).tolist()
        best = min(range(len(counts)), key=lambda place: cost(counts[place]))
        low, high = counts[max(best - 1, 0)], counts[min(best + 1, len(counts) - 1)]
    return min(range(low, high + 1), key=cost)


def _mean_per_s(outlook: Outlook) -> float:
    cases = float(outlook.cases.sum())
    return float(outlook.cases @ outlook.rates_per_s) / cases if cases > 0.0 else 0.0


def _misses_of(known_of: Callable[[int], Capability], outlook: Outlook) -> Callable[[int], float]:
    """Of all requests of the outlook, the share that so many replicas at full power miss."""
    asked = outlook.cases * outlook.rates_per_s
    shares = asked / float(asked.sum())

    def missed_ratio(replicas: int) -> float:
        table = known_of(replicas).table
        each_per_s = outlook.rates_per_s / replicas
        return float(
            shares @ np.interp(each_per_s, table.rates_per_s, table.missed_ratio[-1], right=1)
        )

    return missed_ratio


def start_watts(model: FittedModel, options: JointOptions) -> float:
    """What a starting replica is taken to draw."""
    return 2.0 * model.power.idle_watts if options.start_watts is None else options.start_watts


def _busy(view: View) -> float:
    return sum(1.0 for one in view.fresh if one.num_running + one.num_waiting > 0.0)


def _cheapest(  # noqa: PLR0913, PLR0917
    known: Capability,
    now_per_s: float,
    need: int,
    view: View,
    settings: ControlSettings,
    options: JointOptions,
) -> int:
    """The count from `need` upwards with the fewest watts now; more than there are now only where
    what that saves pays for the starts."""
    present = view.present.num_replicas
    top = min(settings.bounds.max_replicas, max(2 * need, need + 4))
    counts = np.arange(need, top + 1)
    if not len(counts) or need == 0 or now_per_s <= 0.0 or known.top_per_s <= 0.0:
        return need
    costs = fleet_watts(known, now_per_s, counts, packed=options.packed)
    starts = np.maximum(counts - max(present, need), 0)
    price = starts * known.table.idle_watts * 2.0 * options.cold_start_s / PAYBACK_S
    return int(counts[int(np.argmin(costs + price))])


def fleet_watts(
    known: Capability, rate_per_s: float, counts: np.ndarray, *, packed: bool
) -> np.ndarray:
    """Draw of fleets of these sizes, each replica at its cheapest limit: spread evenly, or filled
    one after the other up to the load of the fewest joules per request."""
    table, most = known.table, known.most_per_s
    shares = rate_per_s / np.maximum(counts, 1)
    each = float(most[known.best])
    full = np.minimum(np.floor(rate_per_s / each), counts) if each > 0.0 else np.zeros(len(counts))
    rest = rate_per_s - full * each
    part = min(max(float(rest.max()), 0.0), each)
    watts = table.watts_at(np.append(shares, (each, part)))
    spread = np.where(most[:, None] >= shares, watts[:, :-2], np.inf).min(axis=0)
    even = np.where(np.isfinite(spread), spread, watts[-1, :-2]) * counts
    if not packed or each <= 0.0:
        return np.asarray(even)
    full_watts = float(watts[known.best, -2])
    part_watts = float(np.where(most >= rest.max(), watts[:, -1], np.inf).min())
    idle = np.maximum(counts - full - 1, 0)
    filled = full * full_watts + np.where(counts > full, part_watts, 0.0) + idle * table.idle_watts
    return np.asarray(np.where(rest <= each, np.minimum(filled, even), even))
