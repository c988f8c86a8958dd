"""What a run looked like over time, in fixed memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

MOST = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The fleet at the end of a span of `span_s` seconds. `draw_watts`: mean over the span."""

    time_s: float
    span_s: float
    arrived: int
    attained: int
    completed: int
    outstanding: int
    accepting: int
    starting: int
    draining: int
    mean_cap: float
    mean_limit_watts: float | None
    draw_watts: float


class Moments:
    """Moments in order. Beyond 20,000, each two neighbours become one: a long run is kept in
    coarser spans, and draw times span stays the energy."""

    def __init__(self) -> None:
        self._kept: list[Moment] = []
        self._open: list[Moment] = []
        self._ticks = 1  # per kept moment

    def add(self, moment: Moment) -> None:
        """Take the next one."""
        self._open.append(moment)
        if len(self._open) < self._ticks:
            return
        self._kept.append(_joined(self._open))
        self._open = []
        if len(self._kept) >= MOST:
            pairs = zip(self._kept[::2], self._kept[1::2], strict=True)
            self._kept = [_joined(list(pair)) for pair in pairs]
            self._ticks *= 2

    def __iter__(self) -> Iterator[Moment]:
        return iter([*self._kept, *([_joined(self._open)] if self._open else [])])

    def __len__(self) -> int:
        return len(self._kept) + bool(self._open)

    def __getitem__(self, place: int) -> Moment:
        return list(self)[place]


def _joined(parts: list[Moment]) -> Moment:
    if len(parts) == 1:
        return parts[0]
    span_s = sum(one.span_s for one in parts)
    drawn = sum(one.draw_watts * one.span_s for one in parts)
    limits = [one.mean_limit_watts for one in parts if one.mean_limit_watts is not None]
    return replace(
        parts[-1],
        span_s=span_s,
        draw_watts=drawn / span_s,
        mean_limit_watts=sum(limits) / len(limits) if limits else None,
    )
