"""One replica's own knobs: its power limit, its batch cap, and how many the router may give it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from policies.core.memory import Memory, with_lengths, with_margins
from policies.core.observe import RECENT_S, View
from policies.core.types import ControlSettings, OperatingPoint, Reason, ReplicaObservation
from policies.joint.options import JointOptions
from policies.joint.tables import Capability, capability
from policies.model.fitted import FittedModel

CROWDED_MORE = 3  # requests: small numbers fluctuate


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """Where to go and why, before bounds and mode."""

    target: OperatingPoint
    reason: Reason
    memory: Memory
    saving_ratio: float | None = None
    notes: tuple[str, ...] = ()


def learned(
    one: ReplicaObservation, memory: Memory, settings: ControlSettings, options: JointOptions
) -> Memory:
    """What a replica knows after one more report of its own."""
    if memory.margin is None:
        memory = replace(
            memory,
            margin=options.first_margin,
            pace_margin=options.first_margin,
            judged=one.num_judged or 0.0,
            late=one.num_late or 0.0,
            slow=one.num_slow or 0.0,
        )
    allowed = (1.0 - settings.slo.percentile) * options.edge_share
    if one.num_judged is not None and one.num_late is not None and one.num_slow is not None:
        counters = (one.num_judged, one.num_late, one.num_slow)
        memory = with_margins(memory, counters, allowed)
    memory = with_lengths(memory, one.time_s, one.prompt_bins, one.output_bins)
    elapsed_s = max(one.time_s - memory.time_s, 0.0) if memory.time_s is not None else math.inf
    peak = memory.peak_per_s * math.exp(-elapsed_s / options.hold_s)
    return replace(memory, time_s=one.time_s, peak_per_s=max(peak, present_per_s(one)))


def present_per_s(one: ReplicaObservation) -> float:
    """The load of now."""
    return load_now(one.arrival_rate_per_s, one.recent_rate_per_s or 0.0)


def load_now(steady_per_s: float, recent_per_s: float) -> float:
    """Requests/s: the mean of the window, or that of the last seconds where it is surely higher (by
    two standard deviations of a Poisson count)."""
    surely_per_s = recent_per_s - 2.0 * math.sqrt(recent_per_s / RECENT_S)
    return max(steady_per_s, surely_per_s, 0.0)


def wish_of_replica(  # noqa: PLR0913, PLR0917
    view: View,
    memory: Memory,
    model: FittedModel,
    settings: ControlSettings,
    options: JointOptions,
    pool: int = 1,
) -> Wish:
    """The cheapest limit that holds the present load and what already waits.

    Raised at once, lowered as the remembered peak fades and only where that saves enough.
    """
    one, present = view.fresh[0], view.present
    known = capability(model, memory, settings, options, pool)
    load = max(memory.peak_per_s, 0.0)
    row, reason = _limit(one, known, load, present, settings, options)
    if not settings.bounds.power_limits_watts:
        row = len(known.limits) - 1
    watts = known.table.watts_at(load)
    here = (
        known.limits.index(present.power_limit_watts)
        if (present.power_limit_watts in known.limits)
        else len(known.limits) - 1
    )
    saving = 1.0 - float(watts[row] / watts[here]) if watts[here] > 0.0 else 0.0
    if reason is Reason.CHEAPEST_FEASIBLE and row < here and saving < settings.min_saving_ratio:
        row, reason = here, Reason.SAVING_TOO_SMALL
    if row == here and reason is Reason.CHEAPEST_FEASIBLE:
        reason = Reason.NO_BETTER_POINT
    overloaded = reason is Reason.SLO_AT_RISK and load > known.top_per_s
    # What waits is late in any case: the largest batch drains it soonest, for the fewest joules.
    wanted = settings.bounds.max_num_seqs if overloaded else known.caps[row]
    cap = _cap(wanted, present.max_num_active_seqs, settings)
    target = OperatingPoint(
        num_replicas=present.num_replicas,
        max_num_active_seqs=cap,
        power_limit_watts=known.limits[row],
        pack_seqs=known.pack_seqs[row] if options.packed else None,
        pack_tokens=_gate(known, row, settings, options) if options.packed else None,
    )
    if reason is Reason.NO_BETTER_POINT and cap != present.max_num_active_seqs:
        reason = Reason.CHEAPEST_FEASIBLE
    notes = _budget_notes(settings, reason, row == len(known.limits) - 1)
    return Wish(target=target, reason=reason, memory=memory, saving_ratio=saving, notes=notes)


def _budget_notes(settings: ControlSettings, reason: Reason, at_top: bool) -> tuple[str, ...]:
    """What a power budget costs, said where it does: the SLO is at risk and no more power may be
    had."""
    most = settings.bounds.max_limit_watts
    if most is None or reason is not Reason.SLO_AT_RISK or not at_top:
        return ()
    return (f"power budget: no more than {most:g} W per GPU, so the SLO may break",)


def _limit(  # noqa: PLR0913, PLR0917
    one: ReplicaObservation,
    known: Capability,
    load: float,
    present: OperatingPoint,
    settings: ControlSettings,
    options: JointOptions,
) -> tuple[int, Reason]:
    """The row of the limit, and why."""
    if one.num_running + one.num_waiting <= 0.0 and not one.recent_rate_per_s:
        return len(known.limits) - 1, Reason.NO_TRAFFIC  # idle draw knows no limit: be ready
    waiting = one.waiting_prompt_tokens or 0.0
    clears_s = waiting * known.prefill_s_per_token
    quick = clears_s <= options.backlog_ratio * settings.slo.ttft_s
    outstanding = one.num_running + one.num_waiting
    roomy = known.most_inside * options.crowded_ratio + CROWDED_MORE >= outstanding
    holds = (known.most_per_s >= load) & (known.most_per_s > 0.0) & quick & roomy
    if not holds.any():
        return len(known.limits) - 1, Reason.SLO_AT_RISK
    watts = np.where(holds, known.table.watts_at(load), np.inf)
    row = int(np.argmin(watts))
    here = present.power_limit_watts
    raised = here is not None and (
        known.limits[row] is None or known.limits[row] > here  # type: ignore[operator]
    )
    return row, Reason.SLO_AT_RISK if raised else Reason.CHEAPEST_FEASIBLE


def _gate(known: Capability, row: int, settings: ControlSettings, options: JointOptions) -> int:
    """Prompt tokens that may wait before the next replica is asked."""
    spare_s = options.gate_ratio * settings.slo.ttft_s
    return max(int(spare_s / max(float(known.prefill_s_per_token[row]), 1e-12)), 1)


def _cap(wanted: int, present: int, settings: ControlSettings) -> int:
    """The cap, left where it is while the wanted one differs by less than a tenth."""
    bounds = settings.bounds
    wanted = min(max(wanted, bounds.min_active_seqs), bounds.max_num_seqs)
    edge = wanted in {bounds.min_active_seqs, bounds.max_num_seqs}
    if not edge and abs(wanted - present) <= 0.1 * max(present, 1):
        return present
    return wanted
