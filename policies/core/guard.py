"""The last word on a move: bounds, one step at a time, dwell, and the safe point."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.core.types import Bounds, ControlSettings, ControlState, Knob, OperatingPoint

RELIEF_HOLD = 10.0  # x dwell_down_s: how long a measured SLO miss forbids moves towards less,
RELIEF_LOAD_RATIO = 0.5  # unless the load has fallen to this share of what it was then


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardContext:
    """What a move is judged by.

    `urgent`: the SLO is at risk, so nothing may go down except the cap, which then need not dwell.
    `exempt`: the safe point, which obeys bounds only. `no_less`: a reason not to move towards fewer
    replicas or a lower limit, or the empty text. `rate_per_s`: the present load.
    """

    now_s: float
    settings: ControlSettings
    free: frozenset[Knob]
    state: ControlState = field(default_factory=ControlState)
    urgent: bool = False
    exempt: bool = False
    no_less: str = ""
    rate_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarded:
    """What was let through, and why the rest was not."""

    point: OperatingPoint
    notes: tuple[str, ...] = ()


def guard(wanted: OperatingPoint, present: OperatingPoint, context: GuardContext) -> Guarded:
    """The point that may be acted on: free knobs inside bounds, the others as they are.

    Per call the cap moves at most one step (a share of `max_num_seqs`), replicas fall at most by
    half (a wrong model then costs half of the fleet before the next look) and rise at once.
    Dwell: replicas and limit rise at least `dwell_up_s` after their last rise, and fall at least
    `dwell_down_s` after their last move either way; the cap keeps its own clock. A knob that may
    not move yet stays while the others move: what remains is always more capacity than asked for.
    Idempotent; NaN and inf in `wanted` count as `present`.
    """
    bounds = context.settings.bounds
    here = project(clamp(present, present, bounds), present, context.free, bounds)
    there = project(clamp(wanted, present, bounds), present, context.free, bounds)
    if context.exempt:
        return Guarded(point=there)
    notes: list[str] = []
    point = OperatingPoint(
        num_replicas=_replicas(here, there, context, notes),
        max_num_active_seqs=_cap(here, there, context, notes),
        power_limit_watts=_limit(here, there, context, notes),
        pack_seqs=there.pack_seqs,
        pack_tokens=there.pack_tokens,
    )
    return Guarded(point=point, notes=tuple(notes))


def clamp(point: OperatingPoint, present: OperatingPoint, bounds: Bounds) -> OperatingPoint:
    """`point` inside bounds; values that are no numbers are taken from `present`."""
    low_replicas = max(bounds.min_replicas, 0)
    low_cap = max(bounds.min_active_seqs, 1)
    limit_watts = point.power_limit_watts
    if limit_watts is not None and not math.isfinite(limit_watts):
        limit_watts = present.power_limit_watts
    if limit_watts is not None and bounds.power_limits_watts:
        limits = bounds.power_limits_watts
        limit_watts = min(max(limit_watts, min(limits)), max(limits))
    if bounds.max_limit_watts is not None:
        limit_watts = min(watts(limit_watts), bounds.max_limit_watts)
    return OperatingPoint(
        num_replicas=_inside(
            (point.num_replicas, present.num_replicas),
            low_replicas,
            max(bounds.max_replicas, low_replicas),
        ),
        max_num_active_seqs=_inside(
            (point.max_num_active_seqs, present.max_num_active_seqs),
            low_cap,
            max(bounds.max_num_seqs, low_cap),
        ),
        power_limit_watts=limit_watts,
        pack_seqs=point.pack_seqs,
        pack_tokens=point.pack_tokens,
    )


def project(
    point: OperatingPoint, present: OperatingPoint, free: frozenset[Knob], bounds: Bounds
) -> OperatingPoint:
    """`point` in the free knobs, `present` in the others, also where bounds hold no limits."""
    owns_limit = Knob.POWER_LIMIT in free and bounds.limits != (None,)
    owns_cap = Knob.MAX_NUM_ACTIVE_SEQS in free
    source = {True: point, False: present}
    return OperatingPoint(
        num_replicas=source[Knob.NUM_REPLICAS in free].num_replicas,
        max_num_active_seqs=source[owns_cap].max_num_active_seqs,
        power_limit_watts=source[owns_limit].power_limit_watts,
        pack_seqs=source[Knob.PACK_SEQS in free].pack_seqs,
        pack_tokens=source[Knob.PACK_SEQS in free].pack_tokens,
    )


def safe_point(present: OperatingPoint, bounds: Bounds) -> OperatingPoint:
    """Where to go without sight: the highest limit that may hold, full batch, and no replica
    fewer."""
    return OperatingPoint(
        num_replicas=max(present.num_replicas, bounds.min_replicas),
        max_num_active_seqs=bounds.max_num_seqs,
        power_limit_watts=bounds.max_limit_watts,
    )


def cap_step(settings: ControlSettings) -> int:
    """How far the cap may move per tick, sequences, at least 1."""
    step = settings.max_active_seqs_step_ratio * settings.bounds.max_num_seqs
    return max(int(step), 1) if math.isfinite(step) else 1


def since(now_s: float, then_s: float | None) -> float:
    """Seconds since `then_s`; inf if never, or if that is in the future (another clock's time)."""
    if then_s is None or then_s > now_s:
        return math.inf
    return now_s - then_s


def watts(limit_watts: float | None) -> float:
    """A limit as a number that compares: the device default is the highest."""
    return math.inf if limit_watts is None else limit_watts


def _inside(values: tuple[float, ...], low: int, high: int) -> int:
    value = next((one for one in values if math.isfinite(one)), low)
    return int(min(max(value, low), high))


def _replicas(
    here: OperatingPoint, there: OperatingPoint, context: GuardContext, notes: list[str]
) -> int:
    now, wanted = here.num_replicas, there.num_replicas
    if wanted > now:
        return wanted if _may_rise(context, "replicas", notes) else now
    if wanted < now:
        return max(wanted, now // 2) if _may_fall(context, "replicas", notes) else now
    return now


def _limit(
    here: OperatingPoint, there: OperatingPoint, context: GuardContext, notes: list[str]
) -> float | None:
    now, wanted = here.power_limit_watts, there.power_limit_watts
    if watts(wanted) > watts(now):
        return wanted if _may_rise(context, "power limit", notes) else now
    if watts(wanted) < watts(now):
        return wanted if _may_fall(context, "power limit", notes) else now
    return now


def _cap(
    here: OperatingPoint, there: OperatingPoint, context: GuardContext, notes: list[str]
) -> int:
    now, wanted = here.max_num_active_seqs, there.max_num_active_seqs
    if wanted == now:
        return now
    settings, elapsed_s = context.settings, since(context.now_s, context.state.last_cap_move_s)
    relieved = since(context.now_s, context.state.last_relief_s) < settings.dwell_down_s
    dwell_s = settings.dwell_up_s if wanted > now and not relieved else settings.dwell_down_s
    if not context.urgent and not elapsed_s >= dwell_s:
        notes.append(f"dwell: batch cap moved {elapsed_s:.1f} s ago, {dwell_s:g} s needed")
        return now
    step = cap_step(settings)
    if abs(wanted - now) > step:
        notes.append(f"step: batch cap {now} to {wanted} is cut to {step} per tick")
    return min(max(wanted, now - step), now + step)


def _may_rise(context: GuardContext, what: str, notes: list[str]) -> bool:
    elapsed_s = since(context.now_s, context.state.last_move_up_s)
    if elapsed_s >= context.settings.dwell_up_s:
        return True
    notes.append(
        f"dwell: {what} rose {elapsed_s:.1f} s ago, {context.settings.dwell_up_s:g} s needed"
    )
    return False


def _may_fall(context: GuardContext, what: str, notes: list[str]) -> bool:
    if context.urgent:
        return False
    if context.no_less:
        notes.append(f"hold: {what} may not fall, {context.no_less}")
        return False
    state, dwell_s = context.state, context.settings.dwell_down_s
    elapsed_s = min(
        since(context.now_s, state.last_move_up_s), since(context.now_s, state.last_move_down_s)
    )
    if not elapsed_s >= dwell_s:
        notes.append(f"dwell: {what} moved {elapsed_s:.1f} s ago, {dwell_s:g} s needed")
        return False
    recent = not since(context.now_s, state.last_relief_s) >= RELIEF_HOLD * dwell_s
    then_per_s = state.last_relief_rate_per_s
    if recent and not (then_per_s and context.rate_per_s <= RELIEF_LOAD_RATIO * then_per_s):
        # The model was wrong there; far below that load the same error does less harm.
        notes.append(f"hold: {what} may not fall so soon after a measured SLO miss at this load")
        return False
    return True
