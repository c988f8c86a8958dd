"""Windows, percentiles and attainment."""

import math
import random

import pytest

from policies.core.errors import ConfigError
from policies.core.slo import attainment_ratio, meets, percentile, tightened
from policies.core.types import SLO
from policies.core.window import Window


def test_nearest_rank_returns_a_sample():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, q) for q in (0.2, 0.21, 0.5, 0.99, 1.0)] == [1.0, 2.0, 3.0, 5.0, 5.0]
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([], 0.5) is None


@pytest.mark.parametrize("q", [0.0, -1.0, 1.01, math.nan])
def test_percentile_refuses_a_wrong_share(q):
    with pytest.raises(ConfigError, match="allowed"):
        percentile([1.0], q)


def test_meets_needs_both_targets_and_a_first_token():
    slo = SLO(ttft_s=1.0, tpot_s=0.1)
    assert meets(slo, 1.0, 0.1)
    assert meets(slo, 0.5, None)
    assert not meets(slo, 1.01, 0.01)
    assert not meets(slo, 0.5, 0.11)
    assert not meets(slo, None, 0.01)
    assert not meets(slo, math.nan, 0.01)


def test_attainment_counts_what_never_completed_as_a_miss():
    slo = SLO(ttft_s=1.0, tpot_s=0.1)
    completed = [(0.5, 0.05), (2.0, 0.05), (0.5, None)]
    assert attainment_ratio(slo, completed, 3) == pytest.approx(2 / 3)
    assert attainment_ratio(slo, completed, 8) == pytest.approx(2 / 8)
    assert attainment_ratio(slo, [], 0) is None


def test_tightened_shrinks_both_targets():
    assert tightened(SLO(ttft_s=1.0, tpot_s=0.1), 0.1) == SLO(
        ttft_s=0.9, tpot_s=pytest.approx(0.09)
    )


def test_window_forgets_by_age_and_by_number():
    window = Window(10.0, max_samples=3)
    for at in (0.0, 1.0, 2.0, 3.0):
        window.add(at, at)
    assert window.values(3.0) == [1.0, 2.0, 3.0]
    assert window.values(12.5) == [3.0]
    assert window.mean(12.5) == 3.0
    assert window.count(20.0) == 0
    assert window.mean(20.0) is None
    assert window.percentile(0.5, 20.0) is None


def test_window_keeps_time_order_when_samples_come_late():
    ordered, shuffled = Window(30.0), Window(30.0)
    times = [i * 0.1 for i in range(200)]
    for at in times:
        ordered.add(at, at)
    rng = random.Random(1)
    late = sorted(times, key=lambda at: at + rng.uniform(0, 1))
    for at in late:
        shuffled.add(at, at)
    assert shuffled.values(20.0) == ordered.values(20.0)


def test_rate_of_a_young_window_uses_the_time_it_has_seen():
    window = Window(60.0)
    window.add(100.0)
    assert window.rate_per_s(100.0) == 1.0  # the floor of one second
    for _ in range(19):
        window.add(102.0)
    assert window.rate_per_s(104.0) == pytest.approx(20 / 4)
    assert window.rate_per_s(160.0) == pytest.approx(20 / 60)
    assert window.rate_per_s(163.0) == 0.0


def test_rate_counts_silence_from_the_first_look():
    window = Window(60.0)
    assert window.rate_per_s(0.0) == 0.0
    window.add(9.0)
    window.add(10.0)
    assert window.rate_per_s(10.0) == pytest.approx(0.2)


def test_rate_survives_the_sample_limit():
    window = Window(60.0, max_samples=100)
    for i in range(6000):
        window.add(i * 0.01)
    assert window.rate_per_s(59.99) == pytest.approx(100.0, rel=0.02)


def test_window_refuses_nonsense():
    window = Window(10.0)
    window.add(math.nan)
    window.add(1.0, math.inf)
    assert window.count(1.0) == 0
    for horizon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="horizon_s"):
            Window(horizon)
    with pytest.raises(ConfigError, match="max_samples"):
        Window(1.0, max_samples=0)
