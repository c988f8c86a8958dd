"""What else happens to a simulated fleet: limits that settle, failures, sleep, packing, long runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from test_fleet import CONTROL, LENGTHS, MODEL, load, play, settings

from policies.core.types import Bounds
from policies.energy_slo import EnergySlo
from policies.joint.options import JointOptions
from policies.sim import moments
from policies.sim.arrivals import poisson
from policies.sim.fleet import simulate
from policies.sim.fleet_state import PACKED
from policies.static import Static

pytestmark = pytest.mark.slow
LIMITS = replace(CONTROL, bounds=replace(CONTROL.bounds, power_limits_watts=(250.0, 300.0, 400.0)))
OURS = EnergySlo(model=MODEL, options=JointOptions(explain=False, cold_start_s=30.0))


def test_a_limit_holds_only_after_it_has_settled():
    trace = load(8.0, 60.0)
    policy = Static(num_replicas=1, power_limit_watts=300.0)
    result = play(trace, policy, control=LIMITS, limit_settle_s=5.0)
    by_time = {round(one.time_s): one for one in result.moments}
    assert by_time[5].mean_limit_watts is None
    assert by_time[5].draw_watts > 350.0
    assert by_time[7].mean_limit_watts == 300.0
    assert max(one.draw_watts for one in result.moments if 7 <= one.time_s <= 50) < 300.0 + 1e-6


def test_a_failure_loses_what_was_under_way_and_a_new_replica_starts():
    trace = load(20.0, 120.0)
    result = simulate(
        trace, MODEL, Static(num_replicas=2),
        settings(initial_replicas=2, failures=((40.0, 1),), cold_start_s=20.0),
    )  # fmt: skip
    assert result.lost > 0
    assert result.completed + result.lost == result.arrived == len(trace)
    by_time = {round(one.time_s): one for one in result.moments}
    assert (by_time[45].accepting, by_time[45].starting) == (1, 1)
    assert by_time[65].accepting == 2
    drawn = math.fsum(one.draw_watts * one.span_s for one in result.moments)
    assert drawn == pytest.approx(result.joules, rel=1e-9)
    assert result.attained <= result.completed


def test_a_fleet_may_sleep_and_wakes_for_the_first_request():
    control = replace(CONTROL, bounds=Bounds(min_replicas=0, max_replicas=4, max_num_seqs=256))
    early, late = load(5.0, 60.0), load(5.0, 60.0, seed=2)
    trace = [*early, *(replace(row, arrival_s=row.arrival_s + 3600.0) for row in late)]
    result = play(trace, OURS, control=control)
    asleep = [one for one in result.moments if 2500 < one.time_s < 3590]
    assert {(one.accepting, one.starting) for one in asleep} == {(0, 0)}
    assert max(one.draw_watts for one in asleep) == 0.0
    assert result.completed == len(trace)


def test_packing_leaves_replicas_idle_and_holds_what_it_is_told():
    trace = load(6.0, 300.0)
    spread = play(trace, Static(num_replicas=4), initial_replicas=4, fleet_every=10**9)
    packed = play(
        trace, Static(num_replicas=4), initial_replicas=4, router=PACKED, pack_seqs=24,
        replica_every=10**9, fleet_every=10**9,
    )  # fmt: skip
    assert packed.joules < 0.75 * spread.joules
    assert packed.attainment_ratio > 0.99


def test_the_joint_policy_saves_and_holds_and_the_same_seed_gives_the_same_run():
    trace = list(poisson(12.0, 900.0, LENGTHS, seed=3))
    peak = play(trace, Static(num_replicas=2), initial_replicas=2)

    def ours():
        return play(trace, OURS, control=LIMITS, initial_replicas=2, router=PACKED, jitter=0.02)

    result = ours()
    assert result.attainment_ratio >= 0.985
    assert result.joules < 0.6 * peak.joules
    assert result.limit_actions > 0
    assert (result.joules, result.attained) == ((again := ours()).joules, again.attained)


def test_a_wrong_belief_is_found_out_by_its_misses():
    trace = list(poisson(30.0, 3600.0, LENGTHS, seed=4))
    for ratio in (0.8, 1.25):
        wrong = EnergySlo(model=MODEL.corrected(step_time_ratio=ratio), options=OURS.options)
        result = play(trace, wrong, control=LIMITS, initial_replicas=3, router=PACKED)
        assert result.attainment_ratio >= 0.98, ratio


def test_moments_are_joined_when_there_are_many_and_energy_stays(monkeypatch):
    monkeypatch.setattr(moments, "MOST", 64)
    result = play(load(5.0, 400.0), Static(num_replicas=1))
    kept = list(result.moments)
    assert len(kept) <= 65
    assert sum(one.span_s for one in kept) == pytest.approx(result.duration_s)
    assert math.fsum(one.draw_watts * one.span_s for one in kept) == pytest.approx(result.joules)


def test_blocks_of_arrays_are_the_same_as_rows():
    rows = load(10.0, 100.0)
    columns = (
        np.array([row.arrival_s for row in rows]),
        np.array([row.prompt_tokens for row in rows]),
        np.array([row.output_tokens for row in rows]),
    )
    halves = [tuple(one[:300] for one in columns), tuple(one[300:] for one in columns)]
    one, two = (
        simulate(trace, MODEL, Static(num_replicas=1), settings()) for trace in (rows, halves)
    )
    assert (one.joules, one.attained, one.completed) == (two.joules, two.attained, two.completed)
