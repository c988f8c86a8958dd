"""Peers that move the limit of a replica: their choice against a search of the profile by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from peer_cases import (
    ALL,
    CHAT,
    FLEET,
    H100,
    LIMITS,
    REPLICA,
    SETTINGS,
    ask,
    fleet,
    replica,
    wider,
)

from policies.agft import Agft
from policies.core.types import SLO, ControlState, Load, OperatingPoint, Reason
from policies.dynamollm import DynamoLlm
from policies.linucb import LinUcb, Standardizer
from policies.pals import Pals
from policies.peer_memory import Due, Memo, Misses, RecentMost
from policies.peer_parts import fewest_replicas, known_limits, limit_at_least, rounded
from policies.static import Static
from policies.throttllem import ThrottLlem


def cheapest(load, caps=(256,), slo=SETTINGS.slo, slow=1.0):
    """(J/request, limit, cap) of the feasible points of one replica, by trying all."""
    model = H100.corrected(step_time_ratio=slow)
    found = []
    for limit in (None, *LIMITS):
        for cap in caps:
            point = OperatingPoint(num_replicas=1, max_num_active_seqs=cap, power_limit_watts=limit)
            answer = model.predict(point, load, slo)
            if answer.feasible:
                found.append((answer.joules_per_request, limit or math.inf, cap))
    return min(found)


def load(rate):
    return Load(arrival_rate_per_s=rate, **CHAT)


def test_dynamollm_takes_the_cheapest_limit_that_holds():
    slo = SLO(ttft_s=1.0, tpot_s=0.0145)  # a step under 300 W is too long at the higher rates
    settings = replace(SETTINGS, slo=slo)
    seen = set()
    for rate in (0.5, 2.0, 5.0, 8.0, 11.0):
        decision = ask(DynamoLlm(model=H100), fleet(0.0, 1, rate), REPLICA, settings=settings)
        _, limit, _ = cheapest(rounded(load(rate)), slo=slo)
        assert (decision.chosen.power_limit_watts or math.inf) == limit
        assert decision.reason is Reason.CHEAPEST_FEASIBLE
        seen.add(limit)
    assert len(seen) > 1


def test_dynamollm_moves_every_five_seconds_and_at_once_in_an_emergency():
    policy = DynamoLlm(model=H100)
    low = ask(policy, fleet(0.0, 1, 1.0), REPLICA).chosen.power_limit_watts
    assert low is not None
    limited = {"power_limit_watts": low}
    for t in (1.0, 4.0):
        assert not ask(policy, fleet(t, 1, 30.0, **limited), REPLICA).moves
    # 60 prompts x 12.5 ms = 0.75 s, more than half of 1 s
    urgent = ask(policy, fleet(4.5, 1, 1.0, num_waiting=60.0, **limited), REPLICA)
    assert (urgent.reason, urgent.chosen.power_limit_watts) == (Reason.SLO_AT_RISK, None)
    few = fleet(4.6, 1, 1.0, num_waiting=60.0, waiting_prompt_tokens=5000.0, **limited)
    assert not ask(policy, few, REPLICA).moves  # 5000 tokens x 25 us = 0.125 s: it says so itself
    late = ask(policy, fleet(4.7, 1, 1.0, tpot_s=0.06, **limited), REPLICA)
    assert (late.reason, late.chosen.power_limit_watts) == (Reason.SLO_AT_RISK, None)


def test_dynamollm_plans_an_epoch_for_its_forecast():
    policy = DynamoLlm(model=H100, epoch_s=100.0, headroom_ratio=0.0, early=False)
    first = ask(policy, fleet(0.0, 1, 60.0), FLEET).chosen.num_replicas
    by_hand = _fewest_joules(60.0)
    assert first == by_hand
    for t in range(10, 100, 10):  # a peak inside the epoch: nothing moves before its end
        assert not ask(policy, fleet(float(t), first, 100.0 if t == 50 else 20.0), FLEET).moves
    assert ask(policy, fleet(100.0, first, 20.0), FLEET).chosen.num_replicas == _fewest_joules(
        100.0
    )
    rising = DynamoLlm(model=H100, epoch_s=100.0, headroom_ratio=0.0, early=False)
    for t in range(0, 100, 10):
        ask(rising, fleet(float(t), 2, 10.0 + 0.4 * t), FLEET)
    grown = ask(rising, fleet(100.0, 2, 50.0), FLEET).chosen.num_replicas
    assert grown == _fewest_joules(90.0)  # 50 now, 0.4 more each second for 100 s
    known = DynamoLlm(model=H100, headroom_ratio=0.0, peak_rate_per_s=lambda a, b: 110.0)
    assert ask(known, fleet(0.0, 2, 5.0), FLEET).chosen.num_replicas == _fewest_joules(110.0)


def test_dynamollm_starts_an_epoch_early_for_a_load_it_had_not_planned():
    policy = DynamoLlm(model=H100, epoch_s=100.0)
    few = ask(policy, fleet(0.0, 1, 10.0), FLEET).chosen.num_replicas
    more = ask(policy, fleet(3.0, few, 110.0), FLEET).chosen.num_replicas
    assert more > few
    assert not ask(policy, fleet(4.0, more, 1.0), FLEET).moves  # it falls only at the end
    assert not ask(policy, fleet(4.0, 1, 90.0), REPLICA).chosen.num_replicas > 1


def _fewest_joules(rate):
    """Replicas of the cheapest feasible point at the full batch, within the documented tie."""
    found = []
    for limit in (None, *LIMITS):
        for count in range(1, 9):
            point = OperatingPoint(
                num_replicas=count, max_num_active_seqs=256, power_limit_watts=limit
            )
            answer = H100.predict(point, load(rate), SETTINGS.slo)
            if answer.feasible:
                found.append((answer.joules_per_request, count))
    least = min(found)[0]
    return min(count for joules, count in found if joules <= 1.005 * least)


def test_throttllem_projects_the_batch_and_takes_a_limit_that_holds():
    policy = ThrottLlem(model=H100, cheapest=False)
    one = replica(num_running=40.0, num_waiting=10.0, rate=5.0)
    settings = replace(SETTINGS, slo=SLO(ttft_s=1.0, tpot_s=0.05))
    from policies.peer_parts import Ask

    question = Ask(observation=fleet(), state=ControlState(), settings=settings, free=REPLICA)
    projection = policy.project(one, load(5.0), question, None)
    step = 0.00691 + 55 * 8.52e-5  # 40 run, 10 wait, 5 arrive
    assert projection.ttft_s == pytest.approx(2 * step + 10 * 0.0125 + 0.0125, rel=1e-9)
    assert projection.tpot_s == pytest.approx(H100.latency.tpot_s(load(5.0), 55, 0.99), rel=1e-9)
    assert projection.tpot_s > step
    slow = policy.project(one, load(5.0), question, 300.0)
    assert slow.tpot_s > projection.tpot_s
    lowest = ask(policy, fleet(0.0, 1, 1.0), REPLICA).chosen.power_limit_watts
    assert lowest == 300.0
    tight = replace(settings, slo=SLO(ttft_s=1.0, tpot_s=projection.tpot_s * 1.001))
    only_full = fleet(0.0, 1, 5.0, num_running=40.0)
    only_full = ask(ThrottLlem(model=H100), only_full, REPLICA, settings=tight)
    assert only_full.chosen.power_limit_watts is None or only_full.chosen.power_limit_watts >= 500
    none = replace(settings, slo=SLO(ttft_s=1.0, tpot_s=0.001))
    decision = ask(policy, fleet(0.0, 1, 1.0), REPLICA, settings=none)
    assert (decision.reason, decision.chosen.power_limit_watts) == (Reason.NO_FEASIBLE_POINT, None)


def test_throttllem_takes_the_smallest_fleet_and_waits_before_it_shrinks():
    policy = ThrottLlem(model=H100, grace_s=30.0)
    near = rounded(load(100.0))
    by_hand = next(
        count
        for count in range(1, 9)
        if H100.predict(
            OperatingPoint(num_replicas=count, max_num_active_seqs=256), near, SETTINGS.slo
        ).feasible
    )
    assert by_hand > 1
    assert ask(policy, fleet(0.0, 1, 100.0), FLEET).chosen.num_replicas == by_hand
    assert not ask(policy, fleet(29.0, by_hand, 1.0), FLEET).moves
    assert ask(policy, fleet(31.0, by_hand, 1.0), FLEET).chosen.num_replicas == 1
    beyond = ask(policy, fleet(40.0, 1, 5000.0), FLEET)
    assert (beyond.reason, beyond.chosen.num_replicas) == (Reason.NO_FEASIBLE_POINT, 8)


def test_pals_takes_the_pair_of_fewest_joules_that_reaches_the_target():
    caps = (8, 16, 32, 64, 128, 256)
    settings = wider(min_active_seqs=8)
    for rate in (1.0, 6.0, 12.0):
        decision = ask(Pals(model=H100), fleet(0.0, 1, rate), REPLICA, settings=settings)
        joules, _, _ = cheapest(rounded(load(1.1 * rate)), caps)
        chosen = H100.predict(
            replace(decision.chosen, num_replicas=1), rounded(load(1.1 * rate)), SETTINGS.slo
        )
        assert chosen.feasible
        assert chosen.joules_per_request == pytest.approx(joules)
    beyond = ask(Pals(model=H100), fleet(0.0, 1, 500.0), REPLICA)
    assert (beyond.reason, beyond.chosen.power_limit_watts) == (Reason.NO_FEASIBLE_POINT, None)


def test_pals_without_its_guard_may_break_the_latency_and_with_it_not():
    settings = replace(wider(min_active_seqs=1), slo=SLO(ttft_s=1.0, tpot_s=0.0125))
    seen = fleet(0.0, 1, 9.0)
    guarded = ask(Pals(model=H100), seen, REPLICA, settings=settings).chosen
    free = ask(Pals(model=H100, latency_guard=False), seen, REPLICA, settings=settings).chosen
    at = load(9.0)
    assert H100.predict(replace(guarded, num_replicas=1), at, settings.slo).feasible
    assert not H100.predict(replace(free, num_replicas=1), at, settings.slo).feasible


def test_pals_goes_up_while_it_misses_and_comes_back():
    policy = Pals(model=H100, step_s=10.0)
    base = ask(policy, fleet(0.0, 1, 1.0), REPLICA).chosen.power_limit_watts
    limits = known_limits(H100, SETTINGS.bounds)
    path = []
    for t in range(1, 120):
        late = {"num_judged": 10.0 * t, "num_late": float(min(t, 35)), "num_slow": 0.0}
        chosen = ask(policy, fleet(float(t), 1, 1.0, **late), REPLICA).chosen
        path.append(limits.index(chosen.power_limit_watts))
    start = limits.index(base)
    assert path[0] == start  # one look shows no miss yet
    assert path[4] == start - 1
    assert min(path) == max(start - 4, 0)
    assert path[-1] == start
    assert all(abs(b - a) <= 1 for a, b in pairwise(path))


def test_pals_learns_that_steps_are_slower():
    policy = Pals(model=H100)
    at_point = OperatingPoint(num_replicas=1, max_num_active_seqs=256)
    predicted = H100.predict(at_point, load(9.0), SETTINGS.slo).tpot_s
    for t in range(300):
        seen = fleet(float(t), 1, 9.0, tpot_s=1.5 * predicted)
        ask(policy, seen, REPLICA)
    assert policy._feedback["0"].slow_ratio == pytest.approx(1.5, rel=0.02)


def test_linucb_finds_the_planted_arms():
    """Two contexts with different best arms; theta of algorithm 1 by ridge regression."""
    draw = np.random.default_rng(3)
    planted = np.array([[0.2, 0.0], [0.0, 1.0], [0.5, -1.0], [-0.5, 0.3]])
    bandit, rows, best = LinUcb(4, 2), [[] for _ in range(4)], 0
    for step in range(1500):
        context = np.array([1.0, 1.0 if draw.random() < 0.5 else -1.0])
        arm = bandit.choose(context, range(4))
        reward = float(planted[arm] @ context + draw.normal(0.0, 0.1))
        bandit.learn(arm, context, reward)
        rows[arm].append((context, reward))
        if step >= 1000:
            best += arm == int(np.argmax(planted @ context))
    assert best / 500 > 0.95
    for arm, seen in enumerate(rows):
        x, r = np.array([c for c, _ in seen]), np.array([reward for _, reward in seen])
        ridge = np.linalg.solve(x.T @ x + 5.0 * np.eye(2), x.T @ r)
        assert bandit._theta[arm] == pytest.approx(ridge, abs=1e-9)


def test_linucb_tries_each_allowed_arm_once_first():
    bandit = LinUcb(4, 1)
    context = np.ones(1)
    assert [bandit.choose(context, (0, 1, 3)) for _ in range(3)] == [0, 1, 3]
    with pytest.raises(ValueError):
        bandit.choose(context, ())


def test_the_standardizer_takes_mean_and_spread_out():
    scale, values = Standardizer(1), [3.0, 5.0, 4.0, 8.0, 1.0]
    for value in values:
        found = scale([value])
    assert found[0] == 1.0
    spread = np.std(values, ddof=1)
    assert found[1] == pytest.approx((values[-1] - np.mean(values)) / spread, rel=1e-6)


def _steps(policy, count, watts_of, rate=5.0, begin_s=0.0, **changes):
    """Play `count` ticks on one replica whose draw follows its limit; the limits chosen."""
    limit, chosen = None, []
    for t in range(count):
        running = 5.0 + t % 7
        seen = fleet(
            begin_s + t, 1, rate, num_running=running, power_limit_watts=limit,
            draw_watts=watts_of(limit, running), **changes,
        )  # fmt: skip
        limit = ask(policy, seen, REPLICA).chosen.power_limit_watts
        chosen.append(limit)
    return chosen


def _draw(limit, running):
    """What the profile says, from which the best energy-delay product follows."""
    return float(H100.draw_by_batch(load(5.0), 256, limit)[round(running)])


def test_agft_settles_on_the_limit_of_the_least_energy_delay_product():
    policy = Agft(model=H100)
    chosen = _steps(policy, 900, _draw)
    batches = [5.0 + k for k in range(7)]

    def product(limit):
        curve = H100.latency_under(limit).curve(load(5.0))
        return np.mean([_draw(limit, n) * curve.mean(n) for n in batches])

    best = min((None, *LIMITS), key=product)
    assert chosen[:5] == [None, 600.0, 500.0, 400.0, 300.0]  # each arm once, from the highest
    assert np.mean([one == best for one in chosen[-300:]]) > 0.8


def test_agft_follows_what_it_measures_not_what_the_profile_says():
    """A device on which 400 W, and only that, draws a third."""

    def odd(limit, _):
        return 150.0 if limit == 400.0 else 500.0

    chosen = _steps(Agft(model=H100), 900, odd)
    assert np.mean([one == 400.0 for one in chosen[-300:]]) > 0.8


def test_agft_gives_up_arms_that_miss_and_runs_at_full_power_meanwhile():
    policy = Agft(model=H100, closed_s=100.0)
    for t in range(3):
        ask(policy, fleet(float(t), 1, 5.0, draw_watts=400.0), REPLICA)
    # 500 W is in force; its window misses
    late = ask(policy, fleet(3.0, 1, 5.0, draw_watts=400.0, ttft_s=2.0), REPLICA)
    assert (late.reason, late.chosen.power_limit_watts) == (Reason.SLO_AT_RISK, None)
    chosen = set(_steps(policy, 90, _draw, begin_s=4.0))
    assert chosen <= {None, 600.0}
    assert 300.0 in set(_steps(policy, 400, _draw, begin_s=104.0))


def test_what_is_shared_between_peers():
    bounds = SETTINGS.bounds
    assert [limit_at_least(w, bounds) for w in (None, 100.0, 300.0, 301.0, 601.0)] == [
        None, 300.0, 300.0, 400.0, None,
    ]  # fmt: skip
    assert known_limits(H100, replace(bounds, power_limits_watts=(50.0, 300.0))) == (None, 300.0)
    for rate in (0.013, 1.0, 7.7, 250.0):
        near = rounded(load(rate))
        assert rate <= near.arrival_rate_per_s <= 1.0201 * rate
        assert near.prompt_tokens == pytest.approx(500.0, rel=0.021)
    assert fewest_replicas(H100, load(1e6), SETTINGS.slo, bounds) is None


def counted(judged, missed, name="0"):
    return replica(name=name, num_judged=judged, num_late=missed, num_slow=0.0, ttft_s=1.1)


def test_misses_are_those_of_the_last_half_minute():
    slo, watch = SETTINGS.slo, Misses()
    assert not watch.late([counted(5000.0, 900.0)], 0.0, slo)  # all before it looked
    assert not watch.late([counted(5100.0, 901.0)], 10.0, slo)  # one is none
    assert not watch.late([counted(5300.0, 903.0)], 20.0, slo)  # 3 of 300
    assert watch.late([counted(5300.0, 904.0)], 25.0, slo)
    assert watch.late([counted(5400.0, 905.0)], 40.0, slo)  # since 10 s: 4 of 300
    assert not watch.late([counted(5400.0, 905.0)], 60.0, slo)
    assert not watch.late([counted(3.0, 2.0)], 61.0, slo)  # another replica of that name
    assert not watch.late([counted(90.0, 9.0, "1"), counted(3.0, 2.0)], 62.0, slo)
    assert watch.late([replica(ttft_s=1.1)], 0.0, slo)  # does not count
    assert not watch.late([replica(tpot_s=0.05)], 0.0, slo)


def test_what_is_remembered():
    due = Due()
    assert [due.again("a", t, 5.0) for t in (0.0, 4.9, 5.0, 9.0, 2.0)] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert due.again("b", 2.0, 5.0)
    most, seen = RecentMost(), []
    draw = np.random.default_rng(1)
    assert most.most(0.0, 10.0) is None
    for t in range(200):
        seen.append(float(draw.integers(0, 50)))
        most.add(float(t), seen[-1])
        assert most.most(float(t), 10.0) == max(seen[-11:])
    memo, made = Memo(), []
    for key in (1, 2, 1):
        assert memo.get(key, lambda key=key: made.append(key) or -key) == -key
    assert made == [1, 2]


def test_replicas_come_from_another_policy_where_one_is_given():
    for make in (Pals, Agft):
        alone = make(model=H100)
        assert not ask(alone, fleet(0.0, 2, 4.0), FLEET).moves
        joined = make(model=H100, replicas=Static(num_replicas=5))
        decision = ask(joined, fleet(0.0, 2, 4.0), FLEET)
        assert decision.chosen.num_replicas == 5
        assert decision.policy == joined.name
        both = ask(make(model=H100, replicas=Static(num_replicas=5)), fleet(0.0, 2, 4.0), ALL)
        assert both.chosen.num_replicas == 5
