"""Raw sensor values to cumulative joules: a hardware counter (wrap, reset) and integrated power.

Pure: no clock, no I/O. Both count in one direction only; what cannot be true is left out and
counted in `anomalies`, so that no reset ever shows as a spike or as negative energy.
"""

from __future__ import annotations

import math


class CounterTracker:
    """Joules counted since the first value by a counter that may wrap, reset or step back.

    A step is `raw - last`, plus `wrap_units` if negative and the counter wraps. It is accepted when
    it needs no more than `max_watts` over the time since the last value plus `slack_s` (the
    counter's own update interval). Otherwise it is an anomaly: nothing is counted for that interval
    and counting goes on from the new value. A wrap and a reset look alike; the power bound tells
    them apart unless the counter stood within `max_watts * (dt + slack_s)` of its range.

    Two wraps between two values cannot be seen: the caller reads more often than a wrap takes.
    Sums are kept in the counter's integer units: exact over any number of wraps.
    """

    def __init__(
        self,
        *,
        joules_per_unit: float,
        max_watts: float,
        slack_s: float,
        wrap_units: int | None = None,
    ) -> None:
        self.anomalies = 0
        self._joules_per_unit = joules_per_unit
        self._max_watts = max_watts
        self._slack_s = slack_s
        self._wrap_units = wrap_units
        self._units = 0
        self._last_raw: int | None = None
        self._last_s = -math.inf

    @property
    def joules(self) -> float:
        """Joules since the first value."""
        return self._units * self._joules_per_unit

    def advance(self, raw: int, now_s: float) -> float:
        """Take one value; returns the joules it added (≥ 0). The first value is the base."""
        if self._last_raw is None:
            self._last_raw, self._last_s = raw, now_s
            return 0.0
        step = raw - self._last_raw
        if step < 0 and self._wrap_units is not None:
            step += self._wrap_units
        elapsed_s = max(0.0, now_s - self._last_s)
        bound = self._max_watts * (elapsed_s + self._slack_s)
        self._last_raw, self._last_s = raw, max(now_s, self._last_s)
        if step < 0 or step * self._joules_per_unit > bound:
            self.anomalies += 1
            return 0.0
        self._units += step
        return step * self._joules_per_unit


class PowerIntegrator:
    """Joules under sampled power by the trapezoid rule.

    A sample that is negative, not finite or above `max_watts` is dropped and counted. Two samples
    further apart than `max_gap_s` say nothing about the time between them: it is not integrated,
    and counted. Samples that are not newer than the last one are ignored.
    """

    def __init__(self, *, max_watts: float, max_gap_s: float) -> None:
        self.anomalies = 0
        self.joules = 0.0
        self._max_watts = max_watts
        self._max_gap_s = max_gap_s
        self._last: tuple[float, float] | None = None

    def add(self, watts: float, now_s: float) -> None:
        """Take one sample of the draw at `now_s`."""
        if not 0.0 <= watts <= self._max_watts:
            self.anomalies += 1
            return
        if self._last is None:
            self._last = (now_s, watts)
            return
        last_s, last_watts = self._last
        elapsed_s = now_s - last_s
        if elapsed_s <= 0.0:
            return
        if elapsed_s > self._max_gap_s:
            self.anomalies += 1
        else:
            self.joules += 0.5 * (watts + last_watts) * elapsed_s
        self._last = (now_s, watts)
