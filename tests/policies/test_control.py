"""The tick, scenario by scenario, and the policies behind the catalog."""

import json
import math
from dataclasses import replace

import pytest
from control_cases import (
    ALL,
    CHAT,
    FLEET_TICK,
    H100,
    REPLICA_TICK,
    SETTINGS,
    point,
    seen,
    settle,
)

from policies.catalog import POLICIES, make_policy
from policies.core.control import (
    decision_to_dict,
    fleet_load,
    present_point,
    state_from_dict,
    state_to_dict,
    tick,
)
from policies.core.errors import ConfigError
from policies.core.guard import GuardContext, guard, since
from policies.core.objective import (
    candidates,
    cheapest_feasible,
)
from policies.core.types import (
    SLO,
    ControlState,
    Load,
    Mode,
    Observation,
    Reason,
    ReplicaObservation,
)


def test_low_load_ends_on_one_replica_and_high_load_on_as_many_as_needed():
    low, _ = settle(point(4), rate=5.0)
    high, reasons = settle(point(1), rate=60.0)
    assert low.chosen.num_replicas == 1
    assert reasons[0] is Reason.SLO_AT_RISK
    assert high.chosen.num_replicas > 1
    assert high.reason is Reason.NO_BETTER_POINT
    assert high.predicted_chosen.feasible


def test_the_cap_falls_when_load_or_prompts_grow_and_rises_when_they_shrink():
    calm, _ = settle(point(), free=REPLICA_TICK, rate=4.0)
    busy, _ = settle(calm.chosen, free=REPLICA_TICK, rate=20.0)
    long, _ = settle(calm.chosen, free=REPLICA_TICK, rate=4.0, prompt_tokens=2500.0)
    again, _ = settle(busy.chosen, free=REPLICA_TICK, rate=4.0)
    caps = [one.chosen.max_num_active_seqs for one in (calm, busy, long, again)]
    assert caps[1] < caps[0]
    assert caps[2] < caps[0]
    assert caps[3] > caps[1]


def test_a_chosen_cap_holds_the_tpot_in_a_full_batch_and_the_next_one_does_not():
    box = candidates(point(), SETTINGS.bounds, REPLICA_TICK)
    choice = cheapest_feasible(H100, CHAT, SETTINGS.slo, box)
    larger = replace(choice.point, max_num_active_seqs=choice.point.max_num_active_seqs + 1)
    assert choice.feasible
    assert H100.full_batch_tpot_s(choice.point, CHAT, SETTINGS.slo) <= SETTINGS.slo.tpot_s
    assert H100.full_batch_tpot_s(larger, CHAT, SETTINGS.slo) > SETTINGS.slo.tpot_s


def test_power_limits_are_used_where_they_save():
    bounds = replace(SETTINGS.bounds, power_limits_watts=(300.0, 400.0, 500.0, 700.0))
    decision, _ = settle(point(), replace(SETTINGS, bounds=bounds), rate=5.0)
    assert decision.chosen.power_limit_watts == 300.0
    tight = replace(SETTINGS, bounds=bounds, slo=SLO(ttft_s=1.0, tpot_s=0.0125))
    decision, _ = settle(point(), replace(tight, bounds=replace(bounds, max_replicas=1)), rate=5.0)
    assert decision.chosen.power_limit_watts > 300.0


def test_fleet_and_replica_ticks_alone_reach_the_point_of_the_joint_tick():
    """One knob, one owner: the same function, asked twice, lands where one brain would."""
    joint, _ = settle(point(1), rate=60.0)
    where, fleet, own = point(1), ControlState(), ControlState()
    for i in range(60):
        now = 5.0 * i
        decision, fleet = tick(seen(now, where, rate=60.0), fleet, SETTINGS, H100, FLEET_TICK)
        where = decision.chosen
        one = replace(where, num_replicas=1)
        decision, own = tick(
            seen(now, one, rate=60.0 / where.num_replicas), own, SETTINGS, H100, REPLICA_TICK
        )
        where = replace(decision.chosen, num_replicas=where.num_replicas)
    assert where.num_replicas == joint.chosen.num_replicas
    assert where.max_num_active_seqs == pytest.approx(joint.chosen.max_num_active_seqs, abs=16)


def test_scale_down_waits_for_the_dwell_and_halves_at_most():
    state = ControlState(last_move_up_s=0.0)
    first, state = tick(seen(10.0, point(8, 180), rate=2.0), state, SETTINGS, H100, FLEET_TICK)
    assert first.chosen.num_replicas == 8
    later, state = tick(seen(31.0, point(8, 180), rate=2.0), state, SETTINGS, H100, FLEET_TICK)
    assert later.chosen.num_replicas == 4
    assert later.reason is Reason.CHEAPEST_FEASIBLE
    assert later.saving_ratio > 0.5
    assert state.last_move_down_s == 31.0
    soon, _ = tick(seen(40.0, point(4, 180), rate=2.0), state, SETTINGS, H100, FLEET_TICK)
    assert soon.reason is Reason.DWELL
    assert not soon.moves
    assert any("dwell: replicas" in note for note in soon.notes)


def test_scale_up_does_not_wait_for_the_long_dwell():
    state = ControlState(last_move_down_s=99.0)
    decision, _ = tick(seen(100.0, point(1), rate=60.0), state, SETTINGS, H100, FLEET_TICK)
    assert decision.reason is Reason.SLO_AT_RISK
    assert decision.chosen.num_replicas > 1


def test_a_backlog_asks_for_more_than_the_arrivals_do():
    quiet = fleet_load(seen(rate=10.0))
    behind = fleet_load(seen(rate=10.0, num_waiting=50.0))
    assert quiet.arrival_rate_per_s == 10.0
    assert behind.arrival_rate_per_s == 15.0


def test_load_weighs_lengths_by_rate_and_skips_what_is_not_a_number():
    busy = ReplicaObservation(
        replica="a", time_s=0.0, num_running=1, num_waiting=0, arrival_rate_per_s=3.0,
        prompt_tokens=100.0, output_tokens=10.0,
    )  # fmt: skip
    idle = replace(busy, replica="b", arrival_rate_per_s=1.0, prompt_tokens=500.0)
    broken = replace(busy, replica="c", arrival_rate_per_s=math.nan, output_tokens=math.inf)
    load = fleet_load(
        Observation(
            now_s=0, replicas=(busy, idle, broken), observed_replicas=3, requested_replicas=3
        )
    )
    assert load == Load(arrival_rate_per_s=4.0, prompt_tokens=200.0, output_tokens=10.0)
    assert fleet_load(seen(rate=0.0)) is None
    assert fleet_load(seen(output_tokens=None)) is None


def test_present_point_takes_the_smallest_cap_and_ignores_limits_that_are_not_ours():
    observation = seen(where=point(2, 64, 500.0))
    lower = replace(observation.replicas[0], max_num_active_seqs=32, power_limit_watts=400.0)
    observation = replace(observation, replicas=(lower, observation.replicas[1]))
    ours = replace(SETTINGS.bounds, power_limits_watts=(300.0, 700.0))
    assert present_point(observation, ours) == point(2, 32, 400.0)
    assert present_point(observation, SETTINGS.bounds) == point(2, 32, None)
    assert present_point(replace(observation, replicas=()), ours) == point(2, 256, None)


def test_no_traffic_goes_to_the_floor_through_the_dwell():
    state = ControlState(last_move_up_s=0.0)
    early, state = tick(seen(10.0, point(2, 40), rate=0.0), state, SETTINGS, H100, ALL)
    assert early.reason is Reason.NO_TRAFFIC
    assert early.chosen == point(2, 104)  # the cap may rise at once, a step of 64
    late, _ = tick(seen(40.0, point(2, 40), rate=0.0), state, SETTINGS, H100, FLEET_TICK)
    assert late.chosen == point(1, 40)


def test_stale_reports_lead_to_the_safe_point():
    observation = replace(seen(0.0, point(3, 16), rate=1.0), now_s=11.0)
    decision, _ = tick(observation, ControlState(), SETTINGS, H100, ALL)
    assert decision.reason is Reason.STALE
    assert decision.chosen == point(3, 256)
    empty = replace(observation, replicas=())
    assert tick(empty, ControlState(), SETTINGS, H100, ALL)[0].reason is Reason.STALE


def test_one_silent_replica_forbids_scaling_down_but_not_up():
    few, _ = tick(
        seen(0.0, point(4), rate=2.0, running=5), ControlState(), SETTINGS, H100, FLEET_TICK
    )
    assert few.chosen.num_replicas == 4
    assert any("no fresh report" in note for note in few.notes)
    many, _ = tick(seen(0.0, point(1), rate=60.0, running=2), ControlState(), SETTINGS, H100, ALL)
    assert many.chosen.num_replicas > 1


@pytest.mark.parametrize(
    "model", [None, replace(H100, residuals=replace(H100.residuals, samples=1))]
)
def test_without_a_trusted_model_the_tick_is_safe(model):
    decision, _ = tick(seen(0.0, point(3, 16)), ControlState(), SETTINGS, model, ALL)
    assert decision.reason is Reason.MODEL_UNTRUSTED
    assert decision.chosen == point(3, 256)
    late = seen(0.0, point(3, 16), ttft_s=5.0)
    decision, _ = tick(late, ControlState(), SETTINGS, model, ALL)
    assert decision.chosen == point(4, 256)  # no model, but the miss is measured


def test_unknown_lengths_are_those_of_the_last_decision_or_the_safe_point():
    blind = seen(5.0, point(2, 100), output_tokens=None)
    first, _ = tick(blind, ControlState(), SETTINGS, H100, ALL)
    assert first.reason is Reason.MODEL_UNTRUSTED
    _, state = tick(seen(0.0, point(2, 100)), ControlState(), SETTINGS, H100, ALL)
    second, _ = tick(blind, state, SETTINGS, H100, ALL)
    assert second.load == replace(CHAT, arrival_rate_per_s=10.0)


def test_a_measured_miss_overrules_the_model_for_a_while():
    slow = {"ttft_s": 3.0, "rate": 4.0}
    settled, _ = settle(point(), rate=4.0)
    where = settled.chosen
    decision, state = tick(seen(1000.0, where, **slow), ControlState(), SETTINGS, H100, FLEET_TICK)
    assert decision.reason is Reason.SLO_AT_RISK
    assert decision.chosen.num_replicas == 2
    where = decision.chosen
    again, state = tick(seen(1010.0, where, **slow), state, SETTINGS, H100, FLEET_TICK)
    assert not again.moves  # the window still shows the time before the move
    held, state = tick(seen(1100.0, where, rate=4.0), state, SETTINGS, H100, FLEET_TICK)
    assert not held.moves
    free, _ = tick(seen(1301.0, where, rate=4.0), state, SETTINGS, H100, FLEET_TICK)
    assert free.chosen.num_replicas == 1


def test_relief_of_a_replica_is_power_first_then_the_cap():
    bounds = replace(SETTINGS.bounds, power_limits_watts=(300.0, 400.0, 700.0))
    settings = replace(SETTINGS, bounds=bounds)
    own = point(1, 90, 300.0)
    decision, _ = tick(
        seen(0.0, own, rate=2.0, tpot_s=0.05), ControlState(), settings, H100, REPLICA_TICK
    )
    assert decision.chosen == point(1, 90, 400.0)
    own = settle(point(), free=REPLICA_TICK, rate=2.0)[0].chosen
    slower, _ = tick(
        seen(0.0, own, rate=2.0, tpot_s=0.05), ControlState(), SETTINGS, H100, REPLICA_TICK
    )
    cap = own.max_num_active_seqs
    assert slower.chosen.max_num_active_seqs == cap - cap // 4
    queueing, _ = tick(
        seen(0.0, own, rate=2.0, ttft_s=5.0), ControlState(), SETTINGS, H100, REPLICA_TICK
    )
    assert queueing.chosen.max_num_active_seqs == min(cap + cap // 4, 256)


def test_relief_does_not_throw_a_small_cap_to_the_floor_and_is_not_undone_at_once():
    late = {"rate": 2.0, "tpot_s": 0.05}
    own = point(1, 12)
    decision, state = tick(seen(0.0, own, **late), ControlState(), SETTINGS, H100, REPLICA_TICK)
    assert decision.chosen.max_num_active_seqs == 9
    undo, state = tick(seen(6.0, decision.chosen, rate=2.0), state, SETTINGS, H100, REPLICA_TICK)
    assert undo.chosen.max_num_active_seqs == 9
    undo, _ = tick(seen(31.0, decision.chosen, rate=2.0), state, SETTINGS, H100, REPLICA_TICK)
    assert undo.chosen.max_num_active_seqs > 9


def test_after_relief_the_fleet_shrinks_when_the_load_has_fallen_well_below_that_of_the_miss():
    slow = {"ttft_s": 3.0, "rate": 4.0}
    settled, _ = settle(point(), rate=4.0)
    decision, state = tick(
        seen(1000.0, settled.chosen, **slow), ControlState(), SETTINGS, H100, FLEET_TICK
    )
    assert decision.chosen.num_replicas == 2
    where = decision.chosen
    near, _ = tick(seen(1040.0, where, rate=2.1), state, SETTINGS, H100, FLEET_TICK)
    assert not near.moves
    missing = {"rate": 1.9, "ttft_s": 3.0}
    missed, _ = tick(seen(1040.0, where, **missing), state, SETTINGS, H100, FLEET_TICK)
    assert missed.chosen.num_replicas >= 2
    low, _ = tick(seen(1040.0, where, rate=1.9), state, SETTINGS, H100, FLEET_TICK)
    assert low.chosen.num_replicas == 1


def test_nothing_feasible_takes_the_least_bad_point_and_says_so():
    decision, _ = settle(point(), rate=5000.0)
    assert decision.reason is Reason.NO_FEASIBLE_POINT
    assert decision.chosen.num_replicas == 8
    strict = replace(SETTINGS, slo=SLO(ttft_s=1.0, tpot_s=0.004))
    decision, _ = settle(point(8), strict, rate=5.0)
    assert decision.reason is Reason.NO_FEASIBLE_POINT
    assert decision.chosen.num_replicas == 1


def test_in_overload_the_cap_is_the_one_that_drains_the_queue():
    """Below it the cap keeps the TPOT of a full batch; beyond it every request is late anyway."""
    caps = [
        settle(point(), free=REPLICA_TICK, rate=rate)[0].chosen.max_num_active_seqs
        for rate in (2.0, 6.0, 100.0)
    ]
    assert caps[0] > caps[1]
    assert caps[2] == SETTINGS.bounds.max_num_seqs


@pytest.mark.slow
def test_the_cap_does_not_jump_where_headroom_runs_out():
    """From the last feasible load to the first infeasible one the cap goes on where it was."""
    settled = {rate: settle(point(), free=REPLICA_TICK, rate=rate / 2)[0] for rate in range(10, 90)}
    first = next(r for r, d in settled.items() if d.reason is Reason.NO_FEASIBLE_POINT)
    before, after = (settled[rate].chosen.max_num_active_seqs for rate in (first - 1, first))
    assert abs(after - before) <= 0.1 * before


@pytest.mark.parametrize("mode", [Mode.ADVISORY, Mode.OFF])
def test_only_active_mode_acts(mode):
    settings = replace(SETTINGS, mode=mode)
    decision, state = tick(seen(0.0, point(), rate=60.0), ControlState(), settings, H100, ALL)
    assert decision.chosen == decision.present
    assert decision.proposed.num_replicas > 1
    assert state.last_move_up_s is None
    assert any("not acted on" in note for note in decision.notes)


def test_state_and_decision_survive_json():
    decision, state = tick(seen(0.0, point(), rate=60.0), ControlState(), SETTINGS, H100, ALL)
    assert state_from_dict(json.loads(json.dumps(state_to_dict(state)))) == state
    flat = json.loads(json.dumps(decision_to_dict(decision), allow_nan=False))
    assert flat["reason"] == "slo_at_risk"
    assert flat["chosen_num_replicas"] == decision.chosen.num_replicas
    assert flat["predicted_chosen_joules_per_request"] > 0
    assert all(not isinstance(value, dict) for value in flat.values())
    assert state_to_dict(ControlState())["last_decision"] is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"schema_version": 99},
        {"schema_version": 1, "last_move_up_s": "soon"},
        {"schema_version": 1, "last_decision": {"reason": "because"}},
    ],
)
def test_an_unreadable_state_is_a_fresh_one(data):
    assert state_from_dict(data) == ControlState()


def test_a_clock_that_jumped_back_does_not_freeze_the_policy():
    assert since(10.0, 500.0) == math.inf
    assert since(10.0, None) == math.inf
    assert since(10.0, 4.0) == 6.0
    context = GuardContext(
        now_s=10.0, settings=SETTINGS, free=ALL, state=ControlState(last_move_up_s=500.0)
    )
    assert guard(point(3), point(2), context).point.num_replicas == 3


def test_static_goes_to_its_point_inside_bounds():
    policy = make_policy("static", num_replicas=99, max_num_active_seqs=12)
    decision, _ = policy.decide(seen(0.0, point(2)), ControlState(), SETTINGS, ALL)
    assert decision.chosen == point(8, 12)
    assert (decision.reason, decision.policy) == (Reason.STATIC, "static")
    decision, _ = policy.decide(seen(0.0, point(2)), ControlState(), SETTINGS, FLEET_TICK)
    assert decision.chosen == point(8, 256)
    stays = make_policy("static", num_replicas=None)
    assert not stays.decide(seen(0.0, point(2, 7)), ControlState(), SETTINGS, ALL)[0].moves


def test_ray_default_asks_rays_function_and_survives_it():
    policy = make_policy("ray_default", desired_num_replicas=lambda _: 5)
    decision, _ = policy.decide(seen(0.0, point(2, 7)), ControlState(), SETTINGS, ALL)
    assert decision.chosen == point(5, 256)
    assert decision.reason is Reason.RAY_DEFAULT
    broken = make_policy("ray_default", desired_num_replicas=lambda _: 1 // 0)
    decision, _ = broken.decide(seen(0.0, point(2, 7)), ControlState(), SETTINGS, ALL)
    assert decision.reason is Reason.ERROR
    assert decision.chosen == point(2, 7)


def test_energy_slo_is_the_tick_while_it_does_not_know_the_lengths_by_their_bins():
    policy = make_policy("energy_slo", model=H100)
    args = (seen(0.0, point(), rate=60.0), ControlState(), SETTINGS)
    decision, state = policy.decide(*args, ALL)
    plain, plain_state = tick(*args, H100, ALL)
    assert decision == plain
    assert replace(state, memory=plain_state.memory) == plain_state


def test_the_catalog_names_what_it_knows():
    options = {
        "energy_slo": {"model": None}, "static": {}, "ray_default": {"desired_num_replicas": len}
    }  # fmt: skip
    assert set(options) <= set(POLICIES)  # the peers stand in tests/peers
    for name, given in options.items():
        assert make_policy(name, **given).name == name
    with pytest.raises(ConfigError, match=r"'greedy'; allowed: energy_slo, static, ray_default"):
        make_policy("greedy")
    with pytest.raises(ConfigError, match="unknown option replicas; allowed: num_replicas"):
        make_policy("static", replicas=3)
    with pytest.raises(ConfigError, match="model"):
        make_policy("energy_slo")
