"""How requests arrive: the rate and its peaks, burstiness, and the shape of the day.

Inter-arrival CV: standard deviation / mean of the gaps between arrivals; 1 for a Poisson process,
0 for a clockwork. Index of dispersion for counts at a window: variance / mean of the arrivals in
consecutive windows of that length; 1 for Poisson at every window, and growing with the window where
bursts or the day last longer than it (Cox and Lewis 1966).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from policies.model.batch import Floats
from policies.model.binned import Ints
from serve_app.workload.source import Workload

MINUTE_S, HOUR_S = 60.0, 3600.0
DISPERSION_WINDOWS_S = (1.0, 10.0, 60.0, 600.0, 3600.0)
MIN_WINDOWS = 10  # of fewer, a variance says nothing
_FIRST_WEEKEND_DAY = 5  # datetime.weekday() of Saturday


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """Rates in requests/s. Percentiles and the peak are over whole minutes; None where the trace is
    shorter than one. `interarrival_cv` and `dispersion` (by window in s) need single arrivals; a
    rate curve has none, and None stands for what is not known."""

    requests: int | None
    span_s: float
    mean_per_s: float | None
    peak_per_s: float | None
    p50_per_s: float | None
    p90_per_s: float | None
    p99_per_s: float | None
    peak_to_mean_ratio: float | None
    interarrival_cv: float | None
    dispersion: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class DayShape:
    """Mean rate in requests/s by hour of the day, 0..23; None for an hour that the trace does not
    touch. `clock`: "UTC", or "from the start" where the trace has no calendar time; then there are
    no weekdays. `weekday` and `weekend` are None where the trace does not touch both."""

    clock: str
    every_day: tuple[float | None, ...]
    weekday: tuple[float | None, ...] | None
    weekend: tuple[float | None, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RateOverTime:
    """Rate in requests/s of consecutive spans: `edges_s` has one entry more than `rates_per_s`."""

    edges_s: Floats
    rates_per_s: Floats


def arrivals_of(workload: Workload) -> Arrivals:
    """The rate of the trace and its burstiness."""
    span_s = workload.end_s
    total = float(_arrived_by(workload, np.array([span_s]))[0])
    single = workload.arrivals_s if workload.curve is None else None
    # One arrival, or many at one moment, have no rate.
    mean = total / span_s if span_s > 0.0 else None
    rates = rates_over_time(workload, MINUTE_S).rates_per_s if span_s >= MINUTE_S else None
    peak = None if rates is None else float(rates.max())
    p50, p90, p99 = (None, None, None) if rates is None else percentiles(rates)
    return Arrivals(
        requests=None if single is None else len(single),
        span_s=span_s,
        mean_per_s=mean,
        peak_per_s=peak,
        p50_per_s=p50,
        p90_per_s=p90,
        p99_per_s=p99,
        peak_to_mean_ratio=peak / mean if peak is not None and mean else None,
        interarrival_cv=None if single is None else _interarrival_cv(single),
        dispersion={} if single is None else _dispersion(single, span_s),
    )


def percentiles(values: Floats) -> tuple[float, float, float]:
    """p50, p90, p99 by nearest rank: always one of the values."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99], method="inverted_cdf")
    return float(p50), float(p90), float(p99)


def rates_over_time(workload: Workload, width_s: float) -> RateOverTime:
    """The rate in consecutive spans of this width; a last span that is not whole is left out."""
    spans = max(1, math.floor(workload.end_s / width_s + 1e-9))
    edges_s: Floats = np.arange(spans + 1, dtype=np.float64) * width_s
    counts = np.diff(_arrived_by(workload, edges_s))
    return RateOverTime(edges_s=edges_s, rates_per_s=counts / width_s)


def day_shape(workload: Workload) -> DayShape:
    """Arrivals in each hour of the day over the time that the trace spends in it."""
    start = workload.start
    into_hour_s = 0.0
    if start is not None:
        into_hour_s = start.minute * 60.0 + start.second + start.microsecond / 1e6
    hours = max(1, math.ceil((workload.end_s + into_hour_s) / HOUR_S))
    edges_s = np.clip(np.arange(hours + 1) * HOUR_S - into_hour_s, 0.0, workload.end_s)
    counts, spans_s = np.diff(_arrived_by(workload, edges_s)), np.diff(edges_s)
    first_hour = 0 if start is None else start.hour
    hour_of_day = (first_hour + np.arange(hours)) % 24
    every_day = _by_hour(hour_of_day, counts, spans_s)
    if start is None:
        return DayShape(clock="from the start", every_day=every_day, weekday=None, weekend=None)
    weekend = np.array([_is_weekend(start, index) for index in range(hours)])
    both = bool(weekend.any() and not weekend.all())
    halves = [
        _by_hour(hour_of_day[chosen], counts[chosen], spans_s[chosen]) if both else None
        for chosen in (~weekend, weekend)
    ]
    return DayShape(clock="UTC", every_day=every_day, weekday=halves[0], weekend=halves[1])


def _is_weekend(start: datetime, hours_later: int) -> bool:
    return (start + timedelta(hours=hours_later)).weekday() >= _FIRST_WEEKEND_DAY


def _by_hour(hour_of_day: Ints, counts: Floats, spans_s: Floats) -> tuple[float | None, ...]:
    total = np.bincount(hour_of_day, weights=counts, minlength=24)
    time_s = np.bincount(hour_of_day, weights=spans_s, minlength=24)
    return tuple(float(n / s) if s > 0.0 else None for n, s in zip(total, time_s, strict=True))


def _arrived_by(workload: Workload, times_s: Floats) -> Floats:
    """How many requests have arrived by each time; a rate curve's are expected ones."""
    curve = workload.curve
    if curve is None:
        by_then = np.searchsorted(workload.arrivals_s, times_s, side="left").astype(np.float64)
        by_then[times_s >= workload.end_s] = len(workload.arrivals_s)
        return np.asarray(by_then, dtype=np.float64)
    edges_s = np.array([*curve.starts_s, curve.end_s])
    expected = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * curve.rates_per_s)])
    return np.asarray(np.interp(times_s, edges_s, expected), dtype=np.float64)


def _interarrival_cv(arrivals_s: Floats) -> float | None:
    gaps_s = np.diff(arrivals_s)
    mean_s = float(gaps_s.mean()) if len(gaps_s) > 1 else 0.0
    return float(gaps_s.std()) / mean_s if mean_s > 0.0 else None


def _dispersion(arrivals_s: Floats, span_s: float) -> dict[str, float]:
    found = {}
    for width_s in DISPERSION_WINDOWS_S:
        windows = math.floor(span_s / width_s)
        if windows < MIN_WINDOWS:
            break
        counts, _ = np.histogram(arrivals_s, bins=windows, range=(0.0, windows * width_s))
        found[f"{width_s:g}"] = float(counts.var() / counts.mean())
    return found
