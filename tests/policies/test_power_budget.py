"""A power budget as the policy sees it: no limit above it, more replicas where that is what it takes,
and a note where the SLO is at risk because of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joint_cases import LIMITS, SETTINGS, decide, fleet, report

from policies.core.guard import clamp, safe_point
from policies.core.types import Bounds, OperatingPoint, Reason


def under(watts):
    return replace(SETTINGS, bounds=replace(SETTINGS.bounds, max_limit_watts=watts))


def test_the_limits_end_with_what_the_budget_leaves():
    bounds = Bounds(power_limits_watts=(200.0, 300.0, 400.0))
    assert bounds.limits == (200.0, 300.0, 400.0, None)
    assert replace(bounds, max_limit_watts=350.0).limits == (200.0, 300.0, 350.0)
    assert replace(bounds, max_limit_watts=300.0).limits == (200.0, 300.0)
    assert replace(bounds, max_limit_watts=900.0).limits == (200.0, 300.0, 400.0, 900.0)
    assert Bounds(max_limit_watts=350.0).limits == (350.0,)


@given(
    st.floats(0.1, 60.0),
    st.floats(0.0, 1e6),
    st.sampled_from([None, *LIMITS, 650.0]),
    st.floats(150.0, 700.0),
)
def test_no_decision_of_a_replica_is_above_it(rate, waiting, present, most):
    one = report(
        arrival_rate_per_s=rate,
        recent_rate_per_s=rate,
        waiting_prompt_tokens=waiting,
        power_limit_watts=present,
    )
    chosen = decide(one, settings=under(most))[0].chosen
    assert chosen.power_limit_watts is not None
    assert chosen.power_limit_watts <= most


def test_where_it_costs_the_slo_the_decision_says_so():
    pressed, _ = decide(report(waiting_prompt_tokens=60_000.0), settings=under(350.0))
    assert pressed.reason is Reason.SLO_AT_RISK
    assert pressed.chosen.power_limit_watts == 350.0
    assert pressed.notes == ("power budget: no more than 350 W per GPU, so the SLO may break",)
    free, _ = decide(report(waiting_prompt_tokens=60_000.0))
    assert free.notes == ()
    calm, _ = decide(report(arrival_rate_per_s=1.0, recent_rate_per_s=1.0), settings=under(350.0))
    assert calm.notes == ()


def test_a_fleet_under_it_has_more_replicas_and_smaller_batches():
    free, _ = fleet(100.0, 8, 60.0)
    capped, _ = fleet(100.0, 8, 60.0, settings=under(250.0))
    assert capped.chosen.num_replicas > free.chosen.num_replicas
    batch, _ = decide(report(), settings=under(200.0))
    assert batch.chosen.max_num_active_seqs <= decide(report())[0].chosen.max_num_active_seqs


def test_a_silent_or_blind_replica_stays_under_it():
    idle = report(num_running=0.0, arrival_rate_per_s=0.0, recent_rate_per_s=0.0)
    assert decide(idle, settings=under(350.0))[0].chosen.power_limit_watts == 350.0
    bounds = under(350.0).bounds
    point = OperatingPoint(num_replicas=1, max_num_active_seqs=8)
    assert safe_point(point, bounds).power_limit_watts == 350.0
    assert clamp(point, point, bounds).power_limit_watts == 350.0


@pytest.mark.parametrize("watts", [None, 100.0, 350.0, 700.0, float("nan"), float("inf")])
def test_what_is_asked_for_is_brought_under_it(watts):
    point = OperatingPoint(num_replicas=1, max_num_active_seqs=8, power_limit_watts=watts)
    chosen = clamp(point, replace(point, power_limit_watts=None), under(350.0).bounds)
    assert chosen.power_limit_watts <= 350.0


def test_a_fleet_shares_its_budget_evenly_and_keeps_it_whatever_its_size():
    bounds = replace(SETTINGS.bounds, fleet_budget_watts=2000.0)
    assert bounds.shared_by(4).max_limit_watts == 500.0
    assert bounds.shared_by(3).max_limit_watts == 660.0  # in steps of 10 W
    assert bounds.shared_by(1000).max_limit_watts == 200.0  # no lower than the lowest
    assert replace(bounds, max_limit_watts=300.0).shared_by(4).max_limit_watts == 300.0
    assert SETTINGS.bounds.shared_by(4) is SETTINGS.bounds
    assert bounds.affordable(1).max_replicas == 10
    assert bounds.affordable(4).max_replicas == 2
    assert replace(bounds, min_replicas=5).affordable(4).max_replicas == 5
    assert SETTINGS.bounds.affordable(1).max_replicas == 64


@given(st.floats(1.0, 80.0), st.integers(1, 20), st.floats(600.0, 9000.0))
def test_no_fleet_takes_more_replicas_than_its_budget_feeds(rate, replicas, budget):
    bounds = replace(SETTINGS.bounds, fleet_budget_watts=budget).affordable(1)
    decision, _ = fleet(100.0, replicas, rate, settings=replace(SETTINGS, bounds=bounds))
    assert 1 <= decision.chosen.num_replicas <= max(int(budget // LIMITS[0]), 1)


def test_a_tight_budget_is_met_by_more_and_slower_replicas():
    def wanted(budget):
        bounds = replace(SETTINGS.bounds, fleet_budget_watts=budget)
        return fleet(100.0, 6, 45.0, settings=replace(SETTINGS, bounds=bounds.affordable(1)))[0]

    assert wanted(20_000.0).chosen == fleet(100.0, 6, 45.0)[0].chosen
    assert wanted(1400.0).chosen.num_replicas > wanted(20_000.0).chosen.num_replicas
    assert len(wanted(20_000.0).notes) == 1
    words = "power budget: 1200 W feed no more than 6 replicas, so the SLO may break"
    assert words in wanted(1200.0).notes
