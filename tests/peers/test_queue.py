"""llm-d's queue against the birth-death chain solved state by state, in exact fractions of float."""

from __future__ import annotations

import math

import numpy as np
import pytest
from peer_cases import FLEET, H100, REPLICA, SETTINGS, ask, fleet, wider

from policies.core.types import SLO, Load, Reason
from policies.model.curve import StepCurve
from policies.wva import Saturation, Wva
from policies.wva_queue import ReplicaQueue

CURVE = StepCurve(base=0.010, per_seq=2e-4, per_prompt=0.012, output_tokens=120.0)


def chain(queue, rate):
    """(TTFT, ITL, throughput) from the balance equations as a linear system: pi Q = 0, sum 1."""
    size = 11 * queue.max_batch
    curve = queue.curve

    def iteration(n):
        return curve.base + n * (curve.per_seq + curve.per_prompt / curve.output_tokens)

    def prefill(n):
        return iteration(n) + curve.per_prompt

    def service(n):
        n = min(n, queue.max_batch)
        return n / (prefill(n) + curve.output_tokens * (iteration(n) + curve.per_seq))

    generator = np.zeros((size + 1, size + 1))
    for n in range(size):
        generator[n, n + 1] += rate
        generator[n + 1, n] += service(n + 1)
    generator -= np.diag(generator.sum(axis=1))
    system = np.vstack([generator.T, np.ones(size + 1)])
    share = np.linalg.lstsq(system, np.append(np.zeros(size + 1), 1.0), rcond=None)[0]
    states = np.arange(size + 1)
    throughput = rate * (1.0 - share[-1])
    in_service = float(share @ np.minimum(states, queue.max_batch))
    waiting = float(share @ np.maximum(states - queue.max_batch, 0))
    itl = (in_service / throughput - prefill(in_service)) / curve.output_tokens
    ttft = queue.wait_factor * waiting / throughput + prefill(in_service) + itl
    return ttft, itl, throughput


@pytest.mark.parametrize("max_batch", [1, 3, 8])
@pytest.mark.parametrize("load", [0.05, 0.7, 0.97, 1.0, 1.2])
def test_a_steady_state_is_that_of_the_chain(max_batch, load):
    queue = ReplicaQueue(curve=CURVE, max_batch=max_batch, wait_factor=3.0)
    rate = load * float(queue.service_rates()[-1])
    found = queue.at(rate)
    ttft, itl, throughput = chain(queue, rate)
    assert found.ttft_s == pytest.approx(ttft, rel=1e-6)
    assert found.itl_s == pytest.approx(itl, rel=1e-6)
    assert found.throughput_per_s == pytest.approx(throughput, rel=1e-6)


@pytest.mark.parametrize(
    "slo",
    [SLO(ttft_s=0.08, tpot_s=1.0), SLO(ttft_s=5.0, tpot_s=0.0115), SLO(ttft_s=0.3, tpot_s=0.012)],
)
def test_the_largest_rate_is_the_largest_by_brute_force(slo):
    queue = ReplicaQueue(curve=CURVE, max_batch=8, wait_factor=4.6)
    most = queue.most_per_s(slo)
    assert most is not None

    def holds(rate):
        ttft, itl, _ = chain(queue, rate)
        return ttft <= slo.ttft_s and itl <= slo.tpot_s

    top = 0.999 * float(queue.service_rates()[-1])
    grid = [rate for rate in np.linspace(0.01 * top, top, 150) if holds(rate)]
    assert abs(most - grid[-1]) <= top / 150 + 1e-9
    assert holds(most * (1 - 1e-6))
    assert most == pytest.approx(top, rel=1e-9) or not holds(most * (1 + 1e-6))


def test_a_target_below_an_empty_replica_has_no_rate():
    queue = ReplicaQueue(curve=CURVE, max_batch=8)
    assert queue.most_per_s(SLO(ttft_s=0.01, tpot_s=1.0)) is None
    assert queue.most_per_s(SLO(ttft_s=1.0, tpot_s=0.001)) is None


def test_replicas_are_the_rate_over_the_largest_rate():
    policy = Wva(model=H100, tail=False)
    load = Load(arrival_rate_per_s=1.0, prompt_tokens=500.0, output_tokens=200.0)
    queue = ReplicaQueue(curve=H100.latency.curve(load), max_batch=256)
    most = queue.most_per_s(SETTINGS.slo)
    rate = 3.5 * most
    decision = ask(policy, fleet(0.0, 2, rate), FLEET)
    assert decision.chosen.num_replicas == 4
    assert (decision.chosen.max_num_active_seqs, decision.chosen.power_limit_watts) == (256, None)
    tailed = Wva(model=H100)
    strict = ReplicaQueue(
        curve=H100.latency.curve(load), max_batch=256, wait_factor=-math.log(0.01)
    )
    decision = ask(tailed, fleet(0.0, 2, rate), FLEET)
    assert decision.chosen.num_replicas == math.ceil(rate / strict.most_per_s(SETTINGS.slo))


def test_it_decides_at_intervals_and_comes_down_after_the_window():
    policy = Wva(model=H100, down_after_s=30.0)
    high = ask(policy, fleet(0.0, 2, 120.0), FLEET).chosen.num_replicas
    assert high > 2
    assert not ask(policy, fleet(5.0, high, 1.0), FLEET).moves  # not yet time
    for t in (10.0, 20.0, 30.0):
        assert not ask(policy, fleet(t, high, 1.0), FLEET).moves  # 0 s is within 30 s
    assert ask(policy, fleet(40.0, high, 1.0), FLEET).chosen.num_replicas == 1
    assert not ask(policy, fleet(41.0, 1, 400.0), REPLICA).moves


def test_the_guard_grows_when_queues_fill_and_holds_what_would_fill_them():
    policy = Wva(model=H100)
    one = fleet(0.0, 3, 3.0).replicas[0]

    def waiting(*counts):
        return policy.saturation(
            tuple(type(one)(**{**_values(one), "num_waiting": float(c)}) for c in counts)
        )

    assert waiting(0, 0, 0) == Saturation(grow=False, may_shrink=True)
    assert waiting(2, 2, 2) == Saturation(grow=False, may_shrink=False)  # 2 x 3/2 = 3: spare 2
    assert waiting(3, 2, 2) == Saturation(grow=True, may_shrink=False)
    assert waiting(9, 0, 0) == Saturation(grow=False, may_shrink=True)  # the full one is left out
    assert waiting(9, 9, 9) == Saturation(grow=True, may_shrink=False)
    assert waiting(0) == Saturation(grow=False, may_shrink=False)
    tight = Wva(model=H100, kv_capacity_tokens=4000.0)  # 5 x 600 tokens of 4000: 75 %
    assert tight.saturation((one,)).grow
    grown = ask(Wva(model=H100), fleet(0.0, 2, 4.0, num_waiting=3.0), FLEET)
    assert grown.chosen.num_replicas == 3
    assert grown.reason is Reason.SLO_AT_RISK
    busy = ask(Wva(model=H100), fleet(0.0, 2, 4.0, num_waiting=3.0, requested=3), FLEET)
    assert busy.chosen.num_replicas == 3  # one is on its way


def test_without_traffic_the_floor_and_without_sight_no_move():
    idle = fleet(0.0, 3, 0.0, num_running=0.0)
    settings = wider(min_replicas=2)
    policy = Wva(model=H100, down_after_s=0.0)
    decision = policy.decide(idle, _state(), settings, FLEET)[0]
    assert decision.chosen.num_replicas == 2
    stale = fleet(0.0, 3, 4.0)
    stale = type(stale)(
        now_s=500.0, replicas=stale.replicas, observed_replicas=3, requested_replicas=3
    )
    assert ask(policy, stale, FLEET).chosen.num_replicas == 3


def _values(one):
    return {name: getattr(one, name) for name in one.__slots__}


def _state():
    from policies.core.types import ControlState

    return ControlState()
