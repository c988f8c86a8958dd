"""The compiled kernel against the same scheduler written step by step, and against laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_by_step import Replica, Request, run

from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel
from policies.sim import fleet_state, kernel
from policies.sim.coefficients import coefficients

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
LATENCY = LatencyModel(
    t0_s=0.010, a_s_per_seq=1e-4, b_s_per_kv_token=2e-7, c_s_per_prefill_token=3e-5,
    q_s_per_attended_pair=1e-9, d_s_per_token_beyond_knee=1e-4, knee_tokens=16.0,
)  # fmt: skip
POWER = PowerModel(
    idle_watts=80.0, e0_joules_per_step=3.0, e1_joules_per_seq=0.05, e2_joules_per_kv_token=1e-5,
    e3_joules_per_prefill_token=0.02, e4_joules_per_attended_pair=1e-7,
    e5_joules_per_token_beyond_knee=0.01, knee_tokens=32.0,
)  # fmt: skip


CAP = CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017)
MODEL = FittedModel(
    name="planted", model="m", device="d", latency=LATENCY,
    power=replace(POWER, natural_draw_watts=700.0, cap_response=CAP),
    valid=ValidRange(max_num_seqs=64, max_context_tokens=8192, max_prompt_tokens=8192),
    residuals=Residuals(
        step_time_median_ratio=0.0, step_time_p95_ratio=0.0, energy_median_ratio=0.0, samples=99
    ),
)  # fmt: skip


def fleet(count=1, *, cap=8, budget=256, capacity=1 << 20, **options):
    made = fleet_state.new_fleet(
        coefficients(MODEL, [None]), replicas=count, max_num_seqs=64, budget_tokens=budget,
        kv_capacity_tokens=capacity, slots=4096, done=8192, **options,
    )  # fmt: skip
    for replica in range(count):
        kernel.set_cap(made, replica, cap, 0.0)
        kernel.accept(made, replica, 0.0)
    return made


def arrivals(load):
    times, prompts, outputs = (np.array(column) for column in zip(*load, strict=True))
    return fleet_state.Arrivals(
        times.astype(float), prompts.astype(np.int64), outputs.astype(np.int64)
    )


def play(made, load, until_s=1e9):
    code, used = kernel.advance(made, until_s, arrivals(load), 0, True)
    assert (code, used) == (fleet_state.REACHED, len(load))
    return made.numbers[fleet_state.DONE]


loads = st.lists(
    st.tuples(st.floats(0.0, 3.0), st.integers(1, 700), st.integers(1, 60)), min_size=1, max_size=40
).map(sorted)


@settings(max_examples=150)
@example([(0.0, 39, 46), (0.0, 700, 19)], 1, 2, 16, 800)  # back in the step after it lost its place
@example([(0.01 * k, 300, 1 + k % 7) for k in range(90)], 2 * kernel.SPAN + 1, 2, 256, 3000)
@given(
    loads,
    st.sampled_from([1, 2, 3, kernel.SPAN + 1]),
    st.integers(1, 12),
    st.integers(16, 600),
    st.integers(800, 3000),
)
def test_it_equals_the_scheduler_step_by_step(load, count, cap, budget, capacity):
    made = fleet(count, cap=cap, budget=budget + 12, capacity=capacity)
    done = play(made, load)
    plain = [
        Replica(LATENCY, POWER, cap=cap, budget=budget + 12, capacity=capacity)
        for _ in range(count)
    ]
    requests = [Request(k, *one) for k, one in enumerate(load)]
    ended = run(plain, requests)
    assert done == len(ended) == len(load)
    seen = sorted(
        zip(made.done_arrival_s[:done], made.done_prompt_tokens[:done], made.done_first_s[:done],
            made.done_end_s[:done], made.done_replica[:done], strict=True)
    )  # fmt: skip
    wanted = sorted((r.arrival_s, r.prompt, r.first_s, r.end_s, r.replica) for r in ended)
    np.testing.assert_allclose(seen, wanted, rtol=1e-9)
    for k, one in enumerate(plain):
        assert made.active_joules[k] == pytest.approx(one.joules, rel=1e-9, abs=1e-9)
        assert made.idle_joules[k] == pytest.approx(one.idle_joules, rel=1e-9, abs=1e-9)
        assert made.preemptions[k] == one.preemptions
        assert made.kv_tokens[k] == made.running[k] == made.waiting[k] == 0
    assert made.output_tokens.sum() >= sum(o for _, _, o in load)


def test_a_full_cache_takes_places_away_and_loses_nothing():
    made = fleet(capacity=900, cap=8)
    load = [(0.0, 100, 200)] * 6
    assert play(made, load) == 6
    assert made.preemptions[0] > 0
    assert made.output_tokens[0] > 6 * 200 - 1
    assert (made.done_output_tokens[:6] == 200).all()


def poisson(rate, count, prompt=200, output=100, seed=1):
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return [(t, prompt, output) for t in np.cumsum(gaps)]


def test_littles_law_and_energy_is_power_over_time():
    made = fleet(2, cap=32, budget=2048)
    load = poisson(8.0, 3000)
    done = play(made, load)
    end_s = made.done_end_s[:done].max()
    kernel.settle_idle(made, end_s)
    response_s = made.done_end_s[:done] - made.done_arrival_s[:done]
    # The time that requests spend inside, by their own clocks and by sampling the fleet.
    again = fleet(2, cap=32, budget=2048)
    requests = arrivals(load)
    shown, inside, used, step_s = np.zeros(2), 0.0, 0, 0.5
    last, drawn = 0.0, 0.0
    for now_s in np.arange(step_s, end_s + step_s, step_s):
        code, used = kernel.advance(again, now_s, requests, used, True)
        assert code == fleet_state.REACHED
        inside += again.outstanding.sum() * step_s
        kernel.joules_at(again, now_s, shown)
        assert shown.sum() >= last
        drawn, last = drawn + shown.sum() - last, shown.sum()
    assert inside == pytest.approx(response_s.sum(), rel=0.03)
    assert made.active_joules.sum() == pytest.approx(again.active_joules.sum(), rel=1e-9)
    assert drawn == pytest.approx(made.active_joules.sum() + made.idle_joules.sum(), rel=0.01)
    assert (made.busy_s <= end_s * (1 + 1e-9)).all()
    idle_s = made.idle_joules / POWER.idle_watts
    assert made.busy_s + idle_s == pytest.approx(np.full(2, end_s), rel=1e-6)
    assert (made.prefill_joules < made.active_joules).all()


def test_the_same_seed_gives_the_same_bits_and_jitter_moves_them():
    def ends(**options):
        made = fleet(2, **options)
        return made.done_end_s[: play(made, poisson(5.0, 300))]

    assert (ends(jitter=0.1, seed=3) == ends(jitter=0.1, seed=3)).all()
    assert not np.array_equal(ends(jitter=0.1, seed=3), ends(jitter=0.1, seed=4))
    calm, shaken = ends(), ends(jitter=0.05, seed=3)
    assert shaken.max() == pytest.approx(calm.max(), rel=0.02)


def test_a_lower_cap_drains_and_a_higher_one_fills_at_the_next_step():
    made = fleet(cap=8)
    load = [(0.0, 10, 2000)] * 12
    requests = arrivals(load)
    _, used = kernel.advance(made, 1.0, requests, 0, True)
    assert (used, made.running[0], made.waiting[0]) == (12, 8, 4)
    kernel.set_cap(made, 0, 10, 1.0)
    kernel.advance(made, 1.1, requests, used, True)
    assert (made.running[0], made.waiting[0]) == (10, 2)
    kernel.set_cap(made, 0, 2, 1.1)
    kernel.advance(made, 2.0, requests, used, True)
    assert (made.running[0], made.waiting[0]) == (10, 2)  # nobody is thrown out
    code, _ = kernel.advance(made, 1e9, requests, used, True)
    assert (code, made.numbers[fleet_state.DONE]) == (fleet_state.REACHED, 12)


def test_a_power_limit_slows_and_cuts_the_draw():
    made = fleet_state.new_fleet(
        coefficients(MODEL, [None, 200.0]), replicas=1, max_num_seqs=8, budget_tokens=512,
        kv_capacity_tokens=1 << 20, slots=16, done=64,
    )  # fmt: skip
    kernel.accept(made, 0, 0.0)
    kernel.set_row(made, 0, 1, 0.0)
    assert play(made, [(0.0, 100, 50)]) == 1
    first_s = MODEL.latency_under(200.0).step_time_s(1, 100, 100, 5000.0)
    assert first_s > 1.5 * LATENCY.step_time_s(1, 100, 100, 5000.0)
    assert made.done_first_s[0] == pytest.approx(first_s)
    assert made.active_joules[0] == pytest.approx(200.0 * made.busy_s[0], rel=1e-6)


def test_requests_that_nobody_may_take_wait_and_none_is_lost():
    made = fleet_state.new_fleet(
        coefficients(MODEL, [None]), replicas=2, max_num_seqs=8, budget_tokens=512,
        kv_capacity_tokens=1 << 20, slots=64, done=64,
    )  # fmt: skip
    load = [(0.1 * k, 50, 5) for k in range(10)]
    requests = arrivals(load)
    code, used = kernel.advance(made, 5.0, requests, 0, True)
    assert (code, used, made.numbers[fleet_state.DONE]) == (fleet_state.REACHED, 10, 0)
    kernel.accept(made, 1, 5.0)
    kernel.advance(made, 60.0, requests, used, True)
    assert made.numbers[fleet_state.DONE] == 10
    assert made.done_first_s[:10].min() > 5.0
    made.accepting[1] = 0  # drains
    assert made.outstanding.sum() == 0


def test_a_replica_that_is_not_there_draws_nothing():
    made = fleet(2)
    made.accepting[1] = 0
    kernel.release(made, 1, 10.0)
    kernel.settle_idle(made, 100.0)
    shown = np.zeros(2)
    kernel.joules_at(made, 100.0, shown)
    assert shown == pytest.approx([100.0 * POWER.idle_watts, 10.0 * POWER.idle_watts])
    kernel.accept(made, 1, 150.0)
    kernel.settle_idle(made, 160.0)
    assert made.idle_joules[1] == pytest.approx(20.0 * POWER.idle_watts)


def test_it_stops_and_goes_on_where_the_caller_has_to_act():
    def small():
        made = fleet_state.new_fleet(
            coefficients(MODEL, [None]), replicas=1, max_num_seqs=4, budget_tokens=512,
            kv_capacity_tokens=1 << 20, slots=4, done=12,
        )  # fmt: skip
        kernel.accept(made, 0, 0.0)
        return made

    times = np.arange(40) * 0.5
    prompts, outputs = np.full(40, 20), np.full(40, 10)
    made, ended, used = small(), [], 0
    stops = set()
    for begin in range(0, 40, 10):
        used = 0
        block = slice(begin, begin + 10)
        while True:
            part = fleet_state.Arrivals(times[block], prompts[block], outputs[block])
            code, used = kernel.advance(made, 1e9, part, used, begin == 30)
            stops.add(code)
            if code != fleet_state.DONE_FULL:
                break
            ended += list(made.done_arrival_s[: made.numbers[fleet_state.DONE]])
            made.numbers[fleet_state.DONE] = 0
    ended += list(made.done_arrival_s[: made.numbers[fleet_state.DONE]])
    assert ended == list(times)
    assert stops == {fleet_state.NEEDS_ARRIVALS, fleet_state.DONE_FULL, fleet_state.REACHED}
    crowd = small()
    at_once = fleet_state.Arrivals(np.zeros(9), prompts[:9], outputs[:9])
    code, used = kernel.advance(crowd, 1e9, at_once, 0, True)
    assert (code, used) == (fleet_state.SLOTS_FULL, 4)


@pytest.mark.parametrize("router", [fleet_state.POWER_OF_TWO, fleet_state.PACKED])
def test_routers(router):
    made = fleet(6, cap=16, router=router, pack_seqs=6, seed=5)
    done = play(made, poisson(20.0, 2000, prompt=50, output=60))
    shares = np.bincount(made.done_replica[:done], minlength=6) / done
    if router == fleet_state.PACKED:
        assert (np.diff(shares) <= 0.0).all()
        assert shares[0] > 0.3 > 0.05 > shares[5]
    else:
        assert shares == pytest.approx(np.full(6, 1 / 6), abs=0.04)
