"""Laws that hold whatever the policy: Little's, and energy as the integral of power over time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from test_fleet import CONTROL, LENGTHS, MODEL, settings

from policies.catalog import make_policy
from policies.core.types import Bounds
from policies.energy_slo import EnergySlo
from policies.joint.options import JointOptions
from policies.sim.arrivals import poisson
from policies.sim.fleet import simulate
from policies.sim.fleet_state import LEAST_OUTSTANDING, PACKED, POWER_OF_TWO
from policies.sim.trace import BurstShape, burst
from policies.static import Static

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
OUTPUT_TOKENS = 150  # of every request of LENGTHS
LIMITED = replace(CONTROL, bounds=Bounds(max_replicas=8, power_limits_watts=(250.0, 300.0, 400.0)))
OURS = EnergySlo(model=MODEL, options=JointOptions(explain=False, cold_start_s=30.0))
BURSTS = list(
    burst(BurstShape(base_rate_per_s=3, peak_rate_per_s=40, period_s=200), 800.0, LENGTHS, seed=5)
)
CASES = {
    "one replica, light": (
        poisson(2.0, 900.0, LENGTHS, seed=1), Static(num_replicas=1), {},
    ),
    "one replica, loaded": (
        poisson(25.0, 200.0, LENGTHS, seed=2), Static(num_replicas=1), {},
    ),
    "a line before a low cap": (
        poisson(12.0, 200.0, LENGTHS, seed=3), Static(num_replicas=1, max_num_active_seqs=12), {},
    ),
    "four replicas, two choices, jitter": (
        poisson(30.0, 200.0, LENGTHS, seed=4), Static(num_replicas=4),
        {"initial_replicas": 4, "router": POWER_OF_TWO, "jitter": 0.1, "seed": 9},
    ),
    "three replicas under a limit that settles": (
        poisson(20.0, 200.0, LENGTHS, seed=5), Static(num_replicas=3, power_limit_watts=300.0),
        {"initial_replicas": 3, "control": LIMITED, "limit_settle_s": 5.0},
    ),
    "a full cache": (
        poisson(14.0, 200.0, LENGTHS, seed=6), Static(num_replicas=1),
        {"kv_capacity_tokens": 12_000},
    ),
    "starts and drains, packed, late reports": (
        BURSTS, OURS,
        {"control": LIMITED, "router": PACKED, "report_delay_s": 4.0, "cold_start_watts": 250.0},
    ),
    "replicas by forecast": (
        BURSTS, make_policy("dynamollm", model=MODEL),
        {"control": LIMITED, "router": LEAST_OUTSTANDING, "initial_replicas": 2},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, scope="module")
def run(request):
    trace, policy, changes = CASES[request.param]
    result = simulate(trace, MODEL, policy, settings(**{"tick_s": 0.25} | changes))
    assert result.completed == result.arrived == len(trace)
    return request.param, result


def test_littles_law(run):
    """L = lambda W: the requests inside, counted at every tick, against the times that the requests
    themselves say they took: to the first token, and per token after it."""
    _, result = run
    inside = math.fsum(one.outstanding * one.span_s for one in result.moments) / result.duration_s
    rate_per_s = result.completed / result.duration_s
    response_s = result.ttft.mean + (OUTPUT_TOKENS - 1) * result.tpot.mean
    assert inside == pytest.approx(rate_per_s * response_s, rel=0.01)


def test_energy_is_the_integral_of_power(run):
    """What meters showed tick by tick is what the books say at the end, part by part."""
    _, result = run
    drawn = math.fsum(one.draw_watts * one.span_s for one in result.moments)
    parts = result.active_joules + result.idle_joules + result.start_joules
    assert drawn == pytest.approx(parts, rel=1e-9)
    assert math.fsum(one.span_s for one in result.moments) == pytest.approx(result.duration_s)
    assert 0.0 < result.prefill_joules < result.active_joules
    # No replica draws less than its idle draw, and nobody draws while nobody is there.
    there_s = math.fsum((one.accepting + one.draining) * one.span_s for one in result.moments)
    assert result.joules - result.start_joules > 0.97 * MODEL.power.idle_watts * there_s


def test_the_cases_are_what_they_are_called(run):
    """Queues, preemptions, starts and limits do happen in the cases named after them."""
    name, result = run
    if "line" in name:
        assert max(one.outstanding for one in result.moments) > 2 * 12
    if "full cache" in name:
        assert result.preemptions > 0
    if "starts" in name:
        assert result.start_joules > 0.0
        assert result.scale_actions > 2
    if "limit" in name:
        assert result.limit_actions > 0
