"""The generators: rates, lengths, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from policies.sim.trace import (
    BurstShape,
    LengthCdf,
    Lengths,
    RateCurve,
    burst,
    from_rate_curve,
    poisson,
    scale_time,
)

LENGTHS = Lengths.constant(128, 64)
seeds = st.integers(min_value=0, max_value=2**32)


def arrivals(rows):
    return np.array([row.arrival_s for row in rows])


def test_poisson_has_the_rate_and_the_gaps_of_a_poisson_process():
    times = arrivals(poisson(20.0, 500.0, LENGTHS, seed=1))
    assert abs(times.size - 10_000) < 4 * 10_000**0.5
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # exponential: as wide as its mean
    assert 0 <= times[0] < times[-1] < 500


@given(seeds)
def test_the_same_seed_gives_the_same_rows_and_another_does_not(seed):
    first = poisson(5.0, 20.0, LENGTHS, seed=seed)
    assert first == poisson(5.0, 20.0, LENGTHS, seed=seed)
    assert first != poisson(5.0, 20.0, LENGTHS, seed=seed + 1)


@given(seeds)
def test_other_lengths_keep_the_arrival_times(seed):
    uniform = Lengths(prompt=LengthCdf.uniform(1, 9), output=LengthCdf.uniform(1, 9))
    assert np.array_equal(
        arrivals(poisson(5.0, 20.0, LENGTHS, seed=seed)),
        arrivals(poisson(5.0, 20.0, uniform, seed=seed)),
    )


def test_a_burst_is_base_peak_base_in_every_period():
    shape = BurstShape(base_rate_per_s=2, peak_rate_per_s=20, period_s=300)
    curve = shape.curve(300)
    assert curve.starts_s == pytest.approx((0, 100, 200))
    assert curve.rates_per_s == (2, 20, 2)
    assert curve.end_s == 300
    times = arrivals(burst(shape, 3000.0, LENGTHS, seed=3)) % 300
    in_peak = ((times >= 100) & (times < 200)).sum()
    assert abs(in_peak - 20_000) < 4 * 20_000**0.5
    assert abs(times.size - in_peak - 4_000) < 4 * 4_000**0.5


def test_a_burst_that_ends_within_a_period_keeps_its_shape():
    shape = BurstShape(base_rate_per_s=0, peak_rate_per_s=5, period_s=10, duty_ratio=0.5)
    curve = shape.curve(15)
    assert curve.starts_s == (0.0, 2.5, 7.5, 12.5)
    assert curve.rates_per_s == (0, 5, 0, 5)
    times = arrivals(burst(shape, 15, LENGTHS, seed=0))
    assert times.size
    assert all(2.5 <= t < 7.5 or t >= 12.5 for t in times)


def test_a_rate_curve_is_followed_step_by_step():
    curve = RateCurve(starts_s=(0.0, 100.0, 200.0), rates_per_s=(10.0, 0.0, 40.0), end_s=300.0)
    times = arrivals(from_rate_curve(curve, LENGTHS, seed=5))
    counts, _ = np.histogram(times, bins=[0, 100, 200, 300])
    assert abs(counts[0] - 1000) < 4 * 1000**0.5
    assert counts[1] == 0
    assert abs(counts[2] - 4000) < 4 * 4000**0.5
    assert curve.cut(150.0) == RateCurve(
        starts_s=(0.0, 100.0), rates_per_s=(10.0, 0.0), end_s=150.0
    )
    assert curve.cut(1000.0) is curve
    assert curve.rate_per_s_at(np.array([0.0, 100.0, 199.0, 200.0])).tolist() == [10, 0, 0, 40]


def test_a_rate_of_zero_has_no_arrivals():
    curve = RateCurve(starts_s=(0.0,), rates_per_s=(0.0,), end_s=60.0)
    assert from_rate_curve(curve, LENGTHS, seed=0) == ()


def test_uniform_lengths_hit_every_value_alike():
    lengths = LengthCdf.uniform(3, 6).sample(np.random.default_rng(0), 40_000)
    values, counts = np.unique(lengths, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert np.abs(counts - 10_000).max() < 400


def test_cdf_lengths_follow_the_points():
    cdf = LengthCdf(shares=(0.5, 1.0), tokens=(10, 30))
    lengths = cdf.sample(np.random.default_rng(0), 40_000)
    assert abs((lengths == 10).mean() - 0.5) < 0.03
    assert lengths.max() <= 30
    assert abs(np.median(lengths[lengths > 10]) - 20) <= 1


@given(st.integers(min_value=1, max_value=10**6), seeds)
def test_constant_lengths_are_constant(tokens, seed):
    sample = LengthCdf.constant(tokens).sample(np.random.default_rng(seed), 5)
    assert sample.tolist() == [tokens] * 5


@given(st.floats(min_value=0.01, max_value=100))
def test_scaling_time_scales_every_arrival_and_nothing_else(factor):
    rows = poisson(5.0, 20.0, LENGTHS, seed=0)
    scaled = scale_time(rows, factor)
    assert arrivals(scaled) == pytest.approx(arrivals(rows) * factor)
    assert {(row.prompt_tokens, row.output_tokens) for row in scaled} == {(128, 64)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: poisson(0.0, 1.0, LENGTHS, seed=0),
        lambda: poisson(float("nan"), 1.0, LENGTHS, seed=0),
        lambda: poisson(1.0, 0.0, LENGTHS, seed=0),
        lambda: poisson(1e9, 1e9, LENGTHS, seed=0),
        lambda: BurstShape(base_rate_per_s=2, peak_rate_per_s=1, period_s=1),
        lambda: BurstShape(base_rate_per_s=1, peak_rate_per_s=2, period_s=0),
        lambda: BurstShape(base_rate_per_s=1, peak_rate_per_s=2, period_s=1, duty_ratio=1),
        lambda: LengthCdf.uniform(5, 4),
        lambda: LengthCdf(shares=(0.5, 0.4), tokens=(1, 2)),
        lambda: LengthCdf(shares=(), tokens=()),
        lambda: RateCurve(starts_s=(1.0,), rates_per_s=(1.0,), end_s=2.0),
        lambda: RateCurve(starts_s=(0.0,), rates_per_s=(-1.0,), end_s=2.0),
        lambda: scale_time((), 0.0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match=r"expected|must|needs"):
        make()
