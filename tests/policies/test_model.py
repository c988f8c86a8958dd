"""The model against measured figures, textbook queues and its own file format."""

import copy
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.core.errors import ConfigError, NotFitted, OutOfRange
from policies.core.types import SLO, Binding, Load, OperatingPoint
from policies.model.batch import BatchProcess
from policies.model.curve import StepCurve
from policies.model.fitted import FittedModel
from policies.model.workload import WorkloadModel, length_bin

DATA = json.loads((Path(__file__).parents[1] / "data" / "h100_llama8b.json").read_text())
H100 = FittedModel.from_dict(DATA)
CHAT = Load(arrival_rate_per_s=10.0, prompt_tokens=200.0, output_tokens=200.0)
SLO_CHAT = SLO(ttft_s=1.0, tpot_s=0.03)

# PHYSICS §2, Llama-3.1-8B on H100: batch -> tok/s, J/token, median ITL in ms.
MEASURED = {
    8: (1070, 0.455, 7.3),
    16: (1954, 0.263, 7.9),
    32: (3391, 0.165, 8.9),
    64: (5147, 0.119, 11.5),
    128: (7037, 0.095, 16.5),
    256: (9010, 0.077, 26.1),
}


def point(replicas=1, cap=256, limit=None):
    return OperatingPoint(num_replicas=replicas, max_num_active_seqs=cap, power_limit_watts=limit)


@pytest.mark.parametrize("batch", MEASURED)
def test_steps_match_the_measured_table(batch):
    tokens_per_s, joules_per_token, median_itl_ms = MEASURED[batch]
    step_s = H100.latency.step_time_s(batch, 0, 0)
    joules = H100.power.step_joules(batch, 0, 0)
    assert batch / step_s == pytest.approx(tokens_per_s, rel=0.08)
    assert joules / batch == pytest.approx(joules_per_token, rel=0.065)
    assert step_s * 1e3 == pytest.approx(median_itl_ms, rel=0.12)


@pytest.mark.parametrize("batch", [16, 64, 128])
def test_fleet_prediction_reproduces_the_table_at_the_same_batch(batch):
    """A load that keeps `batch` requests running costs the table's joules per token."""
    bare = replace(H100, latency=replace(H100.latency, c_s_per_prefill_token=0.0))
    bare = replace(bare, power=replace(bare.power, e3_joules_per_prefill_token=0.0))
    load = replace(CHAT, arrival_rate_per_s=batch / 200.0 / bare.latency.step_time_s(batch, 0, 0))
    seen = bare.predict(point(), load, SLO_CHAT)
    assert seen.joules_per_request / 200.0 == pytest.approx(MEASURED[batch][1], rel=0.08)


def test_steady_state_solves_littles_law_and_the_step_equation():
    state = H100.latency.steady_state(CHAT, 256)
    rate = CHAT.arrival_rate_per_s
    assert state.num_running == pytest.approx(rate * 200 * state.step_time_s)
    prefill = rate * 200 * state.step_time_s
    assert state.step_time_s == pytest.approx(
        H100.latency.step_time_s(state.num_running, 0, prefill)
    )
    assert not state.saturated


def test_at_the_cap_the_step_equation_holds_with_the_admitted_load():
    state = H100.latency.steady_state(replace(CHAT, arrival_rate_per_s=100.0), 64)
    capacity = H100.latency.capacity_per_s(CHAT, 64)
    assert state.saturated
    assert state.num_running == 64
    assert capacity == pytest.approx(64 / (200 * state.step_time_s))
    prefill = capacity * 200 * state.step_time_s
    assert state.step_time_s == pytest.approx(H100.latency.step_time_s(64, 0, prefill))


def test_context_tokens_slow_the_step():
    slower = replace(H100.latency, b_s_per_kv_token=1e-7)
    assert slower.curve(CHAT).per_seq == pytest.approx(8.52e-5 + 300 * 1e-7)


def process(rate, cap, t0=0.01, g=0.0, tout=100.0):
    curve = StepCurve(base=t0, per_seq=g, per_prompt=0.0, output_tokens=tout)
    return BatchProcess(arrival_rate_per_s=rate, curve=curve, cap=cap)


def test_without_batch_cost_the_chain_is_erlang_c():
    """M/M/5 with offered load 4: P(wait) = .554, the textbook value."""
    queue = process(4.0, 5)
    probabilities = queue.probabilities()
    assert probabilities[-1] == pytest.approx(0.5541, abs=1e-4)
    assert queue.wait_s(probabilities, 0.99) == pytest.approx(math.log(0.5541 / 0.01), abs=1e-3)
    assert queue.wait_s(probabilities, 0.4) == 0.0


def test_without_a_cap_the_batch_is_poisson_and_then_wider():
    poisson = process(9.0, 200).probabilities()
    states = np.arange(201)
    assert poisson @ states == pytest.approx(9.0)
    assert poisson @ states**2 - 81.0 == pytest.approx(9.0)
    wide = process(9.0, 2000, t0=0.005, g=5e-4).probabilities()
    states = np.arange(2001)
    mean = wide @ states
    variance = wide @ states**2 - mean**2
    assert mean == pytest.approx(4.95 / 0.55)  # (L tout t0 + p) / (1 - p), p = L tout g = .45
    assert variance / mean == pytest.approx(1 / 0.55)
    assert process(9.0, 200).batch_at(0.99) == 18  # Poisson(9): P(n <= 17) = .995, plus itself


def test_beyond_a_knee_the_chain_agrees_with_a_simulation():
    """As below, with steps that grow faster beyond a batch of 6: mean batch, and the batch that 95 %
    of the arrivals share where nothing caps it."""
    curve = StepCurve(
        base=0.008, per_seq=1e-4, per_prompt=0.0, output_tokens=100.0, beyond=4e-4, knee=6.0
    )
    rng = random.Random(5)
    inside, now, area = 0, 0.0, 0.0
    found: list[int] = []
    for _ in range(200_000):
        rate = 8.0 + (inside / (100.0 * curve.mean(inside)) if inside else 0.0)
        dt = rng.expovariate(rate)
        now, area = now + dt, area + inside * dt
        arrives = rng.random() < 8.0 / rate
        if arrives:
            found.append(inside + 1)
        inside += 1 if arrives else -1
    free = BatchProcess(arrival_rate_per_s=8.0, curve=curve, cap=400)
    assert free.probabilities() @ np.arange(401) == pytest.approx(area / now, rel=0.03)
    assert free.batch_at(0.95) == pytest.approx(sorted(found)[int(0.95 * len(found))], abs=1)
    assert BatchProcess(arrival_rate_per_s=8.0, curve=curve, cap=5).batch_at(0.95) == 5


def test_without_a_knee_the_two_ways_to_the_batch_agree():
    """A knee of no height is summed term by term, no knee in closed form."""
    flat = StepCurve(base=0.008, per_seq=3e-4, per_prompt=0.02, output_tokens=100.0)
    kinked = replace(flat, beyond=1e-12, knee=4.0)
    for rate in (0.5, 5.0, 15.0, 19.0):
        for cap in (4, 64, 512):
            sizes = [
                BatchProcess(arrival_rate_per_s=rate, curve=c, cap=cap).batch_at(0.99)
                for c in (flat, kinked)
            ]
            assert sizes[0] == sizes[1]


def test_a_long_prompt_pays_for_attention_and_a_large_batch_for_the_knee():
    latency = replace(
        H100.latency,
        q_s_per_attended_pair=1e-9,
        d_s_per_token_beyond_knee=1e-5,
        knee_tokens=160.0,
    )
    short, long = (latency.prefill_s(replace(CHAT, prompt_tokens=p)) for p in (1000.0, 8000.0))
    per_token = latency.c_s_per_prefill_token + 1e-5
    assert short == pytest.approx(1000 * per_token + 1e-9 * 0.5e6)
    assert long == pytest.approx(8000 * per_token + 1e-9 * 32e6)
    below, above = latency.step_time_s(160, 0, 0), latency.step_time_s(161, 0, 0)
    assert above - below == pytest.approx(latency.a_s_per_seq + 1e-5)
    state = latency.steady_state(replace(CHAT, arrival_rate_per_s=40.0), 512)
    assert state.num_running > 160
    assert state.step_time_s == pytest.approx(latency.curve(CHAT).mean(state.num_running))


def test_a_corrected_model_scales_steps_and_keeps_idle_and_knee():
    planted = replace(
        H100, latency=replace(H100.latency, d_s_per_token_beyond_knee=1e-6, knee_tokens=160.0)
    )
    found = planted.corrected(step_time_ratio=1.2, energy_ratio=0.9)
    assert found.latency.step_time_s(200, 1e4, 300) == pytest.approx(
        1.2 * planted.latency.step_time_s(200, 1e4, 300)
    )
    assert found.power.step_joules(200, 1e4, 300) == pytest.approx(
        0.9 * planted.power.step_joules(200, 1e4, 300)
    )
    assert found.power.idle_watts == planted.power.idle_watts
    assert found.power.cap_response == planted.power.cap_response
    assert planted.corrected() is planted


def test_chain_agrees_with_a_simulation():
    """An event simulation of the same queue: mean batch and the share of time at the cap."""
    queue = process(7.0, 12, t0=0.008, g=2e-4)
    rng = random.Random(3)
    inside, now, area, full = 0, 0.0, 0.0, 0.0
    for _ in range(200_000):
        running = min(inside, 12)
        rate = 7.0 + (running / (100.0 * (0.008 + 2e-4 * running)) if running else 0.0)
        dt = rng.expovariate(rate)
        now, area, full = now + dt, area + running * dt, full + (running == 12) * dt
        inside += 1 if rng.random() < 7.0 / rate else -1
    probabilities = queue.probabilities()
    assert area / now == pytest.approx(probabilities @ np.arange(13), rel=0.03)
    assert full / now == pytest.approx(probabilities[-1], rel=0.1)


def test_prefill_stalls_raise_the_percentile_but_not_the_median_as_much():
    long = replace(CHAT, prompt_tokens=2000.0, output_tokens=25.0, arrival_rate_per_s=5.0)
    base = H100.latency.step_time_s(4, 0, 0)
    median, p99 = H100.latency.tpot_s(long, 4, 0.5), H100.latency.tpot_s(long, 4, 0.99)
    assert median == pytest.approx(base / (1 - 5 * 2000 * 25e-6))
    assert p99 > 1.5 * median
    quiet = replace(long, prompt_tokens=0.0)
    assert H100.latency.tpot_s(quiet, 4, 0.99) == pytest.approx(base)


def test_an_unloaded_replica_shows_its_single_stream_speed_and_idle_draw():
    seen = H100.predict(point(), replace(CHAT, arrival_rate_per_s=1e-4), SLO_CHAT)
    assert seen.tpot_s == pytest.approx(H100.latency.step_time_s(1, 0, 0), rel=0.01)
    assert seen.draw_watts == pytest.approx(121.0, rel=0.01)
    assert seen.feasible


def test_packing_is_the_biggest_lever():
    """PHYSICS §1.1: the same load over twice the replicas costs far more joules."""
    load = replace(CHAT, arrival_rate_per_s=8.0)
    one, two = (H100.predict(point(n), load, SLO_CHAT) for n in (1, 2))
    assert two.joules_per_request > 1.4 * one.joules_per_request
    assert two.tpot_s < one.tpot_s


def test_binding_names_what_breaks():
    loads = {
        Binding.CAPACITY: (CHAT, point(cap=8), SLO_CHAT),
        Binding.TTFT: (CHAT, point(cap=256), SLO(ttft_s=0.001, tpot_s=1.0)),
        Binding.TPOT: (CHAT, point(cap=256), SLO(ttft_s=1.0, tpot_s=0.007)),
        Binding.NONE: (CHAT, point(cap=256), SLO_CHAT),
    }
    for binding, (load, where, slo) in loads.items():
        assert H100.predict(where, load, slo).binding is binding


def test_beyond_capacity_joules_are_per_completed_request():
    over = H100.predict(point(cap=32), replace(CHAT, arrival_rate_per_s=1000.0), SLO_CHAT)
    capacity = H100.capacity_per_s(point(cap=32), CHAT)
    assert over.joules_per_request == pytest.approx(over.draw_watts / capacity)
    assert over.utilization_ratio == pytest.approx(1000.0 / capacity)
    assert math.isfinite(over.ttft_s)


# PHYSICS §3: compute-bound relative speed under a limit, H100 94 GB.
SPEED = {200: 0.320, 300: 0.594, 400: 0.821, 500: 0.915, 600: 0.966, 700: 1.0}


@pytest.mark.parametrize("limit", SPEED)
def test_cap_response_fits_the_measured_curve(limit):
    assert H100.power.cap_response.speed_ratio(limit) == pytest.approx(SPEED[limit], abs=0.04)


@pytest.mark.parametrize(("share", "speed"), [(0.67, 0.98), (0.58, 0.89), (0.5, 0.76)])
def test_decode_keeps_its_speed_as_measured(share, speed):
    assert H100.power.speeds(share * 700.0).decode_ratio == pytest.approx(speed, abs=0.03)


def test_a_limit_cuts_draw_slows_the_replica_and_above_the_natural_draw_does_nothing():
    load = replace(CHAT, arrival_rate_per_s=20.0)
    free, inert, capped = (
        H100.predict(point(limit=w), load, SLO_CHAT) for w in (None, 691.0, 400.0)
    )
    assert free == inert
    assert capped.draw_watts <= 400.0 < free.draw_watts
    assert capped.tpot_s > free.tpot_s
    assert capped.ttft_s > free.ttft_s


def test_a_limit_without_a_response_is_refused_unless_inert():
    blind = replace(H100, power=replace(H100.power, cap_response=None))
    assert blind.predict(point(limit=700.0), CHAT, SLO_CHAT).feasible
    with pytest.raises(OutOfRange, match="cap_response"):
        blind.predict(point(limit=400.0), CHAT, SLO_CHAT)
    with pytest.raises(OutOfRange, match="94"):
        H100.predict(point(limit=90.0), CHAT, SLO_CHAT)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"arrival_rate_per_s": 0.0}, point()),
        ({"arrival_rate_per_s": math.nan}, point()),
        ({"arrival_rate_per_s": -1.0}, point()),
        ({"output_tokens": 0.5}, point()),
        ({"prompt_tokens": math.inf}, point()),
        ({"prompt_tokens": 4096 * 1.21}, point()),
        ({"prompt_tokens": 4000.0, "output_tokens": 6000.0}, point()),
        ({}, point(cap=308)),
        ({}, point(cap=0)),
        ({}, point(replicas=0)),
    ],
)
def test_questions_outside_the_range_are_refused(change, where):
    with pytest.raises(OutOfRange, match="fitted"):
        H100.predict(where, replace(CHAT, **change), SLO_CHAT)
    with pytest.raises(OutOfRange, match="fitted"):
        H100.full_batch_tpot_s(where, replace(CHAT, **change), SLO_CHAT)


def test_up_to_a_fifth_beyond_the_range_is_answered():
    assert H100.predict(point(cap=307), replace(CHAT, prompt_tokens=4900.0), SLO_CHAT).ttft_s > 0


@pytest.mark.parametrize(
    "bad",
    [
        {"samples": 3},
        {"step_time_median_ratio": 0.4},
        {"step_time_p95_ratio": 0.9},
        {"energy_median_ratio": 0.5},
        {"energy_median_ratio": math.nan},
    ],
)
def test_a_bad_fit_is_not_trusted_and_does_not_answer(bad):
    model = replace(H100, residuals=replace(H100.residuals, **bad))
    assert H100.trusted
    assert not model.trusted
    with pytest.raises(NotFitted, match="residuals"):
        model.predict(point(), CHAT, SLO_CHAT)


def test_round_trip_is_exact():
    assert FittedModel.from_dict(json.loads(json.dumps(H100.to_dict()))) == H100


def changed(path, value):
    data = copy.deepcopy(H100.to_dict())
    *parents, last = path.split(".")
    inner = data
    for key in parents:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("latency.t0_s", -1.0),
        ("latency.t0_s", 0.0),
        ("latency.a_s_per_seq", math.nan),
        ("latency.a_s_per_seq", "fast"),
        ("latency.a_s_per_seq", True),
        ("latency.c_s_per_prefill_token", KeyError),
        ("power.idle_watts", math.inf),
        ("power.cap_response.ck_watts", 90.0),
        ("valid.max_num_seqs", 0),
        ("valid.max_num_seqs", 2.5),
        ("residuals.samples", -3),
        ("provenance", {"seed": 3}),
        ("name", 7),
        ("latency", [1, 2]),
        ("schema_version", 2),
    ],
)
def test_a_wrong_profile_names_source_key_and_allowed_values(path, value):
    with pytest.raises(ConfigError) as caught:
        FittedModel.from_dict(changed(path, value), source="p.yaml")
    message = str(caught.value)
    assert message.startswith("p.yaml: ")
    assert path in message
    assert "allowed: " in message


def test_a_knee_that_makes_larger_batches_complete_less_is_refused():
    data = changed("latency.d_s_per_token_beyond_knee", 1e-3)
    data["latency"]["knee_tokens"] = 100.0
    with pytest.raises(
        ConfigError, match=r"p\.yaml: latency\.d_s_per_token_beyond_knee x knee_tok"
    ):
        FittedModel.from_dict(data, source="p.yaml")


def test_an_unknown_key_is_named():
    with pytest.raises(ConfigError, match=r"p\.yaml: unknown key latency\.t1_s; allowed: t0_s"):
        FittedModel.from_dict(changed("latency.t1_s", 1.0), source="p.yaml")


def test_workload_bins_and_energy():
    assert [length_bin(n) for n in (0, 1, 2, 3, 4, 5, 1024, 1025)] == [1, 1, 2, 4, 4, 8, 1024, 2048]
    with pytest.raises(OutOfRange):
        length_bin(-1)
    model = WorkloadModel(
        alpha0_joules_per_prompt_token=0.1,
        alpha1_joules_per_output_token=2.0,
        alpha2_joules_per_token_squared=0.01,
    )
    assert model.request_joules(10, 5) == pytest.approx(1.0 + 10.0 + 0.5)


def test_the_batch_percentile_is_that_of_the_negative_binomial():
    """No cap, p = L tout g = .45, r = 1 + t0/g = 11: scipy's nbinom is the independent answer."""
    stats = pytest.importorskip("scipy.stats")
    queue = process(9.0, 2000, t0=0.005, g=5e-4)
    for q in (0.5, 0.9, 0.99, 0.999):
        assert queue.batch_at(q) == int(stats.nbinom.ppf(q, 11, 1 - 0.45)) + 1


def test_a_fit_with_a_falling_draw_does_not_reward_load():
    """E0/t0 above E1/a: the raw line falls with the batch; the prediction must not."""
    noisy = replace(
        H100.power, e0_joules_per_step=6.0, e1_joules_per_seq=0.02, e3_joules_per_prefill_token=0.0
    )
    model = replace(H100, power=noisy)
    draws = [
        model.predict(point(), replace(CHAT, arrival_rate_per_s=rate), SLO_CHAT).draw_watts
        for rate in (0.1, 1.0, 5.0, 10.0, 20.0, 30.0)
    ]
    assert draws == pytest.approx(sorted(draws), rel=1e-9)


def test_prompts_that_queue_for_prefill_delay_the_first_token():
    """M/M/1: at 80 % prefill load the p99 waits ln(.8/.01) c tin / .2 for earlier prompts."""
    load = Load(arrival_rate_per_s=16.0, prompt_tokens=2000.0, output_tokens=2.0)
    seen = H100.predict(point(), load, SLO_CHAT)
    assert seen.ttft_s >= math.log(80.0) * 0.05 / 0.2


def test_a_limit_below_idle_does_not_promise_less_than_idle():
    power = replace(H100.power, idle_watts=350.0, num_devices=1)
    assert power.ceiling_watts(300.0) == 350.0
    assert replace(power, num_devices=4).ceiling_watts(300.0) == 1200.0
    assert power.ceiling_watts(None) == math.inf
