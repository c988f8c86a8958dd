"""What every actuator of power limits is: asked once per tick, it answers with what holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

NOT_ASKED = "none"


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

    `reason`: why no limit can be set now, None = it can. `held`: whether this replica has a say
    over its GPUs now. `min_watts`, `max_watts`: what may be asked for; `capped`: no more than
    `max_watts` may be drawn, not even by default (a power budget). `asked_watts`: desired;
    `limit_watts`: what the driver says is set; `enforced_watts`: the lowest of that and what other
    ways to limit hold. `drift_watts`: what another program has set meanwhile. `gpus`: each of them,
    for people.
    """

    reason: str | None = None
    held: bool = False
    min_watts: float | None = None
    max_watts: float | None = None
    capped: bool = False
    asked_watts: float | None = None
    limit_watts: float | None = None
    enforced_watts: float | None = None
    default_watts: float | None = None
    drift_watts: float | None = None
    clock_mhz: int | None = None
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
        max_watts=_of(rows, "allowed_watts", min),
        capped=any(row.get("capped") for row in rows),
        asked_watts=ask.watts,
        limit_watts=_of(rows, "limit_watts", min),
        enforced_watts=_of(rows, "enforced_watts", min),
        default_watts=_of(rows, "default_watts", min),
        drift_watts=_of(rows, "drift_watts", min),
        clock_mhz=_of(rows, "clock_mhz", min),
        holder=next((row["holder"] for row in rows if row.get("holder")), None),
        gpus=rows,
    )


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
