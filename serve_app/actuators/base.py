"""What every actuator of power limits is: asked once per tick, it answers with what holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.actuators.power_limit import SAME_WATTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What each GPU of a replica shall have: a power limit, a highest graphics clock, both, or
    neither. Neither: what was found before, and nobody holds anything."""

    watts: float | None = None
    clock_mhz: int | None = None

    @property
    def nothing(self) -> bool:
        return self.watts is None and self.clock_mhz is None


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitState:
    """The limits of a replica's GPUs, watts per GPU; of several, the lowest. "Not known" is None.

    `reason`: why no limit can be set now, None = it can; `nobodys`: nobody is to set any. `held`:
    whether this replica has a say over its GPUs now. `min_watts`, `max_watts`: what may be asked
    for, never above what was found: somebody meant that; `capped`: no more than `max_watts` may be
    drawn, not even by default (a power budget, or a limit that was found). `asked_watts`: desired;
    `limit_watts`: what the driver says is set; `enforced_watts`: the lowest of that and what other
    ways to limit hold. `drift_watts`: what another program has set meanwhile. `power_capped`:
    whether the driver lowers the clocks of one of them right now to keep it. `gpus`: each of them,
    for people.
    """

    reason: str | None = None
    held: bool = False
    nobodys: bool = False
    min_watts: float | None = None
    max_watts: float | None = None
    capped: bool = False
    asked_watts: float | None = None
    limit_watts: float | None = None
    enforced_watts: float | None = None
    default_watts: float | None = None
    drift_watts: float | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    power_capped: bool | None = None
    holder: str | None = None
    gpus: tuple[Mapping[str, Any], ...] = ()

    @property
    def available(self) -> bool:
        return self.reason is None


class PowerActuator(Protocol):
    """Sets the limits of one replica's GPUs, which move together. No method raises for what the
    host, the driver or another process does: `LimitState.reason` says it. Calls block for a second
    at most, and come from one thread at a time."""

    name: str

    def ask(self, ask: Ask) -> LimitState:
        """Bring the GPUs there, or keep them there: called every tick, it also renews what must be
        renewed. A value out of bounds is brought inside."""
        ...

    def close(self) -> None:
        """Give everything back: what was found holds again. May be called twice."""
        ...


def state_of(
    gpus: Iterable[Mapping[str, Any]], ask: Ask, *, held: bool, reason: str | None = None
) -> LimitState:
    """The state of GPUs as the power agent describes them (`NodeGpu.as_dict`)."""
    rows = tuple(gpus)
    reasons = [str(row["reason"]) for row in rows if row.get("reason")]
    if reason is None and not rows:
        reason = "no GPU is in scope"
    return LimitState(
        reason=reason or (reasons[0] if reasons else None),
        held=held,
        min_watts=_of(rows, "min_watts", max),
        max_watts=min((_most_watts(row) for row in rows), default=None),
        capped=any(row.get("capped") or _below_default(row) for row in rows),
        asked_watts=ask.watts,
        limit_watts=_of(rows, "limit_watts", min),
        enforced_watts=_of(rows, "enforced_watts", min),
        default_watts=_of(rows, "default_watts", min),
        drift_watts=_of(rows, "drift_watts", min),
        clock_mhz=_of(rows, "clock_mhz", min),
        max_clock_mhz=_of(rows, "max_clock_mhz", min),
        power_capped=_of(rows, "power_capped", max),
        holder=next((row["holder"] for row in rows if row.get("holder")), None),
        gpus=rows,
    )


def _most_watts(row: Mapping[str, Any]) -> float:
    """What a GPU may be asked for: what its bounds allow, and no more than was found on it."""
    known = [row.get("allowed_watts"), _found_watts(row)]
    return min((float(watts) for watts in known if watts is not None), default=math.inf)


def _found_watts(row: Mapping[str, Any]) -> float | None:
    """The limit as it is without us."""
    found = row.get("found_watts")
    return row.get("limit_watts") if found is None else found


def _below_default(row: Mapping[str, Any]) -> bool:
    found, default = _found_watts(row), row.get("default_watts")
    return found is not None and default is not None and found < default - SAME_WATTS


def inside(ask: Ask, state: LimitState) -> Ask:
    """The ask within what may be asked for."""
    if ask.watts is None:
        return ask
    watts = ask.watts
    if state.max_watts is not None:
        watts = min(watts, state.max_watts)
    if state.min_watts is not None:
        watts = max(watts, state.min_watts)
    return Ask(watts=watts, clock_mhz=ask.clock_mhz)


def _of(rows: tuple[Mapping[str, Any], ...], key: str, choose: Any) -> Any:
    known = [row[key] for row in rows if row.get(key) is not None]
    return choose(known) if known else None
