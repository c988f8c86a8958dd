"""The fleet edge against Ray's own context class: what it sees, what it answers, that it never raises."""

import json
import math
import re

import pytest
from fleet_cases import BINS, but, context, replica_id, stats, told
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingPolicy
from small_model import MODEL

import serve_app.ray_policy
from policies.core.control import state_from_dict, state_to_dict
from serve_app.deciders import load_profile
from serve_app.fleet_reports import latest_reports
from serve_app.ray_policy import EnergyPolicy, observe
from serve_app.replica_report import KEY, VALUES, written


def policy(**energy):
    return EnergyPolicy(settings=energy, profile=MODEL.to_dict())


def test_more_load_than_one_replica_holds_adds_replicas():
    wanted, state = policy()(context([stats(rate=30.0)]))
    assert wanted > 1
    assert json.dumps(state)  # Ray keeps it: plain data


def test_a_light_load_needs_one_replica_after_the_dwell():
    pick = policy(policy={"dwell_down_s": 0.0})
    state = {}
    for tick in range(30):
        wanted, state = pick(
            context([stats(rate=0.1), stats(rate=0.1)], now_s=1000.0 + 10 * tick, state=state)
        )
    assert wanted == 1


def test_the_first_ticks_hold_the_target():
    pick = policy()
    assert pick(context([], target=3))[0] == 3
    assert policy()(context([{}], target=2))[0] == 2


def test_stale_reports_never_scale_down():
    pick = policy(policy={"dwell_down_s": 0.0})
    wanted, _ = pick(context([stats(rate=0.0), stats(rate=0.0)], age_s=60.0))
    assert wanted == 2


def test_requests_in_rays_queue_count_as_waiting():
    seen = context([stats(), stats()])
    seen._total_queued_requests_value = 10.0
    observation = observe(seen, latest_reports(seen), 1000.0)
    assert [replica.num_waiting for replica in observation.replicas] == [5.0, 5.0]


def test_they_are_told_to_the_policy_as_waiting_for_a_replica_too():
    seen = context([stats(), stats()])
    seen._total_queued_requests_value = 10.0
    observation = observe(seen, latest_reports(seen), 1000.0)
    assert (observation.num_queued, observation.pool_replicas) == (10.0, 2)


# ---- the joint policy


def last_decision(state):
    return state["jouleserve"]["last_decision"]


def test_reports_with_bins_let_the_joint_policy_decide():
    wanted, state = policy()(context([told(rate=9.0)]))
    (note,) = last_decision(state)["notes"]
    found = re.match(r"load 9.00/s, margin 0.00, need (\d+)", note)
    assert wanted == int(found[1]) > 1
    assert state["jouleserve"]["memory"]["prompt_bins"] == pytest.approx(BINS["prompt_bins"])
    _, without = policy()(context([stats(rate=9.0)]))
    assert not last_decision(without)["notes"]


def test_what_is_learned_survives_as_json():
    pick, state = policy(), {}
    for tick in range(40):
        _, state = pick(context([told(rate=2.0)], now_s=1000.0 + tick, state=state))
        state = json.loads(json.dumps(state))
    memory = state_from_dict(state["jouleserve"]).memory
    assert len(memory.levels) == 3  # of 10 s each
    assert memory.levels == pytest.approx([2.0] * 3)
    assert memory.first_replicas == 1
    control = state_from_dict(state["jouleserve"])
    assert state_from_dict(json.loads(json.dumps(state_to_dict(control)))) == control


def test_asleep_it_wakes_for_a_request_and_not_before():
    pick = policy()
    asleep = context([], target=0)
    asleep.capacity_adjusted_min_replicas = 0
    assert pick(asleep)[0] == 0
    asked = context([], target=0, now_s=1001.5)
    asked.capacity_adjusted_min_replicas = 0
    asked._total_queued_requests_value = 3.0
    wanted, state = pick(asked)
    assert wanted == 1
    assert last_decision(state)["reason"] == "slo_at_risk"
    starting = context([], target=1, now_s=1003.0)  # asked for, not there yet
    assert pick(starting)[0] == 1


def test_it_falls_asleep_when_nothing_has_come_for_long():
    pick, state, counts = policy(policy={"cold_start_s": 30.0}), {}, []
    for tick in range(120):
        rate = 1.0 if tick == 0 else 0.0
        seen = context([told(rate, num_running=rate)], now_s=1000.0 + 5 * tick, state=state)
        seen.capacity_adjusted_min_replicas = 0
        wanted, state = pick(seen)
        counts.append(wanted)
    # A start costs twice the idle draw for 30 s: as much as 60 s of idling.
    assert counts == [1] * 13 + [0] * 107


def test_asleep_the_slo_and_mode_that_were_in_force_still_are():
    pick = policy(slo={"ttft_ms": 1000.0})
    pick(context([but(told(), slo_ttft_s=0.25, mode=2.0)]))
    settings = pick._settings(context([], target=0), {})
    assert (settings.slo.ttft_s, settings.bounds.max_num_seqs) == (0.25, 64)
    fresh = policy(slo={"ttft_ms": 700.0})._settings(context([], target=0), {})
    assert (fresh.slo.ttft_s, fresh.bounds.max_replicas) == (0.7, 8)


def test_how_long_decisions_take_is_kept_and_logged(caplog):
    pick = policy()
    pick(context([told(rate=2.0)], now_s=1000.0))
    pick(context([told(rate=2.0)], now_s=1000.5))  # not evaluated: too soon
    _, state = pick(context([told(rate=2.0)], now_s=1001.0))
    times = state["jouleserve_decision_s"]
    assert times["count"] == 2
    assert 0.0 < times["last_s"] <= times["max_s"] < 1.0
    assert times["max_s"] / 2 <= times["mean_s"] <= times["max_s"]


def test_it_goes_on_from_the_state_that_it_is_given():
    """Its own, without reading it; another one, as after a start of the controller, by reading."""
    pick = policy()
    _, state = pick(context([told(rate=2.0)], now_s=1000.0))
    _, kept = pick(context([told(rate=2.0)], now_s=1001.0, state=state))
    _, read = pick(context([told(rate=2.0)], now_s=1002.0, state=json.loads(json.dumps(kept))))
    seen = [state_from_dict(one["jouleserve"]).memory.level_count for one in (state, kept, read)]
    assert seen == [1, 2, 3]
    _, fresh = pick(context([told(rate=2.0)], now_s=1003.0))
    assert state_from_dict(fresh["jouleserve"]).memory.level_count == 1


def test_the_budget_and_the_router_of_the_service_reach_the_policy(monkeypatch):
    seen = []
    real = serve_app.ray_policy.policy_for

    def spy(*given):
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(serve_app.ray_policy, "policy_for", spy)
    energy = {"policy": {"cold_start_s": 90.0}}
    pick = EnergyPolicy(settings=energy, profile=MODEL.to_dict(), packed=True)
    values = [but(told(), max_num_batched_tokens=n) for n in (8192.0, 4096.0, math.nan)]
    pick(context(values))
    options = seen[0].options
    assert (options.packed, options.max_num_batched_tokens) == (True, 4096)
    assert options.cold_start_s == 90.0
    policy()(context([told()]))
    assert not seen[1].options.packed
    assert seen[1].options.max_num_batched_tokens == 2048


def limits_told(least, most, cap=math.nan, budgets=(math.nan, math.nan)):
    """What `_settings` makes of two replicas, the second of which can set these limits."""
    ours, theirs = ({"fleet_budget_watts": one} for one in budgets)
    first = but(told(), least_limit_watts=200.0, most_limit_watts=600.0, **ours)
    second = but(
        told(), least_limit_watts=least, most_limit_watts=most, max_limit_watts=cap, **theirs
    )
    profile = load_profile("llama-3.1-8b-instruct@h100").to_dict()
    policy = EnergyPolicy(profile=profile)
    seen = context([first, second])
    return policy._settings(seen, latest_reports(seen)).bounds


def test_the_limits_that_every_replica_can_set_reach_the_fleets_policy():
    all_of_them = (200.0, 250.0, 300.0, 350.0, 400.0, 450.0, 500.0, 550.0, 600.0)
    assert limits_told(100.0, 700.0).power_limits_watts == all_of_them
    assert limits_told(300.0, 400.0).power_limits_watts == (300.0, 350.0, 400.0)
    assert limits_told(300.0, 400.0).max_limit_watts is None
    assert limits_told(300.0, 450.0, cap=430.0).max_limit_watts == 430.0
    assert limits_told(math.nan, math.nan).power_limits_watts == ()  # one cannot set any


def test_the_fleets_power_budget_bounds_its_replicas_where_limits_can_be_set():
    kept = limits_told(300.0, 600.0, budgets=(1200.0, 1200.0))
    assert (kept.fleet_budget_watts, kept.max_replicas) == (1200.0, 4)
    assert limits_told(100.0, 600.0, budgets=(1200.0, 1200.0)).max_replicas == 6
    # An update is on its way: the stricter one.
    assert limits_told(100.0, 600.0, budgets=(1400.0, 1000.0)).max_replicas == 5
    assert limits_told(100.0, 600.0, budgets=(1200.0, math.nan)).max_replicas == 6
    lost = limits_told(math.nan, math.nan, budgets=(1200.0, 1200.0))
    assert (lost.fleet_budget_watts, lost.max_replicas) == (None, 8)


def test_in_approve_mode_the_fleet_has_what_an_operator_said_yes_to():
    waiting = {"policy": {"mode": "approve"}}
    load = but(told(rate=9.0), mode=2.0)
    wanted, state = policy(**waiting)(context([load]))
    assert wanted == 1
    assert last_decision(state)["proposed"]["num_replicas"] > 1
    assert last_decision(state)["notes"][-1] == "approve: waits for an operator"
    assert policy(**waiting)(context([but(load, approved_replicas=3.0)]))[0] == 3
    assert policy(**waiting)(context([but(load, approved_replicas=99.0)]))[0] == 8  # Ray's bounds
    # A yes from before means nothing to a policy that acts by itself.
    active = but(told(rate=1.0), approved_replicas=3.0)
    assert policy()(context([active]))[0] == 1


def test_advisory_and_off_hold():
    for mode, code in (("advisory", 1.0), ("off", 0.0)):
        values = but(stats(rate=30.0), mode=code)
        assert policy(policy={"mode": mode})(context([values]))[0] == 1


def test_a_live_slo_reaches_the_controller_with_the_reports():
    slack = but(stats(rate=4.0), slo_ttft_s=60.0, slo_tpot_s=10.0)
    tight = but(stats(rate=4.0), slo_ttft_s=0.3, slo_tpot_s=0.03)
    assert policy()(context([tight]))[0] > policy()(context([slack]))[0]


SLOW = {"step_time_ratio": 1.8}


def test_a_fleet_whose_steps_are_slower_than_the_profile_needs_more_replicas():
    rate = 9.0
    plain = policy()(context([stats(rate), stats(rate), stats(rate)]))[0]
    late, fits = but(stats(rate), **SLOW), but(stats(rate), step_time_ratio=1.0)
    slow = policy()(context([late, late, late]))[0]
    odd = policy()(context([late, fits, fits]))[0]
    assert slow > plain
    assert odd == plain  # one replica far from the others does not drag the fleet


def test_a_stale_report_has_no_say_in_the_correction():
    seen = context([stats(9.0), stats(9.0)])
    late = but(stats(9.0), at_bound=1.0, **SLOW)[KEY]
    seen.raw_metrics[KEY][replica_id(0)] = [TimeStampedValue(900.0, late)]
    _, state = policy()(seen)
    assert not any("live steps" in note for note in state["jouleserve"]["last_decision"]["notes"])


def test_the_fleets_decision_says_that_its_model_is_corrected_or_not_acted_on():
    def last(**learned):
        _, state = policy()(context([but(stats(9.0), **learned)]))
        return state["jouleserve"]["last_decision"]

    assert last(**SLOW)["notes"][-1] == (
        "model corrected by live steps: step time x1.80, step energy x1.00"
    )
    beyond = last(step_time_ratio=2.0, at_bound=1.0)
    assert beyond["reason"] == "model_untrusted"
    assert beyond["chosen"]["num_replicas"] == 1  # no replica fewer, none more
    assert "model not acted on" in beyond["notes"][-1]


def test_it_evaluates_once_a_second_at_most():
    pick = policy()
    high, _ = pick(context([stats(rate=30.0)], now_s=1000.0))
    same, _ = pick(context([stats(rate=0.01)], now_s=1000.9))
    assert same == high


def test_ray_default_is_rays_own_rule():
    pick = EnergyPolicy(settings={"policy": {"name": "ray_default"}}, profile=None)
    seen = context([stats(rate=1.0)])
    seen._total_num_requests_value = 7.0  # Ray's target is 2 ongoing requests per replica
    assert pick(seen)[0] == 4


def test_ray_can_pickle_it_and_hand_it_its_kwargs():
    kwargs = {"settings": {"slo": {"ttft_ms": 900}}, "profile": MODEL.to_dict()}
    wrapped = AutoscalingPolicy(
        policy_function="serve_app.ray_policy:EnergyPolicy", policy_kwargs=kwargs
    )
    assert wrapped.get_policy()(**wrapped.policy_kwargs)(context([stats()]))[0] >= 1


def test_wrong_kwargs_name_the_key():
    with pytest.raises(Exception, match="energy.slo.ttft_mss"):
        EnergyPolicy(settings={"slo": {"ttft_mss": 1}})


anything = st.one_of(st.floats(), st.integers(-(10**9), 10**9), st.just(math.nan))
any_report = st.lists(anything, min_size=len(VALUES), max_size=len(VALUES)).map(written)
any_number = st.one_of(anything, st.integers()).map(lambda value: {KEY: value})


@given(st.lists(st.one_of(any_report, any_number, st.just({})), max_size=5), anything)
def test_nothing_that_replicas_say_makes_it_raise(per_replica, now_s):
    wanted, state = policy()(context(per_replica, now_s=float(now_s)))
    assert isinstance(wanted, int)
    assert isinstance(state, dict)


@given(
    st.dictionaries(st.sampled_from(VALUES), anything),
    st.dictionaries(st.sampled_from(VALUES), anything),
)
def test_no_value_of_a_good_report_makes_it_raise(first, second):
    wanted, state = policy()(context([but(told(), **first), but(stats(), **second), told(5.0)]))
    assert isinstance(wanted, int)
    assert "jouleserve" in state or wanted == 3
