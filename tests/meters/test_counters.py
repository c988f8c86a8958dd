"""Counters and integrated power against the truth, over random wraps, resets and glitches."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.meters.counters import CounterTracker, PowerIntegrator

MAX_WATTS = 500.0
SLACK_S = 0.1
steps_of_energy = st.lists(
    st.tuples(st.floats(0.01, 60.0), st.floats(0.0, MAX_WATTS)), min_size=1, max_size=60
)


def tracker(wrap_units=None):
    return CounterTracker(
        joules_per_unit=1e-6, max_watts=MAX_WATTS, slack_s=SLACK_S, wrap_units=wrap_units
    )


@given(steps_of_energy, st.integers(0, 10**12), st.integers(30_001 * 10**6, 10**11))
def test_any_number_of_wraps_is_exact(steps, start, wrap_units):
    counter = tracker(wrap_units)
    now_s, truth = 0.0, 0
    counter.advance(start % wrap_units, now_s)
    for dt, watts in steps:
        now_s += dt
        truth += math.floor(dt * watts * 1e6)
        added = counter.advance((start + truth) % wrap_units, now_s)
        assert added >= 0.0
        assert counter.joules == truth * 1e-6
    assert counter.anomalies == 0


@given(steps_of_energy, st.data())
def test_resets_and_garbage_never_add_and_lose_only_their_own_interval(steps, data):
    counter = tracker()
    now_s, offset, truth, lost = 0.0, 10**12, 0, 0
    counter.advance(offset, now_s)
    resets = 0
    for dt, watts in steps:
        now_s += dt
        used = math.floor(dt * watts * 1e6)
        truth += used
        if data.draw(st.booleans(), label="reset"):
            offset = -truth  # the counter starts again from 0
            lost += used
            resets += 1
        elif data.draw(st.booleans(), label="garbage"):
            counter.advance(10**18, now_s)  # one impossible value, then the right one
            assert counter.anomalies > 0
            lost += used
            resets += 2
        counter.advance(offset + truth, now_s)
        assert 0.0 <= counter.joules <= truth * 1e-6
    if resets == 0:
        assert counter.joules == truth * 1e-6
    assert counter.joules == pytest.approx((truth - lost) * 1e-6, rel=1e-9, abs=1e-9)
    assert counter.anomalies <= resets


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=50))
def test_any_values_at_all_stay_within_the_power_bound(values):
    counter = tracker(wrap_units=2**32)
    last = 0.0
    for second, raw in enumerate(values):
        counter.advance(raw, float(second))
        assert last <= counter.joules <= last + MAX_WATTS * (1.0 + SLACK_S)
        last = counter.joules


def test_a_reset_far_from_the_range_is_no_wrap():
    counter = tracker(wrap_units=262_143_328_850)
    counter.advance(5_000_000_000, 0.0)
    counter.advance(0, 1.0)  # as a wrap: 257 kJ in one second
    assert (counter.joules, counter.anomalies) == (0.0, 1)


def test_a_clock_that_steps_back_does_not_hide_energy():
    counter = tracker()
    counter.advance(0, 10.0)
    counter.advance(30_000_000, 9.0)  # within the slack of 50 J
    assert counter.joules == 30.0
    assert counter.anomalies == 0


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.0, MAX_WATTS)), max_size=50))
def test_trapezoid_is_exact_for_power_that_is_linear_between_samples(steps):
    integrator = PowerIntegrator(max_watts=MAX_WATTS, max_gap_s=2.0)
    now_s, last_watts, truth = 0.0, 70.0, 0.0
    integrator.add(last_watts, now_s)
    for dt, watts in steps:
        previous_s, now_s = now_s, now_s + dt
        truth += (now_s - previous_s) * (last_watts + watts) / 2
        integrator.add(watts, now_s)
        last_watts = watts
    assert integrator.joules == pytest.approx(truth, rel=1e-12)
    assert integrator.anomalies == 0


@pytest.mark.parametrize("watts", [-1.0, math.nan, math.inf, MAX_WATTS + 1])
def test_impossible_power_is_dropped_and_counted(watts):
    integrator = PowerIntegrator(max_watts=MAX_WATTS, max_gap_s=2.0)
    integrator.add(100.0, 0.0)
    integrator.add(watts, 0.5)
    integrator.add(100.0, 1.0)
    assert (integrator.joules, integrator.anomalies) == (100.0, 1)


def test_late_and_repeated_samples_are_ignored():
    integrator = PowerIntegrator(max_watts=MAX_WATTS, max_gap_s=2.0)
    for now_s in (0.0, 1.0, 0.5, 1.0):
        integrator.add(100.0, now_s)
    assert (integrator.joules, integrator.anomalies) == (100.0, 0)
