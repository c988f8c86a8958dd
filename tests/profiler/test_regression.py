from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.profiler.regression import (
    condition_number,
    held_out,
    r_squared,
    regress,
    standard_errors,
)

positive = st.floats(min_value=0.01, max_value=10.0)


def grid(scales=(1.0, 1.0, 1.0)):
    rows = [(1.0, n, kv) for n in (1, 2, 4, 8, 16, 32, 64) for kv in (30 * n, 300 * n, 900 * n)]
    return np.array(rows) * np.array(scales)


@given(st.tuples(positive, positive, positive))
def test_exact_data_gives_the_planted_coefficients(planted):
    x = grid()
    fit = regress(x, x @ np.array(planted))
    np.testing.assert_allclose(fit.coefficients, planted, rtol=1e-5)
    assert fit.kept.all()


@given(st.integers(0, 10_000))
def test_outliers_are_trimmed_and_do_not_move_the_fit(seed):
    rng = np.random.default_rng(seed)
    x, planted = grid(), np.array([2.0, 0.5, 0.01])
    y = x @ planted * (1.0 + 0.01 * rng.standard_normal(len(x)))
    bad = rng.choice(len(y), size=3, replace=False)
    y[bad] *= 4.0
    fit = regress(x, y)
    assert not fit.kept[bad].any()
    np.testing.assert_allclose(fit.predict(x), x @ planted, rtol=0.06)


def test_no_more_than_a_fifth_is_trimmed():
    x = grid()
    y = x @ np.array([2.0, 0.5, 0.01])
    y[::3] *= 4.0
    assert regress(x, y).kept.sum() >= 0.8 * len(y)


def test_a_negative_slope_is_cut_at_zero():
    x = grid()
    y = 100.0 - 0.5 * x[:, 1]
    fit = regress(x, y)
    assert (fit.coefficients >= 0.0).all()
    assert fit.coefficients[1] == 0.0


def test_small_values_count_as_much_as_large_ones():
    """Relative error: absolute least squares would give the 1000 s row all the weight."""
    x = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    y = np.array([0.99, 1.01, 990.0, 1010.0])
    fit = regress(x, y)
    np.testing.assert_allclose(fit.predict(x), [1, 1, 1000, 1000], rtol=0.02)


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_units_of_a_column_do_not_matter(scale):
    x = grid()
    y = x @ np.array([2.0, 0.5, 0.01]) * (1 + 0.02 * np.sin(np.arange(len(x))))
    plain, scaled = regress(x, y), regress(grid((1.0, scale, 1.0)), y)
    np.testing.assert_allclose(scaled.coefficients[1] * scale, plain.coefficients[1], rtol=1e-4)


def test_held_out_rows_are_judged_by_a_fit_that_never_saw_their_group():
    """Both rows of the odd group lie: leaving out one alone would let the other give it away."""
    x = np.array([[1.0, float(n)] for n in (1, 2, 3, 4, 5, 6, 6)])
    y = x @ np.array([1.0, 1.0])
    y[-2:] *= 1.5
    seen = held_out(x, y, ["1", "2", "3", "4", "5", "6", "6"])
    assert seen.by_group["6"] == pytest.approx(1 / 3, rel=0.01)
    assert seen.median <= seen.p95


def test_held_out_error_of_exact_data_is_zero():
    x = grid()
    seen = held_out(x, x @ np.array([2.0, 0.5, 0.01]), [str(k) for k in range(len(x))])
    assert seen.p95 < 1e-6


def test_standard_errors_grow_with_the_noise():
    rng = np.random.default_rng(1)
    x, planted = grid(), np.array([2.0, 0.5, 0.01])
    noise = rng.standard_normal(len(x))
    groups = [str(k) for k in range(len(x))]
    quiet, low, high = standard_errors(x, x @ planted * (1 + 0.01 * noise), groups, resamples=50)
    loud, *_ = standard_errors(x, x @ planted * (1 + 0.05 * noise), groups, resamples=50)
    assert (loud > quiet).all()
    assert (low <= high).all()


def test_condition_number_tells_dependent_columns():
    x = grid()
    assert condition_number(x) < 100
    assert condition_number(np.column_stack([x, x[:, 1] * 2])) > 1e10
    assert condition_number(np.column_stack([x, np.zeros(len(x))])) == float("inf")


def test_r_squared():
    y = np.array([1.0, 2.0, 3.0])
    assert r_squared(y, y) == 1.0
    assert r_squared(y, np.full(3, 2.0)) == pytest.approx(0.0)
    assert np.isnan(r_squared(np.ones(3), np.ones(3)))
