"""A power budget of the whole node: how it is shared, and where it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import time

from policies.core.errors import ConfigError

_LINE = re.compile(
    r"(?:(?P<from>\d{1,2}:\d{2})\s*-\s*(?P<to>\d{1,2}:\d{2})\s+)?(?P<watts>\d+(?:\.\d+)?)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What one GPU is asked for, and the least that its bounds allow, watts."""

    watts: float
    least_watts: float


def shares(asked: Mapping[str, Asked], budget_watts: float) -> dict[str, float]:
    """The limits, watts, that sum up to no more than `budget_watts`: one level for all, below which
    nobody is cut, and no GPU below its least. Where the least of all are above the budget together,
    each gets its least: who asks compares the sum."""
    if sum(one.watts for one in asked.values()) <= budget_watts:
        return {uuid: one.watts for uuid, one in asked.items()}
    least = {uuid: min(one.least_watts, one.watts) for uuid, one in asked.items()}
    left = budget_watts - sum(least.values())
    found = dict(least)
    for level in sorted({v for one in asked.values() for v in (one.least_watts, one.watts)}):
        rising = [u for u, one in asked.items() if found[u] < min(one.watts, level)]
        need = sum(min(asked[u].watts, level) - found[u] for u in rising)
        if left <= 0.0 or not rising:
            continue
        if need > left:
            return _to_level(asked, found, rising, left)
        for uuid in rising:
            found[uuid] = min(asked[uuid].watts, level)
        left -= need
    return found


def _to_level(
    asked: Mapping[str, Asked], found: dict[str, float], rising: Sequence[str], left: float
) -> dict[str, float]:
    """Lift those of `rising` together, as high as what is left allows. All of them are at one
    level: the values between which a step goes are all the corners there are."""
    more = left / len(rising)
    for uuid in rising:
        found[uuid] = min(found[uuid] + more, asked[uuid].watts)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Period:
    """A budget, watts, from one time of day to another (over midnight where `to` is earlier)."""

    start: time
    end: time
    watts: float

    def holds(self, now: time) -> bool:
        if self.start <= self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The lowest of all that hold now is the budget; none: no budget."""

    always_watts: float | None = None
    periods: tuple[Period, ...] = ()

    def at(self, now: time) -> float | None:
        """Watts at this time of day; None = none."""
        found = [period.watts for period in self.periods if period.holds(now)]
        found += [] if self.always_watts is None else [self.always_watts]
        return min(found, default=None)


def parse_budget(text: str, source: str) -> Budget:
    """The budget from a file's text: lines of `WATTS` or `HH:MM-HH:MM WATTS`, `#` begins a comment;
    an empty file is no budget. ConfigError names the line and what is allowed."""
    always: list[float] = []
    periods: list[Period] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(_wrong(source, number, line))
        watts = float(match["watts"])
        if match["from"] is None:
            always.append(watts)
            continue
        try:
            start, end = (time.fromisoformat(match[key].zfill(5)) for key in ("from", "to"))
        except ValueError:
            raise ConfigError(_wrong(source, number, line)) from None
        periods.append(Period(start=start, end=end, watts=watts))
    return Budget(always_watts=min(always, default=None), periods=tuple(periods))


def _wrong(source: str, number: int, line: str) -> str:
    return (
        f"{source}, line {number}: {line!r} is no power budget (allowed: WATTS, or HH:MM-HH:MM "
        "WATTS in the node's local time; # begins a comment)"
    )
