"""The joint policy of a fleet on hand-made reports: how many replicas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from joint_cases import (
    FLEET,
    MODEL,
    POLICY,
    SETTINGS,
    decide,
    fleet,
    report,
)

from policies.core.forecast import RATIOS, Outlook, swings_of
from policies.core.lengths import bins_of
from policies.core.types import (
    SLO,
    ControlState,
    Observation,
    Reason,
)
from policies.joint.fleet import fleet_watts, worthwhile
from policies.joint.options import JointOptions
from policies.joint.tables import capability, pool_of


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

    known, asked = known_of(4), outlook.cases * outlook.rates_per_s
    each = known.most_per_s[known.best]
    watts = np.interp(each, known.table.rates_per_s, known.table.watts[known.best])
    mean = asked.sum() / outlook.cases.sum()

    def cost(replicas):
        table = known_of(replicas).table
        missed = [
            np.interp(one / replicas, table.rates_per_s, table.missed_ratio[-1], right=1)
            for one in outlook.rates_per_s
        ]
        idle = replicas * known.table.idle_watts / (mean * watts / each)
        return idle + 6.0 * float(asked @ np.array(missed)) / asked.sum()

    chosen = worthwhile(known_of, known, outlook, 0.5, most)
    busy = min(math.ceil(mean / known.full_per_s), most)  # what is hopeless asks for all there is
    least = min(range(busy, most + 1), key=cost)
    assert chosen >= busy
    assert cost(chosen) == pytest.approx(cost(least), rel=1e-3)
    assert worthwhile(known_of, known, outlook, 2.0, most) >= chosen


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
