"""What the samples say about the sensors. Pure: arrays in, figures out.

Energy counter E(t) and power P(t) come from one board, so their agreement shows that nothing is
lost between them, not that either is true to a wattmeter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serve_app.gpu_check.sampling import Floats, Series

# NVIDIA states its power sensor to 5 % (nvml.h, nvmlDeviceGetPowerUsage).
TOLERANCE_RATIO = 0.05
# The mean that nvmlDeviceGetPowerUsage is on Ampere and later (nvml.h), where none was measured.
DOCUMENTED_WINDOW_S = 1.0
_WINDOWS_S = np.geomspace(0.02, 2.5, 120)
_LAGS_S = np.arange(-0.1, 0.31, 0.02)
_MIN_POINTS = 10
_MIN_SWING_RATIO = 0.2  # of the mean draw: with less, every window fits
_ALIKE = 1.25  # windows whose misfit is within this factor of the best one's are as likely


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """How a value is spread. Unit: that of the values."""

    count: int
    p5: float
    median: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: Floats) -> Distribution | None:
        """None for no values."""
        if len(values) == 0:
            return None
        p5, median, p95, top = (float(v) for v in np.percentile(values, (5, 50, 95, 100)))
        return cls(count=len(values), p5=p5, median=median, p95=p95, max=top)


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragingWindow:
    """Over how long a power value is a mean, and how late it comes, seconds.

    `low_s` to `high_s`: windows that fit about as well. `misfit_watts`: root mean square of what is
    left. `swing_watts`: how far the draw moved meanwhile.
    """

    window_s: float
    low_s: float
    high_s: float
    lag_s: float
    misfit_watts: float
    swing_watts: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseEnergy:
    """One phase by both ways. `difference_ratio`: (integrated - counter) / counter. `stated_ratio`:
    how large it may be; None where the phase holds less than two updates of the counter."""

    phase: str
    seconds: float
    integrated_joules: float
    mean_watts: float
    swing_watts: float
    counter_joules: float | None = None
    difference_ratio: float | None = None
    stated_ratio: float | None = None

    @property
    def within(self) -> bool | None:
        """Whether the two agree as stated; None without a counter."""
        if self.difference_ratio is None or self.stated_ratio is None:
            return None
        return abs(self.difference_ratio) <= self.stated_ratio


def updates(time_s: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Return when a value was first seen, and the values: the points where it changed."""
    known = ~np.isnan(values)
    time_s, values = time_s[known], values[known]
    if len(values) < 2:
        return time_s[:0], values[:0]
    changed = np.flatnonzero(np.diff(values) != 0.0) + 1
    return time_s[changed], values[changed]


def update_intervals(time_s: Floats, values: Floats) -> Distribution | None:
    """Return how long a value stands, seconds; resolution: the sampling period."""
    return Distribution.of(np.diff(updates(time_s, values)[0]))


@dataclass(frozen=True, slots=True)
class Curve:
    """The energy counter as a curve: its updates, straight between them. At least two updates."""

    time_s: Floats
    joules: Floats

    @classmethod
    def of(cls, time_s: Floats, joules: Floats) -> Curve | None:
        """None for a counter that did not move twice."""
        found = updates(time_s, joules)
        return cls(*found) if len(found[0]) > 1 else None

    @property
    def seconds(self) -> float:
        """From the first update to the last."""
        return float(self.time_s[-1] - self.time_s[0])

    @property
    def total_joules(self) -> float:
        """Counted from the first update to the last."""
        return float(self.joules[-1] - self.joules[0])

    @property
    def mean_watts(self) -> float:
        """Mean draw between the first update and the last."""
        return self.total_joules / self.seconds

    @property
    def update_s(self) -> float:
        """Median time between two updates."""
        return float(np.median(np.diff(self.time_s)))

    def swing_watts(self, window_s: float) -> float:
        """How far the draw moves, 2nd to 98th percentile of its mean over `window_s`; no shorter
        than four updates, since their moments are known to a sampling period only."""
        window_s = min(max(window_s, 4.0 * self.update_s), self.seconds)
        ends_s = np.linspace(self.time_s[0] + window_s, self.time_s[-1], 1000)
        low, high = np.percentile(self.mean_before(ends_s, window_s), (2, 98))
        return float(high - low)

    def between(self, begin_s: float, end_s: float) -> Curve | None:
        """The part of the curve with the updates in a span; None for less than two."""
        inside = (self.time_s >= begin_s) & (self.time_s <= end_s)
        return Curve(self.time_s[inside], self.joules[inside]) if inside.sum() > 1 else None

    def mean_before(self, ends_s: Floats, window_s: float) -> Floats:
        """Mean draw over the window that ends at each of these moments."""
        ends = np.interp(ends_s, self.time_s, self.joules)
        begins = np.interp(ends_s - window_s, self.time_s, self.joules)
        return np.asarray((ends - begins) / window_s, dtype=np.float64)


def averaging_window(time_s: Floats, joules: Floats, watts: Floats) -> AveragingWindow | None:
    """Return the window w and the lag l for which the power values fit the counter best.

        P(t) = (E(t - l) - E(t - l - w)) / w       least squares over the updates of P

    None where there is too little to fit, or the draw hardly moved.
    """
    curve = Curve.of(time_s, joules)
    if curve is None or len(curve.time_s) < _MIN_POINTS:
        return None
    # A window needs as much history: the search is shorter where the samples are few.
    longest_s = max(0.05, 0.4 * curve.seconds)
    windows = _WINDOWS_S[: int(np.searchsorted(_WINDOWS_S, longest_s, side="right"))]
    shown_s, shown = updates(time_s, watts)
    kept = (shown_s >= curve.time_s[0] + windows[-1] + _LAGS_S[-1]) & (
        shown_s <= curve.time_s[-1] + _LAGS_S[0]
    )
    shown_s, shown = shown_s[kept], shown[kept]
    swing = curve.swing_watts(0.0)
    if len(shown) < _MIN_POINTS or swing < _MIN_SWING_RATIO * curve.mean_watts:
        return None
    misfits = np.array(
        [[_rms(curve.mean_before(shown_s - lag, w) - shown) for lag in _LAGS_S] for w in windows]
    )
    best_w, best_lag = np.unravel_index(int(np.argmin(misfits)), misfits.shape)
    alike = windows[misfits.min(axis=1) <= _ALIKE * misfits[best_w, best_lag] + 1e-3 * swing]
    return AveragingWindow(
        window_s=float(windows[best_w]),
        low_s=float(alike[0]),
        high_s=float(alike[-1]),
        lag_s=float(_LAGS_S[best_lag]),
        misfit_watts=float(misfits[best_w, best_lag]),
        swing_watts=swing,
    )


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def phase_energy(series: Series, phase: str, window_s: float | None) -> PhaseEnergy | None:
    """Return one phase by counter and by integrated power, between its first and last update of the
    counter; None for a phase that was not sampled. `window_s`: the averaging of the power values.

    stated = 5 % + (w/2 x swing + 2 x sampling period x highest draw) / counter joules: the sensor,
    what averaging carries over the two ends of the phase (the swing is that of the phase and of one
    window before it), and when an update was noticed.
    """
    own = series.during(phase)
    readable = ~np.isnan(own.watts)
    time_s, watts = own.time_s[readable], own.watts[readable]
    if len(time_s) < 2:
        return None
    whole = Curve.of(series.time_s, series.joules)
    curve = None if whole is None else whole.between(own.time_s[0], own.time_s[-1])
    if whole is None or curve is None:
        seconds = float(time_s[-1] - time_s[0])
        integrated = float(np.trapezoid(watts, time_s))
        return PhaseEnergy(
            phase=phase,
            seconds=seconds,
            integrated_joules=integrated,
            mean_watts=integrated / seconds,
            swing_watts=float(np.ptp(watts)),
        )
    window_s = DOCUMENTED_WINDOW_S if window_s is None else window_s
    before = whole.between(curve.time_s[0] - window_s, curve.time_s[-1]) or curve
    swing, counted = before.swing_watts(0.25 * window_s), curve.total_joules
    noticed = 2.0 * float(np.median(np.diff(time_s))) * (before.mean_watts + swing)
    integrated = _integral(time_s, watts, curve)
    return PhaseEnergy(
        phase=phase,
        seconds=curve.seconds,
        counter_joules=counted,
        integrated_joules=integrated,
        difference_ratio=integrated / counted - 1.0,
        stated_ratio=TOLERANCE_RATIO + (0.5 * window_s * swing + noticed) / counted,
        mean_watts=curve.mean_watts,
        swing_watts=swing,
    )


def _integral(time_s: Floats, watts: Floats, curve: Curve) -> float:
    """Return the trapezoid sum of the power samples over the span of the counter's curve."""
    begin_s, end_s = curve.time_s[0], curve.time_s[-1]
    inside = (time_s > begin_s) & (time_s < end_s)
    first, last = np.interp([begin_s, end_s], time_s, watts)
    times = np.concatenate(([begin_s], time_s[inside], [end_s]))
    values = np.concatenate(([first], watts[inside], [last]))
    return float(np.trapezoid(values, times))
