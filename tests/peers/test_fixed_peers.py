"""Fixed fleets, fixed limits, nailed knobs, the catalog; and that no peer ever raises."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_cases import ALL, CHAT, FLEET, H100, LIMITS, REPLICA, SETTINGS, ask, fleet, replica

from policies.catalog import POLICIES, make_policy
from policies.core.errors import ConfigError
from policies.core.types import (
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Load,
    Mode,
    Observation,
    OperatingPoint,
    Reason,
    ReplicaObservation,
)
from policies.energy_slo import EnergySlo
from policies.fixed_limit import FixedLimit
from policies.only import Only
from policies.ray_default import RayDefault
from policies.sim.arrivals import TraceRow
from policies.static import Static
from policies.static_peak import StaticPeak, peak_load, replicas_for_peak
from serve_app.simulator.ray_rule import RayOptions, RayRule

OPTIONS = {
    "energy_slo": {"model": H100},
    "static": {},
    "ray_default": {"desired_num_replicas": lambda _: 3},
    "static_peak": {"num_replicas": 3},
    "fixed_limit": {"inner": Static(num_replicas=3), "power_limit_watts": 350.0},
    "wva": {"model": H100},
    "pals": {"model": H100},
    "dynamollm": {"model": H100},
    "throttllem": {"model": H100},
    "agft": {"model": H100},
    "only": {"inner": EnergySlo(model=H100), "knobs": frozenset({Knob.NUM_REPLICAS})},
}


def row(arrival_s, prompt=100, output=10):
    return TraceRow(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output)


def test_the_peak_of_a_trace_is_its_fullest_window():
    trace = [row(float(t), prompt=100 + 2 * t) for t in range(100)]
    trace += [row(100.0 + 0.1 * k) for k in range(50)] + [row(400.0)]
    peak = peak_load(trace, window_s=10.0)
    # The five busy seconds and the five before them: 50 + 5 requests.
    assert peak.arrival_rate_per_s == pytest.approx(5.5)
    assert peak.prompt_tokens == pytest.approx(sum(r.prompt_tokens for r in trace) / len(trace))
    with pytest.raises(ConfigError, match="empty"):
        peak_load([])
    with pytest.raises(ConfigError, match="window_s"):
        peak_load(trace, window_s=0.0)


@pytest.mark.parametrize("limit", [None, 310.0])
def test_the_fleet_for_a_peak_is_the_smallest_that_holds(limit):
    peak = Load(arrival_rate_per_s=90.0, **CHAT)
    count = replicas_for_peak(H100, peak, SETTINGS, limit)
    watts = None if limit is None else 400.0

    def holds(replicas):
        point = OperatingPoint(
            num_replicas=replicas, max_num_active_seqs=256, power_limit_watts=watts
        )
        return H100.predict(point, peak, SETTINGS.slo).feasible

    assert count > 1
    assert holds(count) and not holds(count - 1)
    assert replicas_for_peak(H100, replace(peak, arrival_rate_per_s=1e5), SETTINGS) == 8


def test_a_static_peak_fleet_stands():
    policy = StaticPeak(num_replicas=5, power_limit_watts=450.0)
    decision = ask(policy, fleet(0.0, 2, 9.0, max_num_active_seqs=3), ALL)
    assert decision.chosen == OperatingPoint(
        num_replicas=5, max_num_active_seqs=256, power_limit_watts=500.0
    )
    assert ask(policy, fleet(0.0, 2, 9.0), FLEET).chosen.num_replicas == 5
    alone = ask(policy, fleet(0.0, 1, 9.0), REPLICA).chosen
    assert (alone.num_replicas, alone.power_limit_watts) == (1, 500.0)
    for wrong in (0, -1, math.nan):
        with pytest.raises(ConfigError, match="num_replicas"):
            StaticPeak(num_replicas=wrong)


def test_a_fixed_limit_lies_on_what_another_policy_scales():
    rule = RayRule(RayOptions(upscale_delay_s=0.0, target_ongoing_requests=4.0))
    policy = FixedLimit(inner=RayDefault(desired_num_replicas=rule), power_limit_watts=300.0)
    decision = ask(policy, fleet(0.0, 2, 9.0, num_running=10.0), FLEET)
    assert decision.chosen.num_replicas == 5
    assert (decision.policy, decision.reason) == ("fixed_limit", Reason.RAY_DEFAULT)
    decision = ask(policy, fleet(0.0, 1, 9.0, max_num_active_seqs=9), REPLICA)
    assert decision.chosen == OperatingPoint(
        num_replicas=1, max_num_active_seqs=256, power_limit_watts=300.0
    )
    high = FixedLimit(inner=Static(), power_limit_watts=9999.0)
    assert ask(high, fleet(), REPLICA).chosen.power_limit_watts is None
    with pytest.raises(ConfigError, match="power_limit_watts"):
        FixedLimit(inner=Static(), power_limit_watts=0.0)


INNER = EnergySlo(model=H100)


def test_only_replicas_plans_with_the_full_batch_at_full_power():
    policy = Only(inner=INNER, knobs={Knob.NUM_REPLICAS})
    seen = fleet(0.0, 1, 60.0)
    plain = replace(
        SETTINGS, bounds=replace(SETTINGS.bounds, power_limits_watts=(), min_active_seqs=256)
    )
    alone = ask(INNER, seen, FLEET, settings=plain).chosen.num_replicas
    decision = ask(policy, seen, FLEET)
    assert decision.chosen.num_replicas == alone > 1
    here = ask(policy, fleet(0.0, 1, 9.0, max_num_active_seqs=9, power_limit_watts=300.0), REPLICA)
    assert (here.chosen.max_num_active_seqs, here.chosen.power_limit_watts) == (256, None)


def test_only_the_limit_keeps_its_replicas_and_batch():
    policy = Only(inner=INNER, knobs=("power_limit",), num_replicas=3)
    decision = ask(policy, fleet(0.0, 1, 60.0), FLEET)
    assert decision.chosen.num_replicas == 3
    decision = ask(policy, fleet(0.0, 1, 2.0, max_num_active_seqs=20), REPLICA)
    assert decision.chosen.max_num_active_seqs == 256
    assert decision.chosen.power_limit_watts in LIMITS
    both = Only(inner=INNER, knobs={Knob.POWER_LIMIT, Knob.MAX_NUM_ACTIVE_SEQS}, num_replicas=3)
    full = ask(INNER, fleet(0.0, 1, 2.0), REPLICA).chosen
    assert ask(both, fleet(0.0, 1, 2.0), REPLICA).chosen == full


def test_only_the_cap_keeps_a_given_limit():
    slow = replace(SETTINGS, slo=replace(SETTINGS.slo, tpot_s=0.02))
    policy = Only(
        inner=INNER, knobs={Knob.MAX_NUM_ACTIVE_SEQS}, num_replicas=2, power_limit_watts=450.0
    )
    decision = ask(policy, fleet(0.0, 1, 12.0, power_limit_watts=500.0), REPLICA, settings=slow)
    assert decision.chosen.power_limit_watts == 500.0
    assert decision.chosen.max_num_active_seqs < 256


def test_all_knobs_are_the_inner_policy_itself():
    policy = Only(inner=INNER, knobs=tuple(Knob))
    for free in (FLEET, REPLICA):
        seen = fleet(0.0, 1, 12.0)
        assert ask(policy, seen, free).chosen == ask(INNER, seen, free).chosen


def test_only_says_what_it_needs():
    with pytest.raises(ConfigError, match="clock.*allowed: num_replicas, max_num_active_seqs"):
        Only(inner=INNER, knobs={"clock"}, num_replicas=1)
    with pytest.raises(ConfigError, match="num_replicas is None"):
        Only(inner=INNER, knobs={Knob.POWER_LIMIT})
    with pytest.raises(ConfigError, match="num_replicas is 4; allowed"):
        Only(inner=INNER, knobs={Knob.NUM_REPLICAS}, num_replicas=4)
    with pytest.raises(ConfigError, match="1 or more"):
        Only(inner=INNER, knobs={Knob.POWER_LIMIT}, num_replicas=0)


def test_every_policy_is_in_the_catalog_by_its_name():
    assert set(OPTIONS) == set(POLICIES)
    for name, options in OPTIONS.items():
        assert make_policy(name, **options).name == name
    with pytest.raises(ConfigError, match="unknown option _due; allowed: model, interval_s"):
        make_policy("wva", model=H100, _due=None)
    with pytest.raises(ConfigError, match="policy pals: .*model"):
        make_policy("pals")
    with pytest.raises(ConfigError, match="allowed: .*dynamollm, throttllem, agft, only"):
        make_policy("oracle")


def test_advice_is_not_acted_on():
    settings = replace(SETTINGS, mode=Mode.ADVISORY)
    for name, options in OPTIONS.items():
        for free in (FLEET, REPLICA):
            policy = make_policy(name, **options)
            assert not ask(policy, fleet(0.0, 1, 60.0), free, settings=settings).moves, name


def test_objects_do_not_share_what_they_remember():
    for name in ("wva", "pals", "dynamollm", "throttllem", "agft"):
        one, other = (make_policy(name, **OPTIONS[name]) for _ in range(2))
        for item in fields(one):
            if item.name.startswith("_"):
                assert getattr(one, item.name) is not getattr(other, item.name)


wild = st.sampled_from([None, math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 1e300])


def mostly(low, high):
    """A likely number four times of five, else one that nobody expects."""
    likely = st.floats(low, high)
    return st.one_of(likely, likely, likely, likely, wild)


@st.composite
def observations(draw):
    """Some reports are fresh and sensible, some are not."""
    now_s = draw(st.one_of(st.floats(0.0, 1000.0), st.floats(0.0, 20.0), st.floats()))
    ages = st.one_of(st.just(0.0), st.just(0.0), st.floats(0.0, 9.0), st.floats())
    reports = st.builds(
        ReplicaObservation,
        replica=st.sampled_from(["0", "1", ""]),
        time_s=ages.map(lambda age: now_s - age),
        num_running=mostly(0.0, 300.0),
        num_waiting=mostly(0.0, 100.0),
        arrival_rate_per_s=mostly(0.0, 100.0),
        prompt_tokens=mostly(1.0, 3000.0),
        output_tokens=mostly(1.0, 2000.0),
        ttft_s=mostly(0.01, 2.0),
        tpot_s=mostly(0.005, 0.1),
        draw_watts=mostly(100.0, 700.0),
        max_num_active_seqs=st.one_of(st.none(), st.integers(1, 256), st.integers(-5, 1000)),
        power_limit_watts=st.one_of(st.sampled_from(LIMITS), mostly(50.0, 700.0)),
        waiting_prompt_tokens=mostly(0.0, 50000.0),
        num_judged=mostly(0.0, 300.0),
        num_late=mostly(0.0, 5.0),
        num_slow=mostly(0.0, 5.0),
    )
    return Observation(
        now_s=now_s,
        replicas=tuple(draw(st.lists(reports, max_size=3))),
        observed_replicas=draw(st.integers(-1, 5)),
        requested_replicas=draw(st.integers(-1, 12)),
        num_queued=draw(st.one_of(st.just(0.0), st.floats())),
    )


many_settings = st.builds(
    ControlSettings,
    slo=st.just(SETTINGS.slo),
    bounds=st.builds(
        Bounds,
        min_replicas=st.integers(0, 3),
        max_replicas=st.integers(3, 8),
        min_active_seqs=st.integers(1, 16),
        max_num_seqs=st.integers(16, 256),
        power_limits_watts=st.sampled_from([(), LIMITS, (50.0, 300.0)]),
    ),
    slo_headroom_ratio=st.sampled_from([0.0, 0.1]),
)


@pytest.mark.parametrize("name", sorted(OPTIONS))
@given(looks=st.lists(observations(), min_size=1, max_size=4), settings=many_settings)
def test_nothing_makes_a_peer_raise_or_leave_its_bounds(name, looks, settings):
    options = OPTIONS[name]
    if name == "ray_default":
        options = {"desired_num_replicas": RayRule(RayOptions(upscale_delay_s=0.0))}
    policy, bounds = make_policy(name, **options), settings.bounds
    states = {FLEET: ControlState(), REPLICA: ControlState(), ALL: ControlState()}
    for look in looks:
        for free in (FLEET, REPLICA, ALL):
            decision, states[free] = policy.decide(look, states[free], settings, free)
            point = decision.chosen
            if decision.reason is Reason.ERROR:
                assert point == decision.present
                continue
            if Knob.NUM_REPLICAS in free:
                assert bounds.min_replicas <= point.num_replicas <= bounds.max_replicas
            if Knob.POWER_LIMIT in free and bounds.power_limits_watts:
                given_limit = point.power_limit_watts == decision.present.power_limit_watts
                assert point.power_limit_watts in (None, *bounds.power_limits_watts) or given_limit


def test_a_peer_that_may_remember_sees_a_replica_again_after_a_clock_went_back():
    for name in ("wva", "pals", "dynamollm", "throttllem", "agft"):
        policy = make_policy(name, **OPTIONS[name])
        for now_s in (1000.0, 3.0, 1001.0):
            decision = ask(policy, fleet(now_s, 1, 5.0, draw_watts=300.0), REPLICA)
            assert decision.reason is not Reason.ERROR
            assert decision.reason is not Reason.STALE
    assert replica().replica == "0"
