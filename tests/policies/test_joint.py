"""The joint policy of a replica on hand-made reports: limits, caps, and no exception ever."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joint_cases import (
    FLEET,
    LIMITS,
    MODEL,
    OUTPUTS,
    POLICY,
    PROMPTS,
    REPLICA,
    SETTINGS,
    decide,
    fleet,
    report,
)

from policies.core.control import state_from_dict, state_to_dict
from policies.core.errors import ConfigError
from policies.core.lengths import bins_of
from policies.core.types import (
    ControlState,
    Observation,
    Reason,
)
from policies.joint.options import JointOptions
from policies.joint.tables import capability
from policies.model.service import Workload, service_table


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
