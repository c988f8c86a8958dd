"""The binned estimate against sums over requests, Little's law and the model's own prediction."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import OutOfRange
from policies.core.types import SLO, Load, OperatingPoint
from policies.model.binned import (
    NaiveEstimate,
    Requests,
    bin_joules,
    bin_requests,
    fixed_batches,
    little_batches,
    request_joules,
    within_range,
)
from policies.model.fitted import FittedModel
from policies.model.workload import WorkloadModel
from policies.sim.trace import Lengths, poisson

H100 = FittedModel.from_dict(
    json.loads((Path(__file__).parents[1] / "data" / "h100_llama8b.json").read_text())
)
CAP = H100.valid.max_num_seqs


def requests(lengths, arrival_s=None, replica=None):
    prompts, outputs = zip(*lengths, strict=True)
    count = len(lengths)
    return Requests(
        arrival_s=np.asarray(np.arange(count) if arrival_s is None else arrival_s, dtype=float),
        prompt_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        replica=np.zeros(count, dtype=np.int64) if replica is None else np.array(replica),
        joules=np.full(count, np.nan),
    )


def evenly(rate_per_s, duration_s, lengths=(200, 200)):
    times = np.arange(int(rate_per_s * duration_s) + 1) / rate_per_s
    return requests([lengths] * len(times), times)


def total(model, found, batches, at_edges=False):
    return sum(
        bin_joules(model, one, at_edges=at_edges) for one in bin_requests(found, batches.by_request)
    )


def test_request_energy_is_its_part_of_the_steps_and_its_prompt():
    power = replace(H100.power, e2_joules_per_kv_token=1e-5)
    expected = 100 * (3.32 / 8 + 0.0654 + 1e-5 * (500 + 50)) + 0.017 * 500
    assert request_joules(power, 500, 100, 8) == pytest.approx(expected)
    workload = WorkloadModel(
        alpha0_joules_per_prompt_token=0.017,
        alpha1_joules_per_output_token=0.0654,
        alpha2_joules_per_token_squared=1e-5,
        alpha1b_shared_joules_per_output_token=3.32,
    )
    rest = 1e-5 * 100 * 50  # the context that the output itself makes
    assert workload.request_joules(500, 100, 8) + rest == pytest.approx(expected)


def test_a_batch_below_one_is_no_batch():
    model = WorkloadModel(
        alpha0_joules_per_prompt_token=0.1,
        alpha1_joules_per_output_token=0.1,
        alpha2_joules_per_token_squared=0.0,
    )
    assert model.request_joules(10, 10, 1) == model.request_joules(10, 10, 64)
    for batch in (0.9, 0.0, math.nan):
        with pytest.raises(OutOfRange, match="batch"):
            model.request_joules(10, 10, batch)


lengths = st.tuples(st.integers(513, 1024), st.integers(65, 128))


@given(st.lists(lengths, min_size=1, max_size=20), st.floats(1.0, CAP))
def test_in_one_bin_the_estimate_is_the_sum_over_requests(found, batch):
    """With energy that is linear in the lengths, and with the paper's upper edges never below."""
    mine = requests(found)
    batches = fixed_batches(H100.valid, mine, batch)
    one_by_one = sum(request_joules(H100.power, p, o, batch) for p, o in found)
    assert len(bin_requests(mine)) == 1
    assert total(H100, mine, batches) == pytest.approx(one_by_one)
    edges = total(H100, mine, batches, at_edges=True)
    assert edges == pytest.approx(len(found) * request_joules(H100.power, 1024, 128, batch))
    assert edges >= one_by_one * (1 - 1e-9)


@given(st.lists(st.floats(8.01, 16.0), min_size=1, max_size=20))
def test_in_one_bin_different_batches_keep_their_sum(batches):
    mine = requests([(700, 90)] * len(batches))
    bins = bin_requests(mine, np.array(batches))
    assert [one.batch_bin for one in bins] == [16]
    assert bin_joules(H100, bins[0], at_edges=False) == pytest.approx(
        sum(request_joules(H100.power, 700, 90, batch) for batch in batches)
    )


any_lengths = st.tuples(st.integers(1, 8000), st.integers(1, 3000))


@given(st.lists(any_lengths, min_size=1, max_size=40), st.data())
def test_bins_lose_no_request_and_no_token(found, data):
    mine = requests(found)
    batches = np.array([data.draw(st.floats(1.0, 300.0)) for _ in found])
    for bins in (bin_requests(mine), bin_requests(mine, batches)):
        assert sum(one.requests for one in bins) == len(found)
        assert sum(one.requests * one.mean_prompt_tokens for one in bins) == pytest.approx(
            sum(p for p, _ in found)
        )
        for one in bins:
            assert one.prompt_bin / 2 < max(one.mean_prompt_tokens, 0.51)
            assert one.mean_prompt_tokens <= one.prompt_bin
            assert one.mean_output_tokens <= one.output_bin
            assert one.batch is None or one.batch <= one.batch_bin * (1 + 1e-6)


@given(st.lists(lengths, min_size=1, max_size=10), st.floats(1.0, 128.0), st.floats(1.0, 2.0))
def test_a_larger_batch_never_costs_more(found, batch, more):
    mine = requests(found)
    small, large = (fixed_batches(H100.valid, mine, b) for b in (batch, batch * more))
    assert total(H100, mine, large) <= total(H100, mine, small) * (1 + 1e-9)


def test_the_batch_solves_littles_law_in_every_window():
    mine = evenly(8.0, 600.0)
    found = little_batches(H100.latency, mine, CAP)
    running = (
        8.0
        * 200
        * H100.latency.steady_state(
            Load(arrival_rate_per_s=8.0, prompt_tokens=200.0, output_tokens=200.0), CAP
        ).step_time_s
    )
    expected = running / (1 - math.exp(-running))
    assert found.by_request == pytest.approx(np.full(len(mine), expected), rel=0.01)
    assert found.idle_s == pytest.approx(600.0 * math.exp(-running), rel=0.1)
    assert found.saturated == 0


def test_the_batch_follows_the_rate_over_time():
    quiet, busy = evenly(1.0, 600.0), evenly(16.0, 600.0)
    times = np.concatenate([quiet.arrival_s, 600.0 + busy.arrival_s])
    found = little_batches(H100.latency, requests([(200, 200)] * len(times), times), CAP).by_request
    assert found[100] < 3.0
    assert found[-100] > 10 * found[100]


def test_a_request_alone_is_its_own_batch_and_the_rest_is_idle():
    found = little_batches(H100.latency, requests([(200, 20)] * 3, [0.0, 500.0, 1000.0]), CAP)
    assert found.by_request == pytest.approx([1.0, 1.0, 1.0], rel=0.01)
    assert found.idle_s == pytest.approx(1000.0, rel=0.01)
    assert little_batches(H100.latency, requests([(9, 9)]), CAP).by_request.tolist() == [1.0]


def test_more_than_a_replica_completes_runs_at_its_full_batch():
    mine = evenly(300.0, 120.0)
    found = little_batches(H100.latency, mine, 64)
    assert set(found.by_request.tolist()) == {64.0}
    assert found.saturated == len(mine)
    assert found.idle_s == pytest.approx(0.0, abs=1e-6)


def test_requests_at_one_moment_run_together():
    together = requests([(200, 200)] * 5, [3.0] * 5)
    assert little_batches(H100.latency, together, CAP).by_request.tolist() == [5.0] * 5


def test_each_replica_has_its_own_batch():
    one = evenly(8.0, 600.0)
    split = replace(one, replica=np.arange(len(one)) % 2)
    whole = little_batches(H100.latency, one, CAP).by_request
    half = little_batches(H100.latency, split, CAP).by_request
    assert half == pytest.approx(
        np.full(len(one), little_batches(H100.latency, evenly(4.0, 600.0), CAP).by_request[0]),
        rel=0.02,
    )
    assert half.max() < whole.min()


@pytest.mark.parametrize("rate_per_s", [0.2, 2.0, 15.0])
def test_requests_and_idle_are_the_draw_that_the_model_predicts(rate_per_s):
    """The birth-death chain of `FittedModel.predict` is the independent answer."""
    duration_s = 1800.0
    rows = poisson(rate_per_s, duration_s, Lengths.constant(500, 200), seed=5)
    mine = requests([(500, 200)] * len(rows), [row.arrival_s for row in rows])
    found = little_batches(H100.latency, mine, CAP)
    joules = total(H100, mine, found) + H100.power.idle_watts * found.idle_s
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    predicted = H100.predict(
        OperatingPoint(num_replicas=1, max_num_active_seqs=CAP),
        Load(arrival_rate_per_s=len(rows) / span_s, prompt_tokens=500.0, output_tokens=200.0),
        SLO(),
    )
    assert joules / span_s == pytest.approx(predicted.draw_watts, rel=0.05)


def test_requests_beyond_the_range_are_named_and_not_answered():
    valid = replace(H100.valid, max_prompt_tokens=1000, max_context_tokens=2000)
    mine = requests([(1200, 10), (1201, 10), (1000, 1400), (1000, 1401), (5000, 5000)])
    inside, reasons = within_range(valid, mine)
    assert inside.tolist() == [True, False, True, False, False]
    assert reasons == {
        "with a prompt above 1200 tokens": 2,
        "with prompt + output above 2400 tokens": 1,
    }
    assert within_range(valid, requests([(1, 1)]))[1] == {}


@pytest.mark.parametrize("batch", [0.5, 0.0, math.nan, 1.21 * CAP])
def test_a_batch_beyond_the_range_is_refused(batch):
    with pytest.raises(OutOfRange, match="batch is .*; fitted: 1 to 256"):
        fixed_batches(H100.valid, requests([(9, 9)]), batch)


def test_the_naive_estimate_has_its_units_right():
    """8e9 parameters, a million tokens: 1.6e16 FLOPs, at 1e15 a second 16 s of 700 W."""
    naive = NaiveEstimate(params=8e9, peak_flops_per_s=1e15, tdp_watts=700.0)
    assert naive.joules(1e6) == pytest.approx(16.0 * 700.0)
    assert replace(naive, utilization_ratio=0.4).joules(1e6) == pytest.approx(40.0 * 700.0)
