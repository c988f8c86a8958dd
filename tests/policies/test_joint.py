"""The joint policy on hand-made reports: limits, caps, replicas, and no exception ever."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.control import state_from_dict, state_to_dict
from policies.core.errors import ConfigError
from policies.core.forecast import RATIOS, Outlook, swings_of
from policies.core.lengths import bins_of
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Observation,
    Reason,
    ReplicaObservation,
)
from policies.energy_slo import EnergySlo
from policies.joint.fleet import fleet_watts, worthwhile
from policies.joint.options import JointOptions
from policies.joint.tables import capability, pool_of
from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel
from policies.model.service import Workload, service_table

LIMITS = (200.0, 300.0, 400.0, 500.0, 600.0)
MODEL = FittedModel(
    name="planted", model="m", device="d",
    latency=LatencyModel(
        t0_s=0.007, a_s_per_seq=6e-5, b_s_per_kv_token=4e-8, c_s_per_prefill_token=2.6e-5
    ),
    power=PowerModel(
        idle_watts=120.0, e0_joules_per_step=3.2, e1_joules_per_seq=0.04,
        e2_joules_per_kv_token=3e-5, e3_joules_per_prefill_token=0.018,
        natural_draw_watts=690.0,
        cap_response=CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017),
    ),
    valid=ValidRange(max_num_seqs=256, max_context_tokens=8192, max_prompt_tokens=8192),
    residuals=Residuals(
        step_time_median_ratio=0.02, step_time_p95_ratio=0.05, energy_median_ratio=0.02, samples=20
    ),
)  # fmt: skip
SETTINGS = ControlSettings(
    slo=SLO(ttft_s=1.0, tpot_s=0.1),
    bounds=Bounds(min_replicas=1, max_replicas=64, max_num_seqs=256, power_limits_watts=LIMITS),
)
PROMPTS, OUTPUTS = bins_of([300, 600, 1200, 2400]), bins_of([50, 150, 300])
FLEET = frozenset({Knob.NUM_REPLICAS})
REPLICA = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT, Knob.PACK_SEQS})
POLICY = EnergySlo(model=MODEL)


def report(now_s=100.0, name="a", **changes):
    values = {
        "num_running": 10.0, "num_waiting": 0.0, "arrival_rate_per_s": 5.0,
        "recent_rate_per_s": 5.0, "prompt_tokens": 1125.0, "output_tokens": 166.0,
        "max_num_active_seqs": 256, "waiting_prompt_tokens": 0.0, "num_judged": 0.0,
        "num_late": 0.0, "num_slow": 0.0, "prompt_bins": PROMPTS, "output_bins": OUTPUTS,
        "margin": 0.0, "pace_margin": 0.0,
    }  # fmt: skip
    return ReplicaObservation(replica=name, time_s=now_s, **{**values, **changes})


def decide(one, state=None, settings=SETTINGS):
    seen = Observation(now_s=one.time_s, replicas=(one,), observed_replicas=1, requested_replicas=1)
    return POLICY.decide(seen, state or ControlState(), settings, REPLICA)


def fleet(now_s, replicas, rate, state=None, requested=None, settings=SETTINGS, **changes):
    each = rate / max(replicas, 1)
    known = {"arrival_rate_per_s": each, "recent_rate_per_s": each, "num_judged": 500.0}
    reports = tuple(report(now_s, str(k), **{**known, **changes}) for k in range(replicas))
    seen = Observation(
        now_s=now_s, replicas=reports, observed_replicas=replicas,
        requested_replicas=replicas if requested is None else requested, pool_replicas=replicas,
    )  # fmt: skip
    return POLICY.decide(seen, state or ControlState(), settings, FLEET)


def test_the_table_is_an_mg1_queue_where_nobody_decodes():
    """One output token, one length: wait of the M/D/1 queue, P(W > x) = r exp(-x / w)."""
    load = Workload(prompt_bins=bins_of([1000]), output_bins=bins_of([1]), ttft_s=0.2, tpot_s=1.0)
    table = service_table(MODEL, (None,), load)
    rate = float(table.rates_per_s[20])
    step = MODEL.latency.step_time_s(1, 0, 0)
    service = 0.026 + 1000 / 2048 * step
    use = rate * service
    wait = service / (2 * (1 - use))
    rest = 0.2 - 0.026 - step - 0.5 * step * use
    assert table.missed_ratio[0, 20] == pytest.approx(use * math.exp(-rest / wait), rel=0.1)


def test_misses_rise_with_load_and_fall_with_the_limit_and_the_pool():
    load = Workload(prompt_bins=PROMPTS, output_bins=OUTPUTS, ttft_s=1.0, tpot_s=0.1)
    table = service_table(MODEL, (*LIMITS, None), load)
    assert (table.missed_ratio[:, 1:] >= table.missed_ratio[:, :-1]).all()
    most = table.most_per_s(0.01)
    assert (most[1:] >= most[:-1]).all()
    many = service_table(MODEL, (*LIMITS, None), replace(load, pool=8))
    assert (many.most_per_s(0.01) >= most).all()
    assert many.most_per_s(0.01)[-1] > most[-1]
    assert (table.watts[:, 1:] >= table.watts[:, :-1] - 1e-9).all()
    assert table.watts[0].max() == pytest.approx(200.0, rel=0.01)


def test_a_light_load_gets_a_low_limit_and_a_heavy_one_a_high_one():
    light, _ = decide(report(arrival_rate_per_s=2.0, recent_rate_per_s=2.0))
    heavy, _ = decide(report(arrival_rate_per_s=12.0, recent_rate_per_s=12.0))
    assert light.chosen.power_limit_watts < 400.0
    assert heavy.chosen.power_limit_watts is None or heavy.chosen.power_limit_watts >= 400.0
    assert light.reason is Reason.CHEAPEST_FEASIBLE


def test_a_replica_is_filled_up_to_a_load_not_up_to_a_number_of_requests():
    """Else a higher limit, which serves as many sooner, would bring it more load, and that a still
    higher limit."""
    known = capability(MODEL, decide(report())[1].memory, SETTINGS, JointOptions())
    packs = known.pack_seqs
    assert 0 < known.best < len(known.limits) - 1
    assert set(packs[: known.best]) == {packs[known.best]}
    assert all(more > fewer for more, fewer in pairwise(packs[known.best :]))
    pressed, _ = decide(report(waiting_prompt_tokens=60_000.0))
    calm, _ = decide(report())
    assert pressed.chosen.pack_seqs == packs[-1] < calm.chosen.pack_seqs


@pytest.mark.parametrize("full", [0.03, 0.6, 1.03])
def test_a_packed_fleet_draws_what_its_full_its_part_and_its_idle_replicas_draw(full):
    known = capability(MODEL, decide(report())[1].memory, SETTINGS, JointOptions())
    each = float(known.most_per_s[known.best])
    holds = [k for k, most in enumerate(known.most_per_s) if most >= (full % 1.0) * each]

    def watts(rate):
        return known.table.watts_at(np.array([rate]))[:, 0]

    part = min(watts((full % 1.0) * each)[k] for k in holds)
    whole = int(full)
    packed = [
        whole * watts(each)[known.best] + part + (count - whole - 1) * known.table.idle_watts
        for count in (4, 5, 6)
    ]
    counts = np.array([4, 5, 6])
    spread = fleet_watts(known, full * each, counts, packed=False)
    seen = fleet_watts(known, full * each, counts, packed=True)
    assert seen == pytest.approx(np.minimum(packed, spread), rel=1e-6)
    assert (seen < spread).any()


def test_waiting_prompts_lift_the_limit_ahead_of_any_miss():
    calm, state = decide(report())
    pressed, _ = decide(
        report(101.0, power_limit_watts=calm.chosen.power_limit_watts,
               waiting_prompt_tokens=60_000.0), state
    )  # fmt: skip
    assert pressed.chosen.power_limit_watts is None
    assert pressed.reason is Reason.SLO_AT_RISK


def test_an_idle_replica_waits_at_full_power():
    decision, _ = decide(report(num_running=0.0, arrival_rate_per_s=0.2, recent_rate_per_s=0.0))
    assert decision.chosen.power_limit_watts is None


def test_misses_are_answered_by_a_higher_limit():
    busy = {"arrival_rate_per_s": 7.0, "recent_rate_per_s": 7.0}
    calm, state = decide(report(num_judged=1000.0, **busy))
    late, state = decide(report(101.0, num_judged=1100.0, num_late=40.0, **busy), state)
    assert state.memory.margin > 0.5
    low, high = calm.chosen.power_limit_watts, late.chosen.power_limit_watts
    assert high is None or high > low


def test_a_decision_tells_what_the_model_says_of_both_points():
    """The one in force and the one that is asked for, which is another one here."""
    decision, _ = fleet(0.0, 2, 60.0)
    assert decision.chosen.num_replicas > decision.present.num_replicas
    for said, point in (
        (decision.predicted_present, decision.present),
        (decision.predicted_chosen, decision.chosen),
    ):
        assert said == MODEL.predict(point, decision.load, SETTINGS.slo)


@pytest.mark.parametrize("most", [1, 12, 64, 700])
@pytest.mark.parametrize("rate", [3.0, 40.0, 900.0])
def test_a_fleet_for_bursts_is_the_one_whose_idling_and_misses_cost_least(most, rate):
    memory = decide(report())[1].memory
    heights = np.exp(-((np.log(RATIOS) - 1.2) ** 2) / 0.2)
    outlook = Outlook(rates_per_s=rate * RATIOS, cases=heights + 30.0 * (np.abs(RATIOS - 1) < 0.1))

    def known_of(replicas):
        return capability(MODEL, memory, SETTINGS, JointOptions(), pool_of(replicas))

    def cost(replicas, pressure):
        table, weights = known_of(replicas).table, outlook.cases * outlook.rates_per_s
        share = [np.interp(one / replicas, table.rates_per_s, table.missed_ratio[-1], right=1)
                 for one in outlook.rates_per_s]  # fmt: skip
        known = known_of(4)
        each = known.most_per_s[known.best]
        watts = np.interp(each, known.table.rates_per_s, known.table.watts[known.best])
        mean = weights.sum() / outlook.cases.sum()
        idle = replicas * known.table.idle_watts / (mean * watts / each)
        dearer = math.exp((pressure - 0.5) / 2)
        return idle + 6.0 * dearer * float(weights @ np.array(share)) / weights.sum()

    chosen = worthwhile(known_of, 4, outlook, 0.5, most)
    least = min(range(1, most + 1), key=lambda replicas: cost(replicas, 0.5))
    assert cost(chosen, 0.5) == pytest.approx(cost(least, 0.5), rel=1e-3)
    assert worthwhile(known_of, 4, outlook, 2.0, most) >= chosen


@pytest.mark.parametrize(("steep", "slack"), [(0.03, 1.8), (0.1, 1.8), (0.18, 1.25), (0.9, 1.01)])
def test_slack_against_overload_falls_with_the_square_of_how_slowly_misses_rise(steep, slack):
    known = capability(MODEL, decide(report())[1].memory, SETTINGS, JointOptions())
    full_per_s = float(known.most_per_s[-1]) * (1.0 + steep)
    assert replace(known, full_per_s=full_per_s).slack_ratio == pytest.approx(slack, abs=1e-6)


def test_a_fleet_in_bursts_is_sized_by_what_misses_cost():
    """More of them, more replicas, whether its present is calm or not."""
    state, wanted = None, 8
    for second in range(0, 5400, 5):
        rate = 40.0 if second % 120 < 100 else 160.0
        decision, state = fleet(float(second), wanted, rate, state)
        wanted = decision.chosen.num_replicas
    assert swings_of(state.memory).bursts

    def needed(rate, pressure):
        told = replace(state, memory=replace(state.memory, pressure=pressure, top_per_s=0.0))
        decision, _ = fleet(5405.0, wanted, rate, told)
        return int(decision.notes[0].split("need ")[1].split(",")[0])

    assert needed(40.0, 0.5) == needed(160.0, 0.5)
    assert needed(40.0, 3.0) > needed(40.0, 0.5)


@pytest.mark.slow
def test_the_fleet_follows_the_load_and_keeps_what_it_may_need_again():
    decision, state = fleet(0.0, 2, 60.0)
    wanted = decision.chosen.num_replicas
    assert 4 <= wanted <= 9
    for second in range(1, 1500):
        decision, state = fleet(float(second), wanted, 60.0, state)
        wanted = decision.chosen.num_replicas
    steady = wanted
    assert 4 <= steady <= 7
    for second in range(1500, 1560):
        decision, state = fleet(float(second), wanted, 6.0, state)
        wanted = decision.chosen.num_replicas
    assert wanted == steady  # a start costs more than a minute of idling
    for second in range(1560, 1560 + 12 * 3600, 10):
        decision, state = fleet(float(second), wanted, 6.0, state)
        wanted = decision.chosen.num_replicas
    assert wanted == 1


def test_a_fleet_waits_for_lengths_but_not_for_ever():
    """Ten requests say little; a fleet that has no more of them in ten minutes is let go."""
    few, state, sizes, wanted = {"num_judged": 10.0}, None, {}, 4
    for second in range(0, 3600, 5):
        rate = 0.1 if second < 300 else 0.0  # silence counts too
        decision, state = fleet(float(second), wanted, rate, state, **few)
        wanted = sizes[second] = decision.chosen.num_replicas
    assert {size for second, size in sizes.items() if second < 580} == {4}
    assert wanted == 1


def test_a_replica_that_nobody_asks_may_sleep_before_its_lengths_are_known():
    settings = replace(SETTINGS, bounds=replace(SETTINGS.bounds, min_replicas=0))
    few, state, counts = {"num_judged": 10.0}, None, {}
    for second in range(0, 300, 5):
        rate = 0.1 if second < 60 else 0.0
        decision, state = fleet(float(second), 1, rate, state, settings=settings, **few)
        counts[second] = decision.chosen.num_replicas
    assert {count for second, count in counts.items() if second < 175} == {1}
    assert {count for second, count in counts.items() if second > 185} == {0}
    assert decision.reason is Reason.NO_TRAFFIC
    decision, _ = fleet(305.0, 1, 0.1, state, settings=settings, **few)
    assert decision.chosen.num_replicas == 1


@pytest.mark.slow
def test_a_silent_fleet_is_not_kept_for_what_is_unknown():
    wanted, state = 6, None
    for second in range(0, 600, 5):
        decision, state = fleet(float(second), wanted, 60.0, state)
        wanted = decision.chosen.num_replicas
    assert wanted > 2
    for second in range(600, 600 + 16 * 3600, 20):
        decision, state = fleet(float(second), wanted, 0.0, state)
        wanted = decision.chosen.num_replicas
    assert wanted == 1


def test_an_slo_that_no_prompt_can_meet_does_not_ask_for_every_replica():
    long = bins_of([8000.0])
    settings = replace(SETTINGS, slo=SLO(ttft_s=0.05, tpot_s=0.1))
    decision, _ = fleet(0.0, 3, 3.0, settings=settings, prompt_bins=long, prompt_tokens=8000.0)
    assert decision.chosen.num_replicas < 10


def test_an_slo_that_long_prompts_just_meet_alone_asks_for_no_more():
    """One prompt in fifty is late as soon as anybody is before it, which no fleet can help."""
    prompts = bins_of([300.0] * 49 + [8000.0])
    alone_s = 4 * 0.007 + 8000 * 2.6e-5
    wanted = []
    for percent in (90, 95, 99, 99.9, 100, 100.1, 101, 105, 110, 150):
        settings = replace(SETTINGS, slo=SLO(ttft_s=alone_s * percent / 100, tpot_s=0.1))
        decision, _ = fleet(0.0, 8, 80.0, settings=settings, prompt_bins=prompts)
        wanted.append(decision.chosen.num_replicas)
    assert max(wanted) <= 40  # 64 are allowed
    assert wanted[-1] <= wanted[5]


def test_nobody_there_is_woken_by_the_first_request():
    seen = Observation(now_s=5.0, replicas=(), observed_replicas=0, requested_replicas=0)
    settings = replace(SETTINGS, bounds=replace(SETTINGS.bounds, min_replicas=0))
    asleep, state = POLICY.decide(seen, ControlState(), settings, FLEET)
    assert (asleep.chosen.num_replicas, asleep.reason) == (0, Reason.NO_TRAFFIC)
    awake, _ = POLICY.decide(replace(seen, num_queued=1.0), state, settings, FLEET)
    assert awake.chosen.num_replicas == 1


def test_the_state_survives_json():
    _, state = fleet(0.0, 3, 30.0)
    _, state = fleet(20.0, 3, 30.0, state)
    assert state_from_dict(state_to_dict(state)).memory == state.memory


number = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, -1.0, 0.0]), st.floats(0.0, 1e6))
bins = st.one_of(st.none(), st.just(()), st.lists(st.floats(0, 1e5), min_size=12, max_size=12))


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "waiting_prompt_tokens",
                "recent_rate_per_s",
                "num_judged",
                "num_late",
                "num_slow",
                "margin",
                "pace_margin",
                "power_limit_watts",
                "prompt_tokens",
                "output_tokens",
            ]
        ),
        number,
    ),
    bins,
    bins,
    st.sampled_from([FLEET, REPLICA, FLEET | REPLICA, frozenset()]),
)
def test_no_report_makes_it_raise_or_leave_its_bounds(values, prompts, outputs, free):
    one = report(prompt_bins=prompts, output_bins=outputs, **values)
    seen = Observation(now_s=100.0, replicas=(one,), observed_replicas=1, requested_replicas=1)
    state = ControlState()
    for _ in range(2):
        decision, state = POLICY.decide(seen, state, SETTINGS, free)
        assert 1 <= decision.chosen.num_replicas <= 64
        assert 1 <= decision.chosen.max_num_active_seqs <= 256


@pytest.mark.parametrize("options", [{"cold_start_s": -1.0}, {"gate_ratio": math.nan}])
def test_options_are_checked(options):
    (key,) = options
    with pytest.raises(ConfigError, match=f"{key} is .*; allowed"):
        JointOptions(**options)
