"""Generated days against the figures asked for, by formulas of their own."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from policies.sim.arrivals import LengthCdf, Lengths, RateCurve
from policies.sim.blocks import joined
from policies.sim.modulation import Bursts, Fluctuation, Modulation
from policies.sim.rate_shapes import RateShape, between, diurnal_curve, mean_rate_per_s, times_rate
from policies.sim.synthesis import day, day_blocks

LENGTHS = Lengths.constant(100, 10)
UNIFORM = Lengths(prompt=LengthCdf.uniform(1, 99), output=LengthCdf.uniform(1, 9))


def flat(rate, duration_s):
    return RateCurve(starts_s=(0.0,), rates_per_s=(rate,), end_s=duration_s)


POISSON = Bursts()


def times_of(curve, bursts=POISSON, seed=0, **options):
    return joined(day_blocks(curve, LENGTHS, bursts, seed, **options)).arrival_s


def counts_of(times, width_s, duration_s):
    return np.histogram(times, bins=int(duration_s // width_s), range=(0, duration_s))[0]


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.5])
def test_gaps_have_the_mean_and_the_spread_asked_for(cv):
    times = times_of(flat(50.0, 4000.0), Bursts(interarrival_cv=cv), seed=4)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-6)
    assert 0 <= times[0] < times[-1] < 4000


@pytest.mark.slow
@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_the_first_gap_is_one_met_at_random(cv):
    """Then the expected number is rate x time exactly; an ordinary renewal process is off by
    (cv² - 1) / 2, here by up to 4 of 20."""
    counts = [
        len(times_of(flat(1.0, 20.0), Bursts(interarrival_cv=cv), seed=s)) for s in range(400)
    ]
    error = np.std(counts) / len(counts) ** 0.5
    assert np.mean(counts) == pytest.approx(20.0, abs=4 * error)
    assert error < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("cv", "tau_s"), [(0.18, 60.0), (0.5, 10.0), (0.15, 300.0)])
def test_a_fluctuating_rate_has_the_dispersion_of_its_process(cv, tau_s):
    """Var N = mean + rate² ∫∫ c(|u - v|) du dv, with the log-normal covariance
    c(t) = exp(s² exp(-t / tau)) - 1, s² = ln(1 + cv²), integrated here on a grid of its own."""
    rate, duration_s = 40.0, 1500 * tau_s
    times = times_of(flat(rate, duration_s), Bursts(rate_cv=cv, correlation_s=tau_s), seed=11)
    assert len(times) == pytest.approx(rate * duration_s, rel=5 * cv * math.sqrt(2 / 1500))
    for width_s in (tau_s / 10, tau_s, 5 * tau_s):
        lag = (np.arange(4000) + 0.5) / 4000 * width_s
        covariance = np.expm1(np.log1p(cv**2) * np.exp(-lag / tau_s))
        doubled = 2 * np.mean((width_s - lag) * covariance) * width_s
        counts = counts_of(times, width_s, duration_s)
        expected = 1 + rate * doubled / width_s
        assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.2), width_s


@pytest.mark.parametrize(("cv", "tau_s"), [(0.2, 60.0), (1.0, 20.0), (1.0, 0.5)])
def test_a_fluctuation_has_mean_one_its_spread_and_its_memory(cv, tau_s):
    bursts = Bursts(rate_cv=cv, correlation_s=tau_s)
    process = Fluctuation(bursts, np.random.default_rng(3))
    levels = np.concatenate([process.take(count) for count in (1000, 255, 398_745)])
    assert levels.mean() == pytest.approx(1.0, abs=4 * cv * (20 / len(levels)) ** 0.5)
    assert levels.std() == pytest.approx(cv, rel=0.05)
    logs = np.log(levels) - np.log(levels).mean()
    lag = round(tau_s / bursts.cell_s)
    assert (logs[lag:] @ logs[:-lag]) / (logs @ logs) == pytest.approx(np.exp(-1), abs=0.03)


@pytest.mark.slow
def test_the_default_envelope_is_that_of_the_published_plots():
    """Minutes within ±18 % of the middle of their ten minutes, as the Azure 2024 plots show."""
    bursts = Bursts(rate_cv=0.15, correlation_s=60.0)
    minutes = counts_of(times_of(flat(24.0, 432_000.0), bursts, seed=3), 60, 432_000)
    tens = minutes.reshape(-1, 10)
    half = (tens.max(axis=1) - tens.min(axis=1)) / (tens.max(axis=1) + tens.min(axis=1))
    assert half.mean() == pytest.approx(0.18, abs=0.01)


def test_square_bursts_have_their_height_length_and_gap_and_keep_the_mean():
    bursts = Bursts(burst_factor=5.0, burst_s=20.0, gap_s=80.0)
    modulation = Modulation(bursts, np.random.default_rng(5))
    parts = [modulation.stretch(begin, 4000) for begin in np.arange(20) * 4000 * bursts.cell_s]
    edges = np.concatenate([edges[:-1] for edges, _ in parts] + [parts[-1][0][-1:]])
    factors = np.concatenate([factors for _, factors in parts])
    low, high = np.unique(factors)
    assert high / low == pytest.approx(5.0)
    # Mean 1: low (1 + 0.2 x 4) = 1.
    assert low == pytest.approx(1 / 1.8)
    changes = np.flatnonzero(np.diff(factors)) + 1
    lengths = np.diff(edges[changes])
    first_is_burst = factors[changes[0]] == high
    in_bursts, in_gaps = lengths[1 - first_is_burst :: 2], lengths[first_is_burst * 1 :: 2]
    assert len(in_bursts) > 5000
    for found, mean_s in ((in_bursts, 20.0), (in_gaps, 80.0)):
        assert found.mean() == pytest.approx(mean_s, rel=0.06)
        assert found.std() / found.mean() == pytest.approx(1.0, abs=0.06)  # exponential
    assert np.diff(edges) @ factors / edges[-1] == pytest.approx(1.0, abs=0.03)


def test_bursts_reach_the_arrivals():
    """Asymptotic dispersion of a two-state process: 1 + 2 (h - l)² p (1 - p) / (mean (a + b)),
    a and b the rates of leaving the states (Fischer and Meier-Hellstern, 1993)."""
    bursts = Bursts(burst_factor=4.0, burst_s=5.0, gap_s=20.0)
    times = times_of(flat(20.0, 100_000.0), bursts, seed=8)
    low = 20.0 / (1 + 0.2 * 3)
    expected = 1 + 2 * (3 * low) ** 2 * 0.2 * 0.8 / (20.0 * (1 / 5 + 1 / 20))
    counts = counts_of(times, 400, 100_000)
    assert counts.mean() == pytest.approx(8000, rel=0.04)
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.25)


steps = st.lists(
    st.tuples(st.floats(1.0, 900.0), st.sampled_from([0.0, 0.1, 1.0, 7.0, 40.0])),
    min_size=1,
    max_size=8,
)


@given(steps)
def test_lines_keep_the_mean_of_every_step(widths_and_rates):
    widths, rates = zip(*widths_and_rates, strict=True)
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    curve = RateCurve(starts_s=tuple(edges[:-1]), rates_per_s=rates, end_s=float(edges[-1]))
    for interpolate in (False, True):
        shape = RateShape.of(curve, interpolate=interpolate)
        for index, rate in enumerate(rates):
            inside = edges[index] + (np.arange(2000) + 0.5) / 2000 * widths[index]
            found = shape.rate_at(inside)
            assert found.min() >= 0
            assert found.mean() == pytest.approx(rate, rel=1e-3, abs=1e-6)
        assert shape.highest_within(0.0, curve.end_s) >= max(rates) * (1 - 1e-9)


def test_lines_do_not_jump_where_steps_do():
    rates = tuple(20 + 10 * math.sin(k / 5) for k in range(30))
    curve = RateCurve(
        starts_s=tuple(600.0 * k for k in range(30)), rates_per_s=rates, end_s=18_000.0
    )
    near = np.array([[edge - 0.01, edge + 0.01] for edge in curve.starts_s[1:]])
    jumps = {
        lines: np.abs(np.diff(RateShape.of(curve, interpolate=lines).rate_at(near))).max()
        for lines in (True, False)
    }
    assert jumps[True] < 1e-3 < 1 < jumps[False]


@pytest.mark.parametrize("interpolate", [True, False])
def test_every_step_gets_the_arrivals_of_its_rate(interpolate):
    curve = RateCurve(
        starts_s=(0.0, 600.0, 1200.0, 1500.0), rates_per_s=(5.0, 20.0, 0.0, 40.0), end_s=2400.0
    )
    bursts = Bursts(interarrival_cv=1.5, rate_cv=0.2, burst_factor=2.0, gap_s=60.0)
    edges = (*curve.starts_s, curve.end_s)
    counts = np.array([
        np.histogram(times_of(curve, bursts, seed, interpolate=interpolate), bins=edges)[0]
        for seed in range(60)
    ])  # fmt: skip
    expected = np.diff(edges) * curve.rates_per_s
    errors = counts.std(axis=0) / 60**0.5
    assert np.all(np.abs(counts.mean(axis=0) - expected) <= 4 * errors)
    assert np.all(errors[expected > 0] < 0.05 * expected[expected > 0])


@pytest.mark.slow
def test_rows_and_blocks_agree_and_the_seed_decides():
    curve = diurnal_curve(20.0, 4.0, days=0.2)
    bursts = Bursts(rate_cv=0.2, burst_factor=3.0)
    one = joined(day_blocks(curve, UNIFORM, bursts, 7))
    rows = list(day(curve, UNIFORM, bursts, 7))
    assert [row.arrival_s for row in rows] == one.arrival_s.tolist()
    assert [row.prompt_tokens for row in rows] == one.prompt_tokens.tolist()
    assert [row.output_tokens for row in rows] == one.output_tokens.tolist()
    assert np.all(np.diff(one.arrival_s) >= 0)
    again = joined(day_blocks(curve, UNIFORM, bursts, 7))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    # Other lengths keep the times; another seed does not.
    assert np.array_equal(times_of(curve, bursts, 7), one.arrival_s)
    assert not np.array_equal(times_of(curve, bursts, 8)[:50], one.arrival_s[:50])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trace():
    def peak(hours):
        curve = diurnal_curve(60.0, 3.0, days=hours / 24)
        tracemalloc.start()
        rows = sum(1 for _ in day(curve, UNIFORM, Bursts(rate_cv=0.2, burst_factor=3.0), 1))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return rows, found

    (few, small), (many, large) = peak(0.4), peak(1.7)
    assert many > 3.5 * few > 200_000
    assert large < 1.3 * small < 40e6


def test_millions_of_requests_take_seconds():
    curve = diurnal_curve(28.0, 10.0)
    started = time.process_time()
    rows = sum(block.rows for block in day_blocks(curve, UNIFORM, Bursts(rate_cv=0.15), 1))
    assert rows > 2_300_000
    assert time.process_time() - started < 5


def test_a_diurnal_curve_has_its_figures():
    curve = diurnal_curve(10.0, 8.0, peak_hour=15.0, days=1)
    rates = np.array(curve.rates_per_s)
    assert rates.max() / rates.min() == pytest.approx(8.0, rel=1e-3)
    assert mean_rate_per_s(curve) == pytest.approx(10.0)
    assert curve.starts_s[int(rates.argmax())] == pytest.approx(15 * 3600, abs=300)
    assert curve.starts_s[int(rates.argmin())] == pytest.approx(3 * 3600, abs=300)
    assert np.abs(np.diff(rates)).max() < 0.03 * rates.max()


def test_weekends_are_lower_by_their_ratio_without_a_jump():
    curve = diurnal_curve(10.0, 8.0, peak_hour=15.0, days=7, weekend_ratio=0.4, first_weekday=4)
    noon = np.array([day * 86_400 + 43_200.0 for day in range(7)])
    at_noon = curve.rate_per_s_at(noon)
    expected = np.where(np.isin((np.arange(7) + 4) % 7, (5, 6)), 0.4, 1.0)
    assert at_noon / at_noon[0] == pytest.approx(expected, rel=1e-6)
    assert mean_rate_per_s(curve) == pytest.approx(10.0)
    rates = np.array(curve.rates_per_s)
    assert np.abs(np.diff(np.log(rates))).max() < 0.08


def test_a_cut_curve_is_the_curve_from_there():
    curve = RateCurve(starts_s=(0.0, 60.0, 120.0), rates_per_s=(1.0, 2.0, 3.0), end_s=180.0)
    assert between(curve, 70.0, 130.0) == RateCurve(
        starts_s=(0.0, 50.0), rates_per_s=(2.0, 3.0), end_s=60.0
    )
    assert between(curve, 0.0, 1e9) == curve
    assert times_rate(curve, 2.5).rates_per_s == (2.5, 5.0, 7.5)
    with pytest.raises(ConfigError, match="expected 0 ≤ begin < 180 s"):
        between(curve, 180.0, 200.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bursts(rate_cv=-0.1), "rate_cv -0.1: expected 0..10"),
        (lambda: Bursts(interarrival_cv=math.nan), "interarrival_cv nan: expected 0..10"),
        (lambda: Bursts(correlation_s=0.0), "correlation_s 0: expected seconds ≥ 0.1"),
        (lambda: Bursts(burst_factor=0.5), "burst_factor 0.5: expected a number ≥ 1"),
        (lambda: times_of(flat(2e6, 1.0)), "lower the rate"),
        (lambda: times_of(flat(9e5, 1e6)), "lower the rate"),
        (lambda: diurnal_curve(0.0, 2.0), "mean rate 0: expected a finite number > 0"),
        (lambda: diurnal_curve(1.0, 0.5), "peak to trough 0.5: expected a finite number ≥ 1"),
        (lambda: diurnal_curve(1.0, 2.0, peak_hour=24), "expected 0 ≤ hour < 24"),
        (lambda: times_rate(flat(1.0, 1.0), 0.0), "rate scale 0: expected a number > 0"),
    ],
)
def test_slips_are_refused_with_what_is_expected(call, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        call()
