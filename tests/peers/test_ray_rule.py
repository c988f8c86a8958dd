"""Ray's rule on simulated time: what Ray documents, and what Ray's own aggregation says."""

from __future__ import annotations

import time

import numpy as np
import pytest
from peer_cases import FLEET, REPLICA, ask, fleet, replica

from policies.core.errors import ConfigError
from policies.core.types import Observation, Reason
from policies.ray_default import RayDefault
from serve_app.simulator.ray_rule import RayOptions, RayRule


def seen(now_s, ongoing, requested=None, **changes):
    """Reports with these ongoing requests, split into running and waiting."""
    return Observation(
        now_s=now_s,
        replicas=tuple(
            replica(now_s, str(k), num_running=count - count // 3, num_waiting=count // 3)
            for k, count in enumerate(ongoing)
        ),
        observed_replicas=len(ongoing),
        requested_replicas=len(ongoing) if requested is None else requested,
        **changes,
    )


def test_the_defaults_are_rays():
    from ray.serve.config import AutoscalingConfig

    ours, rays = RayRule()._config, AutoscalingConfig()
    for name in (
        "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s", "upscaling_factor",
        "downscaling_factor", "look_back_period_s", "aggregation_function", "policy",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(rays, name)


def test_ten_ongoing_on_one_replica_become_five_replicas_after_the_delay():
    rule = RayRule()
    wanted = [rule(seen(float(t), [10])) for t in range(32)]
    assert wanted[:30] == [1] * 30
    assert wanted[30] == 5  # 10 / target 2, 30 s after the first wish
    assert wanted[31] == 1  # had nobody acted on it, the delay starts anew


def test_it_goes_down_only_after_ten_minutes_and_a_rise_starts_the_wait_anew():
    rule = RayRule(RayOptions(look_back_period_s=1.0))
    wanted = [rule(seen(float(t), [1, 1, 1, 1])) for t in range(601)]
    assert wanted[:600] == [4] * 600
    assert wanted[600] == 2
    rule = RayRule(RayOptions(look_back_period_s=1.0))
    for t in range(500):
        assert rule(seen(float(t), [1, 1, 1, 1])) == 4
    assert rule(seen(500.0, [4, 4, 4, 4])) == 4  # one look upwards
    wanted = [rule(seen(501.0 + t, [1, 1, 1, 1])) for t in range(601)]
    assert wanted[:600] == [4] * 600
    assert wanted[600] == 2


def test_factors_scale_the_difference():
    at_once = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    assert RayRule(RayOptions(**at_once))(seen(0.0, [30, 30])) == 30
    assert RayRule(RayOptions(upscaling_factor=0.5, **at_once))(seen(0.0, [30, 30])) == 16
    assert RayRule(RayOptions(downscaling_factor=0.5, **at_once))(seen(0.0, [1] * 10)) == 8
    assert RayRule(RayOptions(target_ongoing_requests=20, **at_once))(seen(0.0, [30, 30])) == 3


def test_the_mean_is_weighted_by_time_over_the_look_back():
    rule = RayRule(RayOptions(look_back_period_s=10.0))
    for t in range(10):
        rule(seen(float(t), [6]))
    rule(seen(10.0, [16]))
    # The samples of 1..9 s hold for 1 s each; the newest, at the time of the look, for Ray's 1 ms.
    assert rule.ongoing_requests() == pytest.approx((9 * 6 + 16 * 1e-3) / (9 + 1e-3))
    same = Observation(
        now_s=14.0, replicas=seen(10.0, [16]).replicas, observed_replicas=1, requested_replicas=1
    )
    rule(same)  # an old report: its value holds until now
    assert rule.ongoing_requests() == pytest.approx((9 * 6 + 4 * 16) / 13)


def test_what_waits_for_no_replica_counts_and_zero_replicas_start_at_once():
    rule = RayRule(RayOptions(upscale_delay_s=0.0))
    assert rule(seen(0.0, [4], num_queued=6.0)) == 5
    cold = Observation(
        now_s=0.0, replicas=(), observed_replicas=0, requested_replicas=0, num_queued=3.0
    )
    assert RayRule()(cold) == 1


def test_the_total_is_what_ray_makes_of_each_replicas_own_series():
    """The same samples, one series per replica, merged by Ray itself."""
    from ray.serve._private.common import TimeStampedValue

    draw, look_back_s = np.random.default_rng(5), 12.0
    rule, series = RayRule(RayOptions(look_back_period_s=look_back_s)), {}
    names, compared = {"a": 0}, 0
    for tick in range(400):
        now_s = float(tick)
        if draw.random() < 0.15:
            letter = "abcdef"[int(draw.integers(6))]
            if letter in names and len(names) > 1:
                del names[letter]  # its past goes with it, also when the name comes back
                series.pop(letter)
            else:
                names[letter] = tick
        counts = {name: int(draw.integers(0, 20)) for name in names}
        for name, count in counts.items():
            kept = [s for s in series.get(name, []) if s.timestamp > now_s - look_back_s]
            series[name] = [*kept, TimeStampedValue(now_s, float(count))]
        rule(
            Observation(
                now_s=now_s,
                replicas=tuple(
                    replica(now_s, name, num_running=float(count)) for name, count in counts.items()
                ),
                observed_replicas=len(names),
                requested_replicas=len(names),
            )
        )
        rays = rule._aggregate(rule._holder, list(series.values()))
        assert rule.ongoing_requests() == pytest.approx(rays, rel=1e-12)
        compared += len(names) > 1
    assert compared > 100


def test_the_clock_of_the_process_is_left_alone():
    import ray.serve._private.autoscaling_state as state
    import ray.serve.autoscaling_policy as policy

    rule = RayRule()
    rule(seen(12345.0, [3]))
    assert policy.time is time
    assert state.time is time
    assert rule._decide.__globals__["time"].time() == 12345.0
    other = RayRule()
    other(seen(1.0, [3]))
    assert rule._decide.__globals__["time"].time() == 12345.0


def test_options_that_ray_refuses_are_named():
    with pytest.raises(ConfigError, match="target_ongoing_requests"):
        RayRule(RayOptions(target_ongoing_requests=-1.0))
    with pytest.raises(ConfigError, match="aggregation|median"):
        RayRule(RayOptions(aggregation_function="median"))


def test_as_a_policy_it_is_asked_by_the_fleet_alone():
    policy = RayDefault(desired_num_replicas=RayRule(RayOptions(upscale_delay_s=2.0)))
    for t in range(3):
        for _ in range(5):  # replicas' own ticks, which see other numbers
            decision = ask(policy, fleet(float(t), num_running=90.0), REPLICA)
            assert not decision.moves
        decision = ask(policy, fleet(float(t), num_running=10.0), FLEET)
    assert decision.reason is Reason.RAY_DEFAULT
    assert decision.chosen.num_replicas == 5
    assert decision.chosen.power_limit_watts is None


def test_a_simulated_day_asks_for_seconds():
    """100 us is the aim on an idle core."""
    rule, looks = RayRule(), [seen(float(t), [3, t % 5, 7, 1, 2, 3, 4, 5]) for t in range(2000)]
    begin_s = time.perf_counter()
    for look in looks:
        rule(look)
    assert (time.perf_counter() - begin_s) / len(looks) < 500e-6
