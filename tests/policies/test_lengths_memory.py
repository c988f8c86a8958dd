"""Lengths as bins, margins learned from misses, and what the load did before."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from policies.core.forecast import (
    LEVEL_S,
    POOLED_CASES,
    RATIOS,
    Outlook,
    burst_outlook,
    outlooks,
    swings_of,
    with_level,
)
from policies.core.lengths import EDGES, WEIGHTS, bins_of, mean_of, mixed
from policies.core.memory import (
    DEBT_HIGH,
    FIRST_PRESSURE,
    MARGIN_LOW,
    PRESSURE_HIGH,
    PRESSURE_STEP,
    Memory,
    with_lengths,
    with_margins,
    with_need,
    with_pressure,
)


def bursts_of(memory: Memory) -> Outlook:
    return burst_outlook(memory, swings_of(memory))


def test_bins_are_the_means_between_quantiles_and_keep_the_mean():
    values = np.random.default_rng(0).lognormal(6.0, 1.0, 100_000)
    bins = bins_of(values)
    ordered = np.sort(values)
    for low, high, found in zip(EDGES, EDGES[1:], bins, strict=False):
        part = ordered[round(low * len(ordered)) : round(high * len(ordered))]
        assert found == pytest.approx(part.mean(), rel=1e-6)
    assert mean_of(bins) == pytest.approx(values.mean())
    assert sum(WEIGHTS) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[5.0], [1, 2], list(range(1, 14)), [7] * 30])
def test_few_values_give_ascending_bins_with_their_mean(values):
    bins = bins_of(values)
    assert list(bins) == sorted(bins)
    assert mean_of(bins) == pytest.approx(np.mean(values))
    assert bins[0] >= min(values) * (1.0 - 1e-9)
    assert bins[-1] <= max(values) * (1.0 + 1e-9)


def test_no_values_give_no_bins_and_bins_mix_by_weight():
    assert bins_of([]) is None
    assert mixed([]) is None
    one, two = bins_of([1.0]), bins_of([4.0])
    assert mixed([(2.0, one), (1.0, two)]) == pytest.approx(bins_of([2.0]))


def test_margins_keep_the_missed_share_whatever_it_takes():
    """A world in which 5 % e^(-10 margin) of the requests are late, which nothing here knows."""
    rng = np.random.default_rng(1)
    memory, judged, late = Memory(margin=0.0, pace_margin=0.0), 0, 0
    late_after = judged_after = 0
    for tick in range(20_000):
        chance = min(0.05 * math.exp(-10.0 * memory.margin), 1.0)
        missed = int(rng.binomial(10, chance))
        judged, late = judged + 10, late + missed
        if tick > 2_000:
            judged_after, late_after = judged_after + 10, late_after + missed
        memory = with_margins(memory, (judged, late, 0), 0.008)
    assert late_after / judged_after == pytest.approx(0.008, rel=0.15)
    assert MARGIN_LOW <= memory.pace_margin < -0.1  # nobody was slow


def test_margins_go_up_by_misses_at_once_and_are_bounded():
    memory = with_margins(Memory(margin=0.1, pace_margin=0.1), (100.0, 10.0, 0.0), 0.01)
    assert memory.margin > 0.2 > 0.1 > memory.pace_margin
    assert with_margins(memory, (1e6, 1e6, 0.0), 0.01).margin == DEBT_HIGH
    assert with_margins(memory, (100.0, 10.0, 0.0), 0.01) is memory  # nothing new
    assert with_margins(memory, (math.nan, 0.0, 0.0), 0.01) is memory
    again = with_margins(memory, (5.0, 0.0, 0.0), 0.01)  # a new engine counts from 0
    assert again.judged == 5.0
    assert again.margin < memory.margin


def test_lengths_are_taken_anew_only_when_they_changed_and_10_s_are_over():
    first = with_lengths(Memory(), 0.0, bins_of([100.0]), bins_of([10.0]))
    assert mean_of(first.prompt_bins) == pytest.approx(100.0)
    much = bins_of([200.0])
    assert with_lengths(first, 5.0, much, bins_of([10.0])) is first
    assert mean_of(with_lengths(first, 11.0, much, bins_of([10.0])).prompt_bins) > 199.0
    same = with_lengths(first, 11.0, bins_of([101.0]), bins_of([10.0]))
    assert same.prompt_bins == first.prompt_bins
    assert with_lengths(first, 30.0, (1.0, 2.0), (1.0,)) is first  # not our bins


def play(rates, horizon_s=60.0):
    memory = Memory()
    for second, rate in enumerate(rates):
        minute = rates[max(second - 59, 0) : second + 1]
        steady = sum(minute) / len(minute)
        memory = with_level(memory, float(second), rate, steady, horizon_s)
    return memory


def quantile(outlook, share):
    order = np.argsort(outlook.rates_per_s)
    total = np.cumsum(outlook.cases[order])
    return outlook.rates_per_s[order][np.searchsorted(total, share * total[-1])]


def test_a_steady_load_is_expected_to_stay():
    memory = play([20.0] * 3600)
    for outlook in outlooks(memory, 20.0, unknown=1.0):
        assert quantile(outlook, 0.99) == pytest.approx(20.0, rel=0.06)
    assert memory.top_per_s == pytest.approx(20.0, rel=0.01)


def test_a_single_record_is_not_the_top_but_one_that_lasts_is():
    calm = [20.0] * 1200
    once = play([*calm, *[80.0] * 10, *[20.0] * 11])
    lasting = play([*calm, *[80.0] * 60])
    assert 30.0 < once.top_per_s < 50.0
    assert 70.0 < lasting.top_per_s <= 80.0


def test_bursts_that_come_again_are_expected_in_the_calm():
    wave = ([10.0] * 100 + [40.0] * 20) * 30
    memory = play([*wave, *[10.0] * 90])
    present, _, from_top = outlooks(memory, 10.0, unknown=1.0)
    assert quantile(present, 0.99) > 20.0
    assert quantile(from_top, 0.99) == pytest.approx(40.0, rel=0.15)
    in_burst = outlooks(play(wave), 40.0, unknown=1.0)
    assert min(quantile(one, 0.99) for one in in_burst) < 50.0  # 160 by the present alone


def test_bursts_are_expected_as_much_between_as_within_them():
    wave = ([10.0] * 100 + [40.0] * 20) * 30
    calm, burst = play([*wave, *[10.0] * 90]), play(wave)
    for memory in (calm, burst):  # before a burst the ten-minute mean is below half an hour's
        assert swings_of(memory).bursts
        assert 40.0 <= quantile(bursts_of(memory), 0.97) < 55.0
        assert 40.0 <= quantile(bursts_of(memory), 0.99) < 55.0  # the tail is a log-normal's
        assert quantile(bursts_of(memory), 0.5) == pytest.approx(10.0, rel=0.2)
    assert not swings_of(play(wave[:880])).bursts  # 90 levels are too few
    gentle = ([10.0] * 100 + [18.0] * 20) * 30
    assert not swings_of(play(gentle)).bursts


def test_a_load_whose_present_tells_what_comes_is_none_of_bursts():
    rise = list(np.linspace(10.0, 40.0, 240))
    ramps = play(([10.0] * 1200 + rise + [40.0] * 600 + rise[::-1]) * 4)
    assert swings_of(ramps).top_ratio > 2.0  # of the ten-minute mean
    assert not swings_of(ramps).bursts


def test_bursts_are_as_high_as_a_log_normal_sample_of_those_seen():
    heights = [25.0, 45.0] * 15
    waves = [level for height in heights for level in [10.0] * 100 + [height] * 20]
    memory = play(waves)
    cases = swings_of(memory).cases
    assert swings_of(memory).bursts
    one = bursts_of(memory)
    hot = RATIOS >= 1.75
    assert one.cases[~hot] == pytest.approx(cases[~hot])
    assert one.cases[hot].sum() == pytest.approx(cases[hot].sum())
    logs = np.log(RATIOS[hot])
    mean = (cases[hot] @ logs) / cases[hot].sum()
    assert (one.cases[hot] @ logs) / one.cases[hot].sum() == pytest.approx(mean, abs=0.1)
    peak = int(np.argmax(one.cases[hot]))
    assert (np.diff(one.cases[hot])[:peak] >= 0.0).all()  # two peaks were seen
    assert (np.diff(one.cases[hot])[peak:] <= 0.0).all()
    assert one.cases[RATIOS > 5.5].sum() > cases[RATIOS > 5.5].sum()


def test_a_few_bursts_alike_do_not_promise_that_the_next_is():
    """Those seen stand beside five cases of a spread of a quarter."""
    few = play(([10.0] * 580 + [40.0] * 20) * 2 + [10.0] * 60)
    often = play(([10.0] * 580 + [40.0] * 20) * 20 + [10.0] * 60)
    spread = []
    for memory in (few, often):
        hot = np.where(RATIOS >= 1.75, swings_of(memory).cases, 0.0)
        burst = np.where(RATIOS >= 1.75, bursts_of(memory).cases, 0.0) / hot.sum()
        mean = burst @ np.log(RATIOS)
        spread.append(math.sqrt(burst @ (np.log(RATIOS) - mean) ** 2))
    assert spread[0] > 0.15
    assert spread[1] < 0.75 * spread[0]


def test_what_has_not_been_seen_is_taken_to_grow():
    (only,) = outlooks(Memory(), 10.0, unknown=1.5)
    assert only.cases.sum() == POOLED_CASES
    assert only.rates_per_s[only.cases > 0] == pytest.approx([15.0], rel=0.06)
    assert len(only.rates_per_s) == len(RATIOS)


def test_noise_of_counting_is_no_growth():
    rng = np.random.default_rng(0)
    counted = rng.poisson(5.0 * 20.0, 3600) / 5.0  # the mean of 5 s
    memory = play(list(counted))
    level = np.array(memory.levels)
    plain = counted[: len(counted) // 10 * 10].reshape(-1, 10).mean(axis=1)[-len(level) :]
    assert level.std() < 0.6 * plain.std()
    assert level.mean() == pytest.approx(20.0, rel=0.02)


def test_what_follows_a_burst_is_not_what_follows_a_calm():
    wave = ([10.0] * 100 + [40.0] * 20) * 30
    calm, *_ = outlooks(play([*wave, *[10.0] * 60]), 10.0, unknown=1.0)
    burst, *_ = outlooks(play(wave), 40.0, unknown=1.0)
    share = [float(one.cases[RATIOS > 1.5].sum() / one.cases.sum()) for one in (calm, burst)]
    assert share[0] > 3.0 * share[1]


def test_a_surge_is_a_jump_beyond_the_mean_not_a_slow_rise():
    assert swings_of(Memory()).top_ratio == 1.0
    slow = list(np.linspace(10.0, 40.0, 4 * 3600))
    assert swings_of(play(slow)).top_ratio < 1.3
    bursts = swings_of(play(([10.0] * 280 + [40.0] * 20) * 12)).top_ratio
    assert 2.5 < bursts < 4.3  # 40 of a mean of 10 to 12


def test_the_pressure_follows_what_the_whole_fleet_misses():
    memory = with_pressure(Memory(), [("a", 0.0, 0.0), ("b", 0.0, 0.0)], 0.01)
    assert memory.pressure == FIRST_PRESSURE
    late = with_pressure(memory, [("a", 100.0, 11.0), ("b", 100.0, 1.0)], 0.01)
    assert late.pressure == pytest.approx(FIRST_PRESSURE + PRESSURE_STEP / 2 * 10.0)
    early = with_pressure(memory, [("a", 500.0, 0.0), ("b", 500.0, 0.0)], 0.01)
    assert early.pressure == pytest.approx(FIRST_PRESSURE - PRESSURE_STEP / 2 * 10.0)
    left = with_pressure(late, [("a", 100.0, 11.0)], 0.01)  # who left takes nothing back
    assert left.pressure == late.pressure
    again = with_pressure(late, [("a", 10.0, 1.0), ("b", 100.0, 1.0)], 0.01)  # began anew
    assert again.pressure == pytest.approx(late.pressure + PRESSURE_STEP / 2 * 0.9)
    silent = with_pressure(memory, [("b", 0.0, 0.0)], 0.01, {"a", "b"})
    back = with_pressure(silent, [("a", 100.0, 11.0), ("b", 100.0, 1.0)], 0.01, {"a", "b"})
    assert back.pressure == pytest.approx(late.pressure)  # what it missed meanwhile counts
    assert with_pressure(silent, [("b", 0.0, 0.0)], 0.01, {"b"}).counted == (("b", 0.0, 0.0),)
    new = with_pressure(memory, [("c", 50.0, 50.0)], 0.01)
    assert new.pressure == memory.pressure  # when it missed is not known
    assert with_pressure(memory, [("a", 1e6, 1e6)], 0.01).pressure == PRESSURE_HIGH
    assert json.loads(json.dumps(asdict(late)))["counted"] == [
        ["a", 100.0, 11.0],
        ["b", 100.0, 1.0],
    ]


def test_the_memory_does_not_grow_and_survives_json():
    memory = play([float(k % 50) for k in range(30_000)])
    assert len(memory.levels) < 200
    assert LEVEL_S == 10.0
    memory = with_need(with_need(memory, 1.0, 5, 60.0), 2.0, 3, 60.0)
    assert [one[1] for one in memory.needs] == [5, 3]
    assert with_need(memory, 3.0, 4, 60.0).needs == ((1.0, 5), (3.0, 4))
    assert with_need(memory, 62.0, 1, 60.0).needs == ((2.0, 3), (62.0, 1))
    assert Memory.from_dict(json.loads(json.dumps(asdict(memory)))) == memory
    assert replace(memory, margin=None).margin is None
