"""An energy counter checked against the power sensor beside it. Pure: no clock, no I/O."""

from __future__ import annotations

import math

WINDOW_S = 10.0
TOLERANCE_RATIO = 0.10
_STANDARD_ERRORS = 4.0
_MIN_SAMPLES = 8
_MAX_GAP_S = 2.0


class CrossCheck:
    """Integrated power over counter energy, in consecutive windows of at least `WINDOW_S`.

    `ratio`: of the last full window; 1 = they agree, None = no full window yet. They disagree when

        |ratio - 1| > max(TOLERANCE_RATIO, 4 x standard error of the mean of the samples / mean)

    The tolerance is twice the 5 % to which NVIDIA states its power sensor (nvml.h,
    nvmlDeviceGetPowerUsage). The second term is what sampling alone can do: a load that pulses
    between two readings is not the sensor's fault. The window is long enough that one second of
    averaging at its ends (another 5 %) cannot pass the tolerance either.
    """

    def __init__(self) -> None:
        self.ratio: float | None = None
        self._begin: tuple[float, float] | None = None  # time, counter joules
        self._last: tuple[float, float] = (0.0, 0.0)  # time, watts
        self._integrated = 0.0
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, counter_joules: float, watts: float, now_s: float) -> bool:
        """Take both sensors at one moment; returns whether a window that ends here disagrees."""
        last_s, last_watts = self._last
        if self._begin is None or not 0.0 <= now_s - last_s <= _MAX_GAP_S:
            self._restart(counter_joules, watts, now_s)
            return False
        self._integrated += 0.5 * (watts + last_watts) * (now_s - last_s)
        self._last = (now_s, watts)
        self._count += 1
        away = watts - self._mean  # Welford's sums of mean and squares
        self._mean += away / self._count
        self._squares += away * (watts - self._mean)
        begin_s, begin_joules = self._begin
        if now_s - begin_s < WINDOW_S or self._count < _MIN_SAMPLES:
            return False
        disagrees = self._judge(counter_joules - begin_joules)
        self._restart(counter_joules, watts, now_s)
        return disagrees

    def restart(self) -> None:
        """Forget the open window: one of the two sensors has failed in it."""
        self._begin = None

    def _judge(self, counted: float) -> bool:
        if counted <= 0.0 or self._mean <= 0.0:
            self.ratio = None  # a counter that stands still is a stall, not a disagreement
            return False
        self.ratio = self._integrated / counted
        error = math.sqrt(self._squares / (self._count - 1) / self._count) / self._mean
        return abs(self.ratio - 1.0) > max(TOLERANCE_RATIO, _STANDARD_ERRORS * error)

    def _restart(self, counter_joules: float, watts: float, now_s: float) -> None:
        self._begin, self._last = (now_s, counter_joules), (now_s, watts)
        self._integrated, self._count, self._mean, self._squares = 0.0, 0, 0.0, 0.0
