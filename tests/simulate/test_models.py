"""What a run is made of: the two models, the limits, the fleet's sizes, attainable prompts."""

import numpy as np
import pytest

from policies.core.types import SLO, Knob
from policies.sim.blocks import Block
from serve_app.simulator.attainable import attainable_prompt_tokens, first_token_s
from serve_app.simulator.load import load_of, replicas_for
from serve_app.simulator.make import Context, _peaks, build
from serve_app.simulator.models import belief_of, default_limits, truth_of
from serve_app.simulator.scenario import Scenario
from serve_app.simulator.specs import parse_spec

EIGHT, SEVENTY = "llama-3.1-8b-instruct@h100", "llama-3.1-70b-instruct@h100-tp4"


def block(times, prompt=500, output=50):
    count = len(times)
    return Block(np.asarray(times, float), np.full(count, prompt), np.full(count, output))


def test_an_h100_may_be_limited_to_200_to_600_watts():
    for name in (EIGHT, SEVENTY):
        assert default_limits(truth_of(name)) == tuple(float(w) for w in range(200, 601, 50))
    assert default_limits(truth_of("smollm2-135m-instruct@cpu")) == ()


def test_the_belief_is_off_by_the_factor():
    truth = truth_of(EIGHT)
    fast = belief_of(truth, 1.25, 2.0)
    step = (8.0, 4000.0, 100.0)
    assert fast.latency.step_time_s(*step) == pytest.approx(truth.latency.step_time_s(*step) / 1.25)
    assert fast.power.step_joules(*step) == pytest.approx(2.0 * truth.power.step_joules(*step))
    assert belief_of(truth) is truth


def test_the_h100_response_slows_decode_less():
    measured, prior = (truth_of(EIGHT, one).power.speeds(300.0) for one in ("profile", "h100"))
    assert prior.prefill_ratio == measured.prefill_ratio
    assert prior.decode_ratio > measured.decode_ratio


@pytest.mark.parametrize("budget", [512, 2048])
@pytest.mark.parametrize("name", [EIGHT, SEVENTY])
def test_the_longest_attainable_prompt_is_just_in_time(name, budget):
    model, slo = truth_of(name), SLO(ttft_s=0.7)
    longest = attainable_prompt_tokens(model, slo, budget)
    assert first_token_s(model, longest, budget) <= slo.ttft_s
    assert first_token_s(model, longest + 1, budget) > slo.ttft_s
    latency = model.latency
    chunks = -(-longest // budget)
    contexts = sum(min(k * budget, longest) for k in range(1, chunks + 1))
    total = (
        chunks * (latency.t0_s + latency.a_s_per_seq) + latency.b_s_per_kv_token * contexts
        + latency.c_s_per_prefill_token * longest + latency.q_s_per_attended_pair * longest**2 / 2
    )  # fmt: skip
    assert first_token_s(model, longest, budget) == pytest.approx(total)


def test_nothing_is_attainable_within_less_than_a_step():
    assert attainable_prompt_tokens(truth_of(EIGHT), SLO(ttft_s=0.001), 2048) == 0


def test_the_peak_is_the_busiest_minute():
    times = np.sort(np.concatenate([np.arange(0, 600, 1.0), 300.0 + np.arange(0, 50, 0.5)]))
    load = load_of(block(times))
    slowly = max(sum(t - 60.0 < one <= t for one in times) for t in times) / 60.0
    assert load.peak_per_s == pytest.approx(slowly)
    assert load.mean_per_s == pytest.approx(700 / 599)
    assert load.at(2.0).prompt_tokens == pytest.approx(500.0)


def test_more_load_needs_more_replicas_and_sizes_are_settled():
    truth = truth_of(EIGHT)
    load = load_of(block(np.arange(0, 600, 0.1)))
    engine, slo = (2048, 256), SLO()
    sizes = [replicas_for(truth, load, rate, slo, engine) for rate in (1.0, 50.0, 200.0, 800.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] > sizes[1]
    sized = Scenario(truth=truth, belief=truth).sized(load)
    assert sized.initial_replicas == replicas_for(truth, load, load.mean_per_s, slo, engine)
    assert sized.max_replicas >= 2 * replicas_for(truth, load, load.peak_per_s, slo, engine)


def test_what_a_policy_is_given_reaches_it():
    truth = truth_of(EIGHT)
    held = block(np.arange(0, 300, 0.2))
    scenario = Scenario(
        truth=truth, belief=belief_of(truth, 1.2), power_limits_watts=(300.0, 400.0),
        kv_capacity_tokens=1000, max_num_batched_tokens=777, cold_start_s=33.0,
    )  # fmt: skip
    load = load_of(held)
    context = Context(scenario=scenario.sized(load), block=held, load=load)

    def made(text):
        return build(parse_spec(text), context)

    ours = made("energy_slo:hold_s=7,router=least")
    assert ours.model is scenario.belief
    assert (ours.options.hold_s, ours.options.max_num_batched_tokens) == (7, 777)
    assert (ours.options.cold_start_s, ours.options.packed) == (33.0, False)
    assert made("energy_slo").options.packed
    assert made("wva").kv_capacity_tokens == 1000.0
    assert made("pals:replicas=static_peak,replicas.num_replicas=3").replicas.num_replicas == 3
    assert made("fixed_limit:power_limit_watts=300").inner.name == "ray_default"
    only = made("only:knobs=power_limit+pack_seqs,num_replicas=2")
    assert set(only.knobs) == {Knob.POWER_LIMIT, Knob.PACK_SEQS}
    assert only.inner.name == "energy_slo"
    assert made("clairvoyant").model is truth
    assert made("dynamollm:forecast=hindsight").peak_rate_per_s(0.0, 300.0) == pytest.approx(5.0)
    assert made("dynamollm").peak_rate_per_s is None
    settings = context.scenario.control(parse_spec("wva:min_replicas=2,slo_headroom_ratio=0"))
    assert (settings.bounds.min_replicas, settings.slo_headroom_ratio) == (2, 0.0)


def test_the_foreseen_peak_is_that_of_the_minutes_that_begin_then():
    times = np.concatenate([np.arange(0, 600, 1.0), 605.0 + np.arange(0, 60, 0.1)])
    peak = _peaks(np.sort(times))
    assert peak(0.0, 400.0) == pytest.approx(1.0)
    assert peak(0.0, 620.0) == pytest.approx(9.25, abs=0.8)
    assert peak(5000.0, 6000.0) == 0.0
