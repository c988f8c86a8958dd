"""The plan of one that knows the trace is the cheapest there is; the bound is below every step."""

import itertools

import numpy as np
import pytest

from policies.clairvoyant import cheapest_path, foresight_of
from policies.least_energy import least_joules
from serve_app.simulator.models import truth_of

MODEL = truth_of("llama-3.1-8b-instruct@h100")


def cost_of(path, costs, counts, start):
    place = {count: k for k, count in enumerate(counts)}
    held = sum(costs[t, place[n]] for t, n in enumerate(path))
    return held + start * sum(max(b - a, 0) for a, b in itertools.pairwise(path))


@pytest.mark.parametrize("seed", range(8))
def test_no_other_plan_is_cheaper(seed):
    rng = np.random.default_rng(seed)
    counts = np.arange(1, 4)
    costs, start = rng.uniform(0.0, 10.0, (6, 3)), float(rng.uniform(0.0, 8.0))
    path = cheapest_path(costs, counts, start)
    every = itertools.product(counts.tolist(), repeat=6)
    least = min(cost_of(one, costs, counts.tolist(), start) for one in every)
    assert cost_of(path, costs, counts.tolist(), start) == pytest.approx(least)


def test_the_foreseen_load_is_counted_in_mean_requests():
    times = np.array([0.5, 1.0, 12.0, 13.0])
    prompts = np.array([100.0, 100.0, 100.0, 100.0])
    found = foresight_of(times, prompts, np.full(4, 10.0), MODEL.latency, 10.0)
    assert found.loads_per_s == pytest.approx([0.2, 0.2])
    longer = foresight_of(
        times, np.array([100.0, 100, 4000, 4000]), np.full(4, 10.0), MODEL.latency
    )
    assert longer.loads_per_s[1] > 10.0 * longer.loads_per_s[0]
    assert longer.loads_per_s.sum() * 10.0 == pytest.approx(4.0)
    assert found.most_per_s(0.0, 5.0) == pytest.approx(0.2)
    assert found.most_per_s(30.0, 40.0) == 0.0


def test_no_step_costs_less_than_the_bound_says():
    """Random steps at every limit, by the kernel's formula, against the bound of what is in them."""
    rng = np.random.default_rng(1)
    power, limits = MODEL.power, (None, 200.0, 300.0, 450.0, 600.0)
    for _ in range(200):
        limit = limits[rng.integers(len(limits))]
        latency = MODEL.latency_under(limit)
        prompt = int(rng.integers(1, 1500))
        batch = int(rng.integers(0, 257))
        contexts = rng.integers(1, 8000, batch)
        step = (batch + 1.0, float(contexts.sum() + prompt), float(prompt), prompt**2 / 2.0)
        natural_s = MODEL.latency.step_time_s(*step)
        watts = min(power.step_joules(*step) / natural_s, power.ceiling_watts(limit))
        joules = watts * latency.step_time_s(*step)
        # One request of which this is the only prefill step, and each other's one decoding step.
        bound = least_joules(
            MODEL, limits, np.array([float(prompt)]), np.array([1.0]), (2048, 256)
        ) + sum(
            least_joules(MODEL, limits, np.array([float(c)]), np.array([2.0]), (1 << 40, 256))
            - least_joules(MODEL, limits, np.array([float(c)]), np.array([1.0]), (1 << 40, 256))
            for c in contexts[:8]
        )
        assert bound <= joules * (1.0 + 1e-9)


def test_limits_lower_the_bound():
    lengths = np.array([1000.0, 200.0]), np.array([10.0, 300.0])
    free = least_joules(MODEL, (None,), *lengths, (2048, 256))
    assert least_joules(MODEL, (None, 300.0), *lengths, (2048, 256)) < free
    pairs = 0.5 * (lengths[0] ** 2).sum()
    decoded = lengths[1] - 1.0
    contexts = (decoded * (lengths[0] + 0.5 * (decoded - 1.0))).sum()
    power = MODEL.power
    steps = max(decoded.sum() / 256, (lengths[0] + decoded).sum() / 2048)
    assert free == pytest.approx(
        power.e0_joules_per_step * steps + power.e1_joules_per_seq * decoded.sum()
        + power.e2_joules_per_kv_token * contexts
        + power.e3_joules_per_prefill_token * lengths[0].sum()
        + power.e4_joules_per_attended_pair * pairs
    )  # fmt: skip
