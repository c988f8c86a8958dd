"""A simulated fleet under policies: books, starts, drains, and the policy that saves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from planted import CONTROL, MODEL

from policies.core.errors import ConfigError
from policies.energy_slo import EnergySlo
from policies.sim.arrivals import Lengths, TraceRow, poisson
from policies.sim.fleet import simulate
from policies.sim.fleet_state import PACKED
from policies.sim.histogram import Histogram
from policies.sim.outcome import SimSettings
from policies.sim.recent import percentiles
from policies.static import Static

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
LENGTHS = Lengths.constant(300, 150)


def load(rate, seconds, seed=1):
    return list(poisson(rate, seconds, LENGTHS, seed=seed))


def settings(**changes):
    return SimSettings(**{"control": CONTROL, "cold_start_s": 30.0} | changes)


def play(trace, policy, **changes):
    result = simulate(trace, MODEL, policy, settings(**changes))
    drawn = math.fsum(moment.draw_watts * moment.span_s for moment in result.moments)
    assert drawn == pytest.approx(result.joules, rel=1e-9)  # energy = integral of power
    assert result.completed == result.arrived == len(trace)  # nothing is lost
    assert result.output_tokens == sum(row.output_tokens for row in trace)
    return result


def test_a_fixed_fleet_keeps_its_books():
    trace = load(10.0, 300.0)
    result = play(trace, Static(num_replicas=2), initial_replicas=2)
    assert result.mean_replicas == pytest.approx(2.0)
    assert (result.scale_actions, result.cap_actions, result.start_joules) == (0, 0, 0.0)
    assert result.attainment_ratio == 1.0
    least_s = MODEL.latency.step_time_s(1, 300, 300)
    assert result.ttft.percentile(0.01) >= 0.99 * least_s
    assert result.tpot.percentile(0.5) >= 0.99 * MODEL.latency.step_time_s(1, 300, 0)


def test_a_wanted_replica_starts_cold_and_one_no_longer_wanted_drains():
    trace = load(25.0, 200.0)
    result = play(trace, Static(num_replicas=3), initial_replicas=1, cold_start_watts=300.0)
    by_time = {round(moment.time_s): moment for moment in result.moments}
    assert (by_time[5].accepting, by_time[5].starting) == (1, 2)
    assert (by_time[40].accepting, by_time[40].starting) == (3, 0)
    assert result.start_joules == pytest.approx(2 * 30.0 * 300.0)
    shrunk = play(trace, Static(num_replicas=1), initial_replicas=3)
    assert max(moment.draining for moment in shrunk.moments) > 0
    assert shrunk.moments[-1].accepting == 1
    assert shrunk.moments[-1].draining == 0


def test_the_same_seed_gives_the_same_run_and_late_reports_another():
    trace = load(20.0, 200.0)
    policy = EnergySlo(model=MODEL)

    def numbers(**changes):
        result = play(trace, policy, **changes)
        return result.joules, result.attained, result.replica_s, result.cap_actions

    assert numbers(jitter=0.05, seed=3) == numbers(jitter=0.05, seed=3)
    assert numbers(jitter=0.05, seed=3) != numbers(jitter=0.05, seed=4)
    trace = load(60.0, 200.0)  # more than one replica can serve
    early, late = (numbers(report_delay_s=delay_s) for delay_s in (0.0, 8.0))
    assert late[1] < early[1]


def test_the_policy_serves_a_swing_with_fewer_joules_than_a_fleet_for_its_peak():
    trace = [
        TraceRow(
            arrival_s=row.arrival_s + begin,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
        )
        for k, (begin, rate, span) in enumerate(
            [(0.0, 5.0, 600.0), (600.0, 60.0, 600.0), (1200.0, 5.0, 9000.0)]
        )
        for row in load(rate, span, seed=k)
    ]
    peak = play(trace, Static(num_replicas=4), initial_replicas=4)
    limited = replace(CONTROL.bounds, power_limits_watts=(250.0, 300.0, 400.0))
    control = replace(CONTROL, bounds=limited)
    ours = play(trace, EnergySlo(model=MODEL), control=control, initial_replicas=1, router=PACKED)
    assert peak.attainment_ratio > 0.99
    # Twelve times the load at once, and 30 s until a second replica answers.
    assert ours.attainment_ratio > 0.95
    assert ours.joules < 0.9 * peak.joules
    assert ours.mean_replicas < 6.0


def test_power_limits_are_chosen_with_the_cap_where_they_may_be():
    control = replace(
        CONTROL, bounds=replace(CONTROL.bounds, power_limits_watts=(300.0, 400.0, 500.0))
    )
    trace = load(12.0, 300.0)
    result = play(trace, EnergySlo(model=MODEL), control=control, initial_replicas=2)
    assert result.attainment_ratio > 0.95
    assert result.limit_actions >= 0
    assert all(
        m.mean_limit_watts is None or 300 <= m.mean_limit_watts <= 500 for m in result.moments
    )


def test_a_trace_that_no_fleet_can_serve_is_refused_in_words():
    with pytest.raises(ConfigError, match="cannot serve this trace"):
        simulate(load(400.0, 60.0), MODEL, Static(num_replicas=1), settings(max_outstanding=1000))


def test_percentiles_by_group_are_nearest_rank():
    rng = np.random.default_rng(0)
    group, values = rng.integers(0, 5, 400), rng.exponential(1.0, 400)
    found = percentiles(group, values, 6, 0.9)
    for k in range(5):
        mine = np.sort(values[group == k])
        assert found[k] == mine[math.ceil(0.9 * len(mine)) - 1]
    assert math.isnan(found[5])


def test_a_histogram_knows_percentiles_to_one_percent():
    values = np.random.default_rng(1).lognormal(-2.0, 1.5, 20_000)
    histogram = Histogram()
    for part in np.array_split(np.append(values, np.nan), 7):
        histogram.add(part)
    for q in (0.01, 0.5, 0.99, 1.0):
        exact = np.sort(values)[max(math.ceil(q * len(values)) - 1, 0)]
        assert histogram.percentile(q) == pytest.approx(exact, rel=0.006)
    assert histogram.mean == pytest.approx(values.mean())
    assert Histogram().percentile(0.5) is None
