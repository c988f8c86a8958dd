"""Samples of a machine that was slower than it can be."""

from dataclasses import replace

import pytest
from profiler_planted import LATENCY, planted_samples

from serve_app.profiler.fit import Identity, fit
from serve_app.profiler.samples import Kind
from serve_app.profiler.yardstick import MIN_YARDSTICKS, judged, slow_limit_s

WHO = Identity(name="n", model="m", provenance={})


def spells(samples, slowdown=1.5):
    """Every third sample was taken while a neighbour slowed the machine."""
    return [
        replace(s, yardstick_s=None if s.kind is Kind.IDLE else 0.030)
        if k % 3
        else replace(
            s,
            yardstick_s=None if s.kind is Kind.IDLE else 0.030 * slowdown,
            step_time_s=s.step_time_s and s.step_time_s * slowdown,
        )
        for k, s in enumerate(samples)
    ]


def test_a_neighbours_spells_do_not_enter_the_fit():
    samples = spells(planted_samples(repeats=3))
    result = fit(samples, WHO)
    assert result.model.latency.t0_s == pytest.approx(LATENCY[0], rel=1e-3)
    slow = [s for s in samples if (s.yardstick_s or 0.0) > 0.04]
    assert len(result.unsteady) == len(slow) > 10


def test_a_machine_that_is_always_the_same_loses_nothing():
    samples = spells(planted_samples(repeats=3), slowdown=1.0)
    assert judged(samples) == samples


def test_without_yardsticks_or_with_few_nothing_is_judged():
    samples = planted_samples()
    assert slow_limit_s(samples) is None
    few = [replace(s, yardstick_s=0.03 * (k + 1)) for k, s in enumerate(samples)]
    assert judged(few[: MIN_YARDSTICKS - 1]) == few[: MIN_YARDSTICKS - 1]


def test_a_power_limit_is_not_taken_for_a_neighbour():
    samples = spells(planted_samples(repeats=3), slowdown=1.0)
    limited = [
        replace(s, power_limit_watts=300.0, yardstick_s=s.yardstick_s and 2 * s.yardstick_s)
        for s in samples
    ]
    assert judged([*samples, *limited]) == [*samples, *limited]


def test_one_slip_of_the_clock_does_not_make_all_others_slow():
    samples = spells(planted_samples(repeats=3), slowdown=1.0)
    slip = replace(samples[5], yardstick_s=0.001)
    assert all(s.steady for s in judged([slip, *samples]))
