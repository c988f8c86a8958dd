"""Counters and integrated power against the truth, over random wraps, resets and glitches."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.meters import Anomaly
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
    assert counter.counts[Anomaly.WRAP] == (start % wrap_units + truth) // wrap_units


@given(steps_of_energy, st.data())
def test_resets_lose_only_their_own_interval_and_misreadings_lose_nothing(steps, data):
    counter = tracker()
    now_s, offset, truth, lost, resets = 0.0, 10**12, 0, 0, 0
    counter.advance(offset, now_s)
    for dt, watts in steps:
        now_s += dt
        used = math.floor(dt * watts * 1e6)
        truth += used
        event = data.draw(st.sampled_from(["none", "reset", "garbage", "zero"]), label="event")
        if event == "reset" and used > 0:
            offset = used - truth  # the counter started again from 0 in this interval
            lost += used
            resets += 1
        elif event in {"garbage", "zero"}:
            before = counter.joules
            counter.advance(10**18 if event == "garbage" else 0, now_s)
            assert counter.joules == before
        counter.advance(offset + truth, now_s)
        assert 0.0 <= counter.joules <= truth * 1e-6
    if resets == 0:
        assert counter.joules == truth * 1e-6
    assert counter.joules >= (truth - lost) * 1e-6 * (1 - 1e-9) - 1e-9
    assert counter.counts[Anomaly.RESET] + counter.counts[Anomaly.BACKWARD] <= 2 * resets


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=50))
def test_any_values_at_all_stay_within_the_power_bound(values):
    counter = tracker(wrap_units=2**32)
    last = 0.0
    for second, raw in enumerate(values):
        counter.advance(raw, float(second))
        assert last <= counter.joules <= MAX_WATTS * (second + SLACK_S * (second + 1))
        last = counter.joules


@pytest.mark.parametrize(
    ("values", "joules", "counts"),
    [
        ((900, 950, 990, 30, 80), 180.0, {Anomaly.WRAP: 1}),  # the range is 1000
        ((500, 520, 5, 25), 40.0, {Anomaly.RESET: 1}),
        ((500, 520, 400, 420), 40.0, {Anomaly.BACKWARD: 1}),
        ((500, 520, 0, 560), 60.0, {Anomaly.ZERO: 1}),  # a misreading: nothing is lost
        ((500, 520, 0, 0, 0, 590), 90.0, {Anomaly.ZERO: 1}),
        ((500, 520, 0, 20, 40), 60.0, {Anomaly.ZERO: 1}),  # a reset seen at its very moment
        ((10, 20, 0, 30), 20.0, {Anomaly.ZERO: 1}),  # either way: the smaller step
        ((500,) * 20 + (100, 110), 10.0, {Anomaly.RESET: 1}),  # no wrap of 600 within a second
        ((500, 520, 900, 560), 60.0, {Anomaly.JUMP: 1}),
        ((500, 520, 900, 920), 40.0, {Anomaly.JUMP: 1}),
        ((500, 520, 520, 520, 640), 140.0, {}),  # catches up after a pause
    ],
)
def test_each_fault_is_counted_by_its_kind(values, joules, counts):
    counter = CounterTracker(joules_per_unit=1.0, max_watts=60.0, slack_s=0.1, wrap_units=1000)
    for second, raw in enumerate(values):
        counter.advance(raw, float(second))
    assert (counter.joules, counter.counts) == (joules, counts)
    assert counter.anomalies == sum(n for kind, n in counts.items() if kind is not Anomaly.WRAP)


def test_a_pause_as_long_as_a_whole_range_is_a_gap():
    counter = CounterTracker(joules_per_unit=1.0, max_watts=100.0, slack_s=0.1, wrap_units=1000)
    counter.advance(0, 0.0)
    counter.advance(400, 9.0)
    assert counter.anomalies == 0
    counter.advance(500, 19.5)  # 100 J, or 1100
    assert (counter.joules, counter.counts) == (500.0, {Anomaly.GAP: 1})


def test_a_stall_counts_once_until_the_counter_moves():
    counter = tracker()
    for second in range(10):
        counter.advance(7, float(second))
        counter.note_stall()
    assert counter.counts == {Anomaly.STALL: 1}
    assert counter.moved_s == 0.0
    counter.advance(8, 10.0)
    counter.note_stall()
    assert counter.counts == {Anomaly.STALL: 2}
    assert counter.moved_s == 10.0


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
    counter.advance(330_000_000, 10.0)  # 300 W from there on
    assert counter.joules == 330.0
    assert (counter.anomalies, counter.counts) == (0, {Anomaly.CLOCK: 1})
    counter.advance(330_000_000, 4.0)  # it has not moved, but the time is another
    counter.advance(630_000_000, 5.0)
    assert (counter.joules, counter.counts) == (630.0, {Anomaly.CLOCK: 2})


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.1, MAX_WATTS)), max_size=50))
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


@pytest.mark.parametrize(
    ("watts", "kind"),
    [
        (-1.0, Anomaly.JUMP),
        (math.nan, Anomaly.JUMP),
        (math.inf, Anomaly.JUMP),
        (MAX_WATTS + 1, Anomaly.JUMP),
        (0.0, Anomaly.ZERO),
    ],
)
def test_impossible_power_is_dropped_and_counted(watts, kind):
    integrator = PowerIntegrator(max_watts=MAX_WATTS, max_gap_s=2.0)
    assert integrator.add(100.0, 0.0)
    assert not integrator.add(watts, 0.5)
    assert integrator.known_s == 0.0
    integrator.add(100.0, 1.0)
    assert (integrator.joules, integrator.counts) == (100.0, {kind: 1})


def feed(integrator, times):
    for now_s in times:
        integrator.add(100.0, now_s)
    return integrator.joules, dict(integrator.counts)


def test_late_samples_are_integrated_and_counted_and_gaps_left_out():
    def integrate(*times):
        return feed(PowerIntegrator(max_watts=MAX_WATTS, max_gap_s=2.0, late_s=0.5), times)

    assert integrate(0.0, 0.5, 1.0) == (100.0, {})
    assert integrate(0.0, 0.7) == (pytest.approx(70.0), {Anomaly.LATE: 1})
    assert integrate(0.0, 2.1, 2.6) == (pytest.approx(50.0), {Anomaly.GAP: 1})


def test_a_sample_out_of_order_is_ignored_and_a_clock_that_steps_back_is_followed():
    def integrate(*times):
        return feed(PowerIntegrator(max_watts=MAX_WATTS, max_gap_s=2.0), times)

    assert integrate(0.0, 1.0, 0.99, 1.0) == (100.0, {})
    assert integrate(0.0, 1.0, 0.5, 1.0, 1.5) == (150.0, {Anomaly.LATE: 1})
    back = {Anomaly.LATE: 1, Anomaly.CLOCK: 1}
    assert integrate(100.0, 101.0, 5.0, 6.0, 7.0, 8.0) == (300.0, back)
