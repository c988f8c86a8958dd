"""Rate curves: cut, scaled, made smooth, and made from a few figures of a day."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import ConfigError
from policies.sim.arrivals import RateCurve

Floats = NDArray[np.float64]

DAY_S = 86_400.0
HOUR_S = 3_600.0
DIURNAL_STEP_S = 300.0
_WEEKEND_RAMP_S = 3 * HOUR_S
_SATURDAY = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RateShape:
    """A rate curve as the generator reads it: `rate_at` between the `kinks_s`, which are all times
    at which the rate jumps or bends."""

    kinks_s: Floats
    starts_s: Floats
    correction: Floats
    centres_s: Floats
    levels_per_s: Floats

    @classmethod
    def of(cls, curve: RateCurve, *, interpolate: bool) -> Self:
        """The steps of the curve, or lines through the middles of its steps.

        The lines keep the mean of every step: their corners c solve c[i]/2 + (v[i-1] + v[i])/4 =
        rate[i], where v[i] is the height at which the line crosses from step i to i + 1. Where a
        corner would lie below 0 it is set to 0, and the lines of the steps beside it are multiplied
        by what keeps their means.
        """
        edges_s = np.array((*curve.starts_s, curve.end_s))
        rates = np.array(curve.rates_per_s)
        centres_s = (edges_s[:-1] + edges_s[1:]) / 2
        if not interpolate or len(rates) == 1:
            return cls(
                kinks_s=edges_s, starts_s=edges_s[:-1], correction=rates,
                centres_s=centres_s[:1], levels_per_s=np.ones(1),
            )  # fmt: skip
        widths = np.diff(edges_s)
        # Height of the line at the inner edges: this share of the left corner, the rest right.
        left = widths[1:] / (widths[:-1] + widths[1:])
        corners = np.maximum(_corners(rates, left), 0.0)
        crossings = left * corners[:-1] + (1 - left) * corners[1:]
        means = corners / 2 + (
            np.append(corners[0], crossings) + np.append(crossings, corners[-1])
        ) / 4  # fmt: skip
        correction = np.divide(rates, means, out=np.ones_like(rates), where=means > 0)
        return cls(
            kinks_s=np.union1d(edges_s, centres_s), starts_s=edges_s[:-1], correction=correction,
            centres_s=centres_s, levels_per_s=corners,
        )  # fmt: skip

    @property
    def end_s(self) -> float:
        """Where the curve ends."""
        return float(self.kinks_s[-1])

    def highest_within(self, begin_s: float, end_s: float) -> float:
        """The highest rate within begin_s..end_s, which lies at one of the kinks or at an end."""
        within = self.kinks_s[(self.kinks_s > begin_s) & (self.kinks_s < end_s)]
        return float(self.rate_at(np.append(within, (begin_s, min(end_s, self.end_s)))).max())

    def rate_at(self, times_s: Floats) -> Floats:
        """Requests per second at each time within 0..end_s."""
        step = np.searchsorted(self.starts_s, times_s, side="right") - 1
        line = np.interp(times_s, self.centres_s, self.levels_per_s)
        return np.asarray(line * self.correction[step], dtype=np.float64)


def between(curve: RateCurve, begin_s: float, end_s: float) -> RateCurve:
    """The curve within begin_s..end_s, from 0 s at begin_s. Raises ConfigError."""
    if not 0 <= begin_s < min(end_s, curve.end_s):
        raise ConfigError(
            f"begin {begin_s:g} s: expected 0 ≤ begin < {min(end_s, curve.end_s):g} s, the end"
        )
    cut = curve.cut(end_s)
    kept = [
        (max(start, begin_s) - begin_s, rate)
        for start, end, rate in zip(
            cut.starts_s, (*cut.starts_s[1:], cut.end_s), cut.rates_per_s, strict=True
        )
        if end > begin_s
    ]
    return RateCurve(
        starts_s=tuple(start for start, _ in kept),
        rates_per_s=tuple(rate for _, rate in kept),
        end_s=cut.end_s - begin_s,
    )


def times_rate(curve: RateCurve, factor: float) -> RateCurve:
    """The curve with every rate multiplied. Raises ConfigError."""
    if not 0 < factor < math.inf:
        raise ConfigError(f"rate scale {factor:g}: expected a number > 0")
    return RateCurve(
        starts_s=curve.starts_s,
        rates_per_s=tuple(rate * factor for rate in curve.rates_per_s),
        end_s=curve.end_s,
    )


def mean_rate_per_s(curve: RateCurve) -> float:
    """Expected requests per second over the whole curve."""
    widths = np.diff((*curve.starts_s, curve.end_s))
    return float(widths @ np.array(curve.rates_per_s)) / curve.end_s


def diurnal_curve(  # noqa: PLR0913
    mean_rps: float,
    peak_to_trough: float,
    *,
    peak_hour: float = 14.0,
    days: float = 1.0,
    weekend_ratio: float = 1.0,
    first_weekday: int = 0,
) -> RateCurve:
    """A day as a wave, in steps of five minutes, from midnight. Raises ConfigError.

    ln rate(t) = const + ln(peak_to_trough)/2 · cos(2π (t - peak_hour)/24 h): the highest rate of a
    day is `peak_to_trough` times its lowest. On Saturdays and Sundays it is multiplied by
    `weekend_ratio`, blended over three hours at the midnights between; Monday is weekday 0. The
    mean over the whole curve is `mean_rps`.
    """
    for name, value, low in (
        ("mean rate", mean_rps, 0.0),
        ("peak to trough", peak_to_trough, None),
        ("days", days, 0.0),
        ("weekend ratio", weekend_ratio, 0.0),
    ):
        if not value < math.inf or (value < 1 if low is None else value <= low):
            expected = "≥ 1" if low is None else "> 0"
            raise ConfigError(f"{name} {value:g}: expected a finite number {expected}")
    if not 0 <= peak_hour < 24 or first_weekday not in range(7):
        raise ConfigError(
            f"peak hour {peak_hour:g}, first weekday {first_weekday}: expected 0 ≤ hour < 24 and "
            "a weekday 0 (Monday) to 6"
        )
    end_s = days * DAY_S
    starts_s = np.arange(math.ceil(end_s / DIURNAL_STEP_S)) * DIURNAL_STEP_S
    middles_s = (starts_s + np.minimum(starts_s + DIURNAL_STEP_S, end_s)) / 2
    phase = 2 * math.pi * (middles_s - peak_hour * HOUR_S) / DAY_S
    log_rates = math.log(peak_to_trough) / 2 * np.cos(phase)
    log_rates += math.log(weekend_ratio) * _weekend_share(middles_s + first_weekday * DAY_S)
    shape = np.exp(log_rates)
    widths = np.diff(np.append(starts_s, end_s))
    rates = shape * (mean_rps * end_s / float(widths @ shape))
    return RateCurve(
        starts_s=tuple(starts_s.tolist()), rates_per_s=tuple(rates.tolist()), end_s=end_s
    )


def _weekend_share(since_monday_s: Floats) -> Floats:
    """1 within a weekend, 0 within a week, a straight blend around the midnights between them."""
    into_week_s = since_monday_s % (7 * DAY_S)
    half_s = _WEEKEND_RAMP_S / 2
    friday_s, monday_s = _SATURDAY * DAY_S, 7 * DAY_S
    corners_s = (0.0, half_s, friday_s - half_s, friday_s + half_s, monday_s - half_s, monday_s)
    return np.interp(into_week_s, corners_s, (0.5, 0.0, 0.0, 1.0, 1.0, 0.5))


def _corners(rates: Floats, left: Floats) -> Floats:
    """The heights whose lines have the means `rates` (Thomas' algorithm for three diagonals)."""
    size = len(rates)
    lower = np.append(0.0, left) / 4
    upper = np.append(1 - left, 0.0) / 4
    main = np.full(size, 0.5)
    main[:-1] += left / 4
    main[1:] += (1 - left) / 4
    main[[0, -1]] += 0.25  # beyond the first and the last middle the line is level
    found = rates.astype(np.float64)
    for row in range(1, size):
        ratio = lower[row] / main[row - 1]
        main[row] -= ratio * upper[row - 1]
        found[row] -= ratio * found[row - 1]
    found[-1] /= main[-1]
    for row in range(size - 2, -1, -1):
        found[row] = (found[row] - upper[row] * found[row + 1]) / main[row]
    return found
