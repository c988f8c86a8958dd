"""The analysis against made samples of which the truth is known."""

import numpy as np
import pytest

from serve_app.gpu_check.analysis import (
    TOLERANCE_RATIO,
    averaging_window,
    phase_energy,
    update_intervals,
)
from serve_app.gpu_check.result import CheckResult, GpuResult
from serve_app.gpu_check.sampling import Series

PERIOD_S = 0.005


def truth(seconds, draw):
    """A fine curve: time and true energy under the draw, a function of time."""
    time_s = np.arange(0.0, seconds, 0.001)
    return time_s, np.cumsum(draw(time_s) + np.zeros_like(time_s)) * 0.001


def samples(seconds, draw, *, update_s=0.1, window_s=1.0, lag_s=0.0, gain=1.0, phase="steps"):
    """What sensors with these properties show to a sampler; all in one phase."""
    fine_s, fine = truth(seconds, draw)
    seen_s = np.arange(window_s + lag_s + update_s, seconds, PERIOD_S)
    ticks_s = np.floor(seen_s / update_s) * update_s
    joules = np.interp(ticks_s, fine_s, fine)
    begins = np.interp(ticks_s - lag_s - window_s, fine_s, fine)
    watts = gain * (np.interp(ticks_s - lag_s, fine_s, fine) - begins) / window_s
    phases = np.full(len(seen_s), phase)
    return Series(seen_s, phases, joules, watts, np.full(len(seen_s), np.nan))


def turns(on_s, off_s, idle=70.0, busy=600.0):
    return lambda t: np.where(t % (on_s + off_s) < on_s, busy, idle)


@pytest.mark.parametrize(
    ("window_s", "lag_s", "update_s"),
    [(1.0, 0.0, 0.1), (1.0, 0.1, 0.1), (0.1, 0.0, 0.02), (0.5, 0.04, 0.02)],
)
def test_the_averaging_window_is_recovered(window_s, lag_s, update_s):
    seen = samples(40, turns(4, 4), update_s=update_s, window_s=window_s, lag_s=lag_s)
    found = averaging_window(seen.time_s, seen.joules, seen.watts)
    assert found.window_s == pytest.approx(window_s, rel=0.06)
    assert found.low_s <= found.window_s <= found.high_s
    assert found.high_s < 1.5 * window_s
    assert found.lag_s == pytest.approx(lag_s, abs=0.03)
    assert found.misfit_watts < 0.05 * found.swing_watts


def test_a_draw_that_does_not_move_tells_no_window():
    steady = samples(40, lambda t: 300.0 + 10.0 * np.sin(t))
    assert averaging_window(steady.time_s, steady.joules, steady.watts) is None
    moved = samples(40, turns(4, 4))
    no_counter = np.full(len(moved.time_s), np.nan)
    assert averaging_window(moved.time_s, no_counter, moved.watts) is None


def test_update_intervals_are_those_of_the_sensor():
    seen = samples(20, turns(2, 2), update_s=0.1)
    for values in (seen.joules, seen.watts):
        assert update_intervals(seen.time_s, values).median == pytest.approx(0.1, abs=PERIOD_S)
    assert update_intervals(seen.time_s, np.full(len(seen.time_s), 3.0)) is None


@pytest.mark.parametrize("draw", [lambda _: 70.0, turns(0.4, 0.6), turns(3, 3)])
def test_a_true_sensor_stays_within_the_stated_error(draw):
    found = phase_energy(samples(30, draw), "steps", 1.0)
    assert found.within
    assert abs(found.difference_ratio) < found.stated_ratio < 0.15
    assert found.counter_joules == pytest.approx(found.mean_watts * found.seconds)


@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_a_false_sensor_is_a_finding(gain):
    found = phase_energy(samples(60, turns(0.4, 0.6), gain=gain), "steps", 1.0)
    assert found.difference_ratio == pytest.approx(gain - 1.0, abs=0.02)
    assert found.within is False
    gpu = GpuResult(
        gpu={"index": 3},
        samples=1,
        counter_update_s=None,
        power_update_s=None,
        window=None,
        instant_window=None,
        phases=(found,),
    )
    (finding,) = CheckResult(
        gpus=(gpu,), cycle_s=None, load=None, sampling={}, notes=(), problems=()
    ).findings()
    assert finding.startswith("GPU 3, steps: integrated power is ")


def test_the_stated_error_grows_with_what_averaging_carries_over_the_ends():
    seen = samples(10, turns(5, 5))
    narrow, wide = (phase_energy(seen, "steps", window_s) for window_s in (0.1, 1.0))
    extra_joules = 0.5 * 0.9 * wide.swing_watts
    grown = (wide.stated_ratio - narrow.stated_ratio) * wide.counter_joules
    assert grown == pytest.approx(extra_joules)
    assert narrow.stated_ratio > TOLERANCE_RATIO


def test_a_quiet_phase_after_a_busy_one_is_given_what_averaging_carries_into_it():
    seen = samples(20, lambda t: np.where(t < 10.0, 600.0, 70.0))
    seen.phases[seen.time_s >= 10.0] = "idle"
    found = phase_energy(seen, "idle", 1.0)
    assert found.difference_ratio > TOLERANCE_RATIO  # half a second of the 600 W
    assert found.within


def test_without_a_counter_there_is_power_alone():
    seen = samples(10, lambda _: 200.0)
    blind = Series(
        seen.time_s, seen.phases, np.full(len(seen.time_s), np.nan), seen.watts, seen.instant_watts
    )
    found = phase_energy(blind, "steps", None)
    assert found.counter_joules is None
    assert found.within is None
    assert found.integrated_joules == pytest.approx(200.0 * found.seconds)
    assert phase_energy(blind, "burst", None) is None


def test_a_gpu_lost_on_the_way_keeps_what_was_seen():
    seen = samples(20, lambda _: 200.0)
    lost = seen.time_s > 12.0
    joules, watts = (np.where(lost, np.nan, v) for v in (seen.joules, seen.watts))
    found = phase_energy(
        Series(seen.time_s, seen.phases, joules, watts, seen.instant_watts), "steps", 1.0
    )
    assert found.within
    assert found.mean_watts == pytest.approx(200.0, rel=0.01)
    assert found.seconds < 12.0
