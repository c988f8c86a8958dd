"""Raw sensor values to cumulative joules: a hardware counter (wrap, reset) and integrated power.

Pure: no clock, no I/O. Both count in one direction only; what cannot be true is left out and
counted by kind, so that no fault of a sensor ever shows as a spike or as negative energy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from serve_app.meters.base import Anomaly, lossy

# Two threads may hand in their times in the wrong order by as long as one of them is held up.
REORDER_S = 0.05
_REMEMBERED = 3


@dataclass(frozen=True, slots=True)
class _Base:
    """A value that steps are counted from, and when the counter was first seen at it."""

    raw: int
    time_s: float


class CounterTracker:
    """Joules counted since the first value by a counter that may wrap, reset, stall or misread.

    A step is `raw - base`, plus `wrap_units` if negative and the counter wraps. It is accepted when
    it needs no more than `max_watts` over the time since the counter last moved plus `slack_s` (its
    own update interval). Otherwise the value is a fault: nothing is counted, and the next value
    decides. If that one continues from the value *before* the fault, the fault was a misreading and
    nothing is lost; if from the faulty one, the counter was reset and one interval is lost; if from
    both, the smaller step is taken. The last _REMEMBERED values may be continued from.

    A wrap and a reset look alike; the power bound, for a wrap over the time since the last value,
    tells them apart unless the counter stood within `max_watts * (dt + slack_s)` of its range. Two
    wraps between two values cannot be seen: a pause long enough for one whole range at `max_watts`
    counts as a gap. Sums are kept in the counter's integer units: exact over any number of wraps.
    """

    def __init__(
        self,
        *,
        joules_per_unit: float,
        max_watts: float,
        slack_s: float,
        wrap_units: int | None = None,
    ) -> None:
        self.counts: Counter[Anomaly] = Counter()
        self._joules_per_unit = joules_per_unit
        self._max_watts = max_watts
        self._slack_s = slack_s
        self._wrap_units = wrap_units
        self._units = 0
        self._bases: list[_Base] = []  # newest first; more than one while a fault is not decided
        self._seen_s = 0.0
        self._stalled = False

    @property
    def joules(self) -> float:
        """Joules since the first value."""
        return self._units * self._joules_per_unit

    @property
    def anomalies(self) -> int:
        """How many faults may have left energy out."""
        return lossy(self.counts)

    @property
    def moved_s(self) -> float:
        """When the counter was first seen at its present value."""
        return self._bases[0].time_s if self._bases else self._seen_s

    def advance(self, raw: int, now_s: float) -> float:
        """Take one value; returns the joules it added (>= 0). The first value is the base."""
        if not self._bases:
            self._bases, self._seen_s = [_Base(raw, now_s)], now_s
            return 0.0
        last_s = self._note_time(now_s)
        if raw == self._bases[0].raw:
            return 0.0
        steps = [
            (step, base)
            for base in self._bases
            if (step := self._step(base, raw, last_s, now_s)) is not None
        ]
        if not steps:
            self.counts[self._fault(self._bases[0], raw, now_s)] += 1
            self._bases = [_Base(raw, now_s), *self._bases[: _REMEMBERED - 1]]
            return 0.0
        step, origin = min(steps, key=lambda found: found[0])
        if raw < origin.raw:
            self.counts[Anomaly.WRAP] += 1
        self._bases, self._stalled = [_Base(raw, now_s)], False
        self._units += step
        return step * self._joules_per_unit

    def note_stall(self) -> None:
        """Count a stall; once until the counter moves again."""
        if not self._stalled:
            self._stalled = True
            self.counts[Anomaly.STALL] += 1

    def _note_time(self, now_s: float) -> float:
        """Check and take the time of a value; returns that of the one before it."""
        last_s, self._seen_s = self._seen_s, now_s
        if now_s - last_s < -REORDER_S:
            self.counts[Anomaly.CLOCK] += 1
            # What was noted in the old time means nothing any more: later steps count from now.
            self._bases = [_Base(base.raw, min(base.time_s, now_s)) for base in self._bases]
        elif self._wrap_units is not None:
            range_joules = self._wrap_units * self._joules_per_unit
            if (now_s - last_s) * self._max_watts > range_joules:
                self.counts[Anomaly.GAP] += 1
        return last_s

    def _step(self, base: _Base, raw: int, last_s: float, now_s: float) -> int | None:
        """Return the step from `base` to `raw`; None if that cannot be."""
        step, since_s = raw - base.raw, base.time_s
        if step < 0 and self._wrap_units is not None:
            step, since_s = step + self._wrap_units, max(since_s, last_s)
        possible = 0 <= step * self._joules_per_unit <= self._bound(since_s, now_s)
        return step if possible else None

    def _bound(self, since_s: float, now_s: float) -> float:
        """Return the joules that the device can have used since then."""
        return self._max_watts * (max(0.0, now_s - since_s) + self._slack_s)

    def _fault(self, base: _Base, raw: int, now_s: float) -> Anomaly:
        """Return what a value is that no step leads to."""
        if raw > base.raw:
            return Anomaly.JUMP
        if raw == 0:
            return Anomaly.ZERO
        from_zero = raw * self._joules_per_unit <= self._bound(base.time_s, now_s)
        return Anomaly.RESET if from_zero else Anomaly.BACKWARD


class PowerIntegrator:
    """Joules under sampled power by the trapezoid rule.

    A sample that is not finite, not above zero (no powered device draws nothing) or above
    `max_watts` is dropped and counted. Two samples further apart than `late_s` are integrated and
    counted as late; further than `max_gap_s` they say nothing about the time between them: it is
    not integrated. One sample older than the last is out of order and ignored; a second one in a
    row means that the clock has stepped back, and integration goes on from there.
    """

    def __init__(self, *, max_watts: float, max_gap_s: float, late_s: float | None = None) -> None:
        self.counts: Counter[Anomaly] = Counter()
        self.joules = 0.0
        self._max_watts = max_watts
        self._max_gap_s = max_gap_s
        self._late_s = max_gap_s if late_s is None else late_s
        self._last: tuple[float, float] | None = None
        self._out_of_order = False

    @property
    def anomalies(self) -> int:
        """How many faults may have left energy out."""
        return lossy(self.counts)

    @property
    def known_s(self) -> float | None:
        """Return the time of the last good sample; None before the first."""
        return None if self._last is None else self._last[0]

    def add(self, watts: float, now_s: float) -> bool:
        """Take one sample of the draw at `now_s`; returns whether it can be true."""
        if not 0.0 < watts <= self._max_watts:
            self.counts[Anomaly.ZERO if watts == 0.0 else Anomaly.JUMP] += 1
            return False
        if self._last is None:
            self._last = (now_s, watts)
        else:
            self._integrate(self._last, watts, now_s)
        return True

    def _integrate(self, last: tuple[float, float], watts: float, now_s: float) -> None:
        last_s, last_watts = last
        elapsed_s = now_s - last_s
        if elapsed_s <= 0.0:
            self._behind(watts, now_s, elapsed_s)
            return
        self._out_of_order = False
        if elapsed_s > self._max_gap_s:
            self.counts[Anomaly.GAP] += 1
        else:
            self.joules += 0.5 * (watts + last_watts) * elapsed_s
            if elapsed_s > self._late_s:
                self.counts[Anomaly.LATE] += 1
        self._last = (now_s, watts)

    def _behind(self, watts: float, now_s: float, elapsed_s: float) -> None:
        if elapsed_s >= -REORDER_S:
            return
        if self._out_of_order:
            self.counts[Anomaly.CLOCK] += 1
            self._last = (now_s, watts)
        else:
            self.counts[Anomaly.LATE] += 1
        self._out_of_order = not self._out_of_order
