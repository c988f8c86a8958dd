"""The bias filter against planted truths: noise, outliers, jumps, ramps, and input that is none."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from policies.model.bias import (
    FARTHEST,
    JUMP_WINDOWS,
    SETTLED_WINDOWS,
    START_VARIANCE,
    CorrectionSettings,
    learn,
    start,
)

SETTINGS = CorrectionSettings()


def feed(bias, ratios, start_s=0.0):
    """One window a second."""
    for second, ratio in enumerate(ratios):
        bias = learn(bias, 0.7 * ratio, 0.7, start_s + second, SETTINGS)
    return bias


def windows(rng, truth, noise, count, outlier_share=0.0, outlier=3.0):
    for _ in range(count):
        ratio = truth * math.exp(rng.gauss(0.0, noise))
        is_outlier = rng.random() < outlier_share
        yield ratio * rng.choice((outlier, 1.0 / outlier)) if is_outlier else ratio


def off_by(bias, truth):
    return abs(math.log(bias.ratio / truth))


def band(bias):
    return math.log1p(bias.band_ratio)


@given(
    truth=st.floats(0.5, 2.0),
    noise=st.floats(0.01, 0.1),
    guess=st.floats(0.02, 0.15),
    outlier_share=st.floats(0.0, 0.1),
    outlier=st.floats(3.0, 20.0),
)
def test_a_planted_bias_is_found_within_60_windows_and_its_band(
    truth, noise, guess, outlier_share, outlier
):
    """A 95 % band: of 30 runs 24 or more end in it (28.5 expected), and all near it."""
    found = []
    for seed in range(30):
        rng = random.Random(seed)
        found.append(feed(start(guess), windows(rng, truth, noise, 60, outlier_share, outlier)))
    assert sum(off_by(one, truth) <= band(one) for one in found) >= 24
    assert max(off_by(one, truth) / band(one) for one in found) < 3.0
    assert all(one.known and one.band_ratio < 0.15 for one in found)


@pytest.mark.parametrize("outlier", [3.0, 1e6])
def test_ten_per_cent_of_outliers_never_move_it_beyond_the_band(outlier):
    rng = random.Random(1)
    bias = feed(start(0.05), windows(rng, 1.2, 0.05, 60, 0.1, outlier))
    gated, worst = bias.gated, 0.0
    for second, ratio in enumerate(windows(rng, 1.2, 0.05, 600, 0.1, outlier)):
        bias = learn(bias, ratio, 1.0, 60.0 + second, SETTINGS)
        worst = max(worst, off_by(bias, 1.2) / band(bias))
    assert worst < 2.0
    assert 30 <= bias.gated - gated <= 90
    assert bias.drift_s is None


def test_outliers_do_not_open_the_gate():
    rng = random.Random(2)
    bias = feed(start(0.05), windows(rng, 1.0, 0.05, 2000, 0.1))
    assert bias.noise_ratio < 0.1


def test_an_outlier_in_the_first_window_is_outvoted():
    bias = feed(start(0.05), [3.0] + [1.1] * 40)
    assert bias.ratio == pytest.approx(1.1, rel=0.01)
    assert bias.drift_s is None  # nothing was known that could drift


@pytest.mark.parametrize(("before", "after"), [(1.0, 1.8), (1.5, 0.7), (0.6, 1.0), (1.0, 40.0)])
def test_a_lasting_jump_waits_for_a_run_of_windows_and_then_gets_through(before, after):
    rng = random.Random(3)
    bias = feed(start(0.05), windows(rng, before, 0.05, 120))
    held = feed(bias, windows(rng, after, 0.05, JUMP_WINDOWS - 1), 120.0)
    assert held.ratio == bias.ratio
    assert held.gated == bias.gated + JUMP_WINDOWS - 1
    through = feed(held, windows(rng, after, 0.05, 20), 120.0 + JUMP_WINDOWS - 1)
    assert off_by(through, after) < 2.0 * band(through)
    assert through.drift_s == 120.0 + JUMP_WINDOWS - 1


def test_a_jump_whose_run_holds_an_outlier_does_not_overshoot():
    rng = random.Random(4)
    bias = feed(start(0.05), windows(rng, 1.0, 0.05, 120))
    bias = feed(bias, [1.6, 1.6, 1.6, 1.6, 1.6, 30.0], 120.0)
    assert bias.ratio == pytest.approx(1.6, rel=0.05)


def test_gated_windows_of_both_signs_are_no_run():
    rng = random.Random(5)
    bias = feed(start(0.05), windows(rng, 1.0, 0.05, 120))
    assert feed(bias, [3.0, 1.0 / 3.0] * 8, 120.0).ratio == bias.ratio


def ramp(rng, per_min, seconds=120):
    for second in range(seconds):
        yield math.exp(math.log1p(per_min) * second / 60.0 + rng.gauss(0.0, 0.05))


def test_a_slow_ramp_is_followed_and_a_fast_one_alarms_within_a_minute():
    rng = random.Random(6)
    settled = feed(start(0.05), windows(rng, 1.0, 0.05, 120))
    slow = feed(settled, ramp(rng, 0.05), 120.0)
    assert slow.drift_s is None
    assert off_by(slow, 1.05**2) < 2.0 * band(slow)
    for end, direction in ((1.5, 1), (1.0 / 1.5, -1)):
        steep = (ratio**direction for ratio in ramp(rng, 0.5, seconds=60))
        fast = feed(settled, steep, 120.0)
        assert fast.drift_s is not None
        assert off_by(fast, end) < 0.1


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_noise_alone_is_no_drift_whatever_the_profile_guessed(noise):
    """The filter learns the noise: the first guess is off by up to 10 here."""
    rng = random.Random(7)
    bias = feed(start(0.1), windows(rng, 1.3, noise, 400))
    calm = feed(replace(bias, drift_s=None), windows(rng, 1.3, noise, 5000), 400.0)
    assert calm.drift_s is None
    assert bias.noise_ratio == pytest.approx(noise, rel=0.5)


def test_the_drift_detector_counts_up_to_its_alarm():
    bias = feed(start(0.05), windows(random.Random(8), 1.0, 0.05, 120))
    seen = [feed(bias, [1.15] * count, 120.0).drift_ratio for count in range(4)]
    assert seen == sorted(seen)
    assert 0.0 <= seen[0] < seen[-1] < 1.0


def test_what_is_not_seen_for_long_is_known_less_but_never_less_than_at_the_start():
    bias = feed(start(0.05), [1.2] * 60)
    later = learn(bias, 1.2, 1.0, 60.0 + 3600.0, SETTINGS)
    assert bias.band_ratio < 0.06
    assert later.ratio == pytest.approx(1.2)
    moved = learn(bias, 1.5, 1.0, 60.0 + 3600.0, SETTINGS)
    assert moved.ratio > 1.4  # after an hour one window counts for more than what was known
    absurd = learn(bias, 1e6, 1.0, 60.0 + 1e9, SETTINGS)  # thirty years later
    assert absurd.ratio == bias.ratio
    assert absurd.variance == START_VARIANCE


def test_many_windows_of_one_moment_do_not_put_it_to_sleep():
    bias = start(0.05)
    for _ in range(20_000):
        bias = learn(bias, 1.0, 1.0, 5.0, SETTINGS)
    assert feed(bias, [1.7] * 30, 5.0).ratio == pytest.approx(1.7, rel=0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_a_value_that_is_none_is_ignored_and_counted(bad):
    bias = feed(start(0.05), [1.2] * 20)
    for window in ((bad, 1.0), (1.0, bad)):
        assert learn(bias, *window, 20.0, SETTINGS) == replace(bias, ignored=1)
    if not math.isfinite(bad):
        assert learn(bias, 1.0, 1.0, bad, SETTINGS) == replace(bias, ignored=1)


anything = st.one_of(st.floats(), st.sampled_from([5e-324, 1e308, -0.0, 1.0]))


@given(st.lists(st.tuples(anything, anything, anything), max_size=80))
def test_no_input_leads_out_of_bounds(seen):
    bias = start(0.05)
    for measured, modelled, now_s in seen:
        bias = learn(bias, measured, modelled, now_s, SETTINGS)
        assert abs(math.log(bias.ratio)) <= FARTHEST * (1.0 + 1e-12)
        assert 0.0 <= bias.variance <= FARTHEST**2
        assert 0.01 <= bias.noise_ratio <= 0.5
        assert math.isfinite(bias.band_ratio) and math.isfinite(bias.drift_ratio)
        bias.check("state")
    assert bias.windows + bias.gated + bias.ignored >= len(seen)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60))
def test_the_filter_is_symmetric_in_measured_and_modelled(ratios):
    up, down = start(0.1), start(0.1)
    for second, ratio in enumerate(ratios):
        up = learn(up, ratio, 1.0, float(second), SETTINGS)
        down = learn(down, 1.0, ratio, float(second), SETTINGS)
    assert up.ratio * down.ratio == pytest.approx(1.0)
    assert (up.windows, up.gated) == (down.windows, down.gated)
    assert up.cusum_up == pytest.approx(down.cusum_down, abs=1e-9)


def test_ten_windows_are_needed_to_know():
    assert not feed(start(0.05), [1.2] * (SETTLED_WINDOWS - 1)).known
    assert feed(start(0.05), [1.2] * SETTLED_WINDOWS).known


@pytest.mark.parametrize(("guess", "used"), [(0.0, 0.01), (9.0, 0.5), (math.nan, 0.5)])
def test_the_first_guess_of_the_noise_is_brought_into_range(guess, used):
    assert start(guess).noise_ratio == used


def test_a_resumed_bias_keeps_what_it_knows_and_is_less_sure():
    bias = feed(start(0.05), [3.0] * 100)
    again = bias.resumed()
    assert (again.ratio, again.noise_ratio) == (bias.ratio, bias.noise_ratio)
    assert again.band_ratio > bias.band_ratio
    assert again.known and again.bound_windows == 1
    assert (again.gated, again.ignored, again.time_s, again.drift_s) == (0, 0, None, None)
    assert again.resumed() == again


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"variance": -1.0}, "variance"),
        ({"noise_ratio": 3.0}, "noise_ratio"),
    ],
)
def test_values_that_no_filter_has_are_named(change, key):
    with pytest.raises(ConfigError, match=rf"f: step_time\.{key} is .*; allowed: "):
        replace(start(0.05), **change).check("f: step_time")
