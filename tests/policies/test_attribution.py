"""A step is divided by the Shapley value of its modelled energy, a window by modelled joules."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.attribution import StepShare
from policies.core.energy import EnergyBooks
from policies.model.attribution import ModelWeigher
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel

LATENCY = LatencyModel(
    t0_s=0.007, a_s_per_seq=8e-5, b_s_per_kv_token=2e-8, c_s_per_prefill_token=2.5e-5
)
POWER = PowerModel(
    idle_watts=120.0,
    e0_joules_per_step=3.3,
    e1_joules_per_seq=0.065,
    e2_joules_per_kv_token=1e-5,
    e3_joules_per_prefill_token=0.017,
)
WEIGHER = ModelWeigher(LATENCY, POWER)


def share(name, prefill=0, decode=0, context=0):
    return StepShare(
        request_id=name, prefill_tokens=prefill, decode_tokens=decode, context_tokens=context
    )


def step_joules(shares):
    if not shares:
        return 0.0
    return POWER.step_joules(
        len(shares), sum(s.context_tokens for s in shares), sum(s.prefill_tokens for s in shares)
    )


working = st.one_of(
    st.builds(share, st.just("r"), st.integers(1, 2048), st.just(0), st.integers(0, 8192)),
    st.builds(share, st.just("r"), st.just(0), st.integers(1, 4), st.integers(0, 8192)),
)


@given(st.lists(working, min_size=1, max_size=5))
def test_weights_are_the_shapley_value_of_the_step(shares):
    """By its definition: the mean marginal cost over all orders of joining."""
    orders = list(itertools.permutations(range(len(shares))))
    expected = [0.0] * len(shares)
    for order in orders:
        joined = []
        for i in order:
            before = step_joules(joined)
            joined.append(shares[i])
            expected[i] += (step_joules(joined) - before) / len(orders)
    found = [p + d for p, d in WEIGHER.weigh(tuple(shares)).shares]
    assert found == pytest.approx(expected, rel=1e-9)
    assert math.fsum(found) == pytest.approx(step_joules(shares), rel=1e-9)


def test_who_computes_nothing_pays_nothing_and_phases_are_told_apart():
    weights = WEIGHER.weigh((share("new", 512, 0, 512), share("old", 0, 1, 900), share("idle")))
    assert weights.shares[0][0] > 0.0 == weights.shares[0][1]
    assert weights.shares[1][1] > 0.0 == weights.shares[1][0]
    assert weights.shares[2] == (0.0, 0.0)


def test_a_long_prompt_costs_more_than_its_tokens_suggest_a_decode_step_less():
    """512 prompt tokens beside one output token: by tokens decode pays 1/513, by the model the
    fixed cost of streaming the weights as well."""
    shares = (share("new", 512, 0, 512), share("old", 0, 1, 512))
    new, old = (p + d for p, d in WEIGHER.weigh(shares).shares)
    assert new > 4 * old
    assert old / (new + old) > 20 / 513


def test_without_energy_in_the_model_tokens_weigh():
    flat = PowerModel(
        idle_watts=0.0,
        e0_joules_per_step=0.0,
        e1_joules_per_seq=0.0,
        e2_joules_per_kv_token=0.0,
        e3_joules_per_prefill_token=0.0,
    )
    weights = ModelWeigher(LATENCY, flat).weigh((share("a", 3), share("b", 0, 1)))
    assert weights.shares == [(3.0, 0.0), (0.0, 1.0)]
    assert weights.relative_watts == 1.0


def test_in_one_window_a_hot_step_is_charged_more_than_a_cool_one_of_the_same_length():
    books = EnergyBooks(0.0, WEIGHER)
    books.begin_step(0.0, (share("prefill", 2048, 0, 2048),))
    books.end_step(0.5)
    books.begin_step(0.5, (share("decode", 0, 1, 2048),))
    books.end_step(1.0)
    books.close_window(1.0, {"gpu": 600.0}, {})
    hot, cool = books.settle("prefill", 1.0), books.settle("decode", 1.0)
    watts = [POWER.step_joules(1, 2048, p) / LATENCY.step_time_s(1, 2048, p) for p in (2048, 0)]
    assert hot.joules / cool.joules == pytest.approx(watts[0] / watts[1])
    assert hot.joules + cool.joules == pytest.approx(600.0)
    assert hot.attribution_ratio == cool.attribution_ratio == pytest.approx(1.0)


def test_attribution_ratio_is_the_part_of_the_steps_taken_part_in():
    books = EnergyBooks(0.0, WEIGHER)
    pair = (share("a", 0, 1, 100), share("b", 0, 1, 100))
    books.begin_step(0.0, pair)
    books.end_step(1.0)
    books.begin_step(1.0, pair[:1])
    books.end_step(2.0)
    books.close_window(2.0, {"gpu": 90.0}, {"gpu": 10.0})
    a, b = books.settle("a", 2.0), books.settle("b", 2.0)
    assert b.attribution_ratio == pytest.approx(0.5)
    assert 0.5 < a.attribution_ratio < 1.0
    assert a.joules + b.joules == pytest.approx(90.0)


def test_a_lost_device_lowers_the_coverage_and_what_it_counted_meanwhile_is_nobodys():
    books = EnergyBooks(0.0)
    books.begin_step(0.0, (share("a", 0, 1, 9),))
    books.close_window(1.0, {"gpu": 50.0}, {}, coverage_ratio=0.5)
    books.book_late("gpu", 40.0)
    books.close_window(2.0, {"gpu": 100.0}, {})
    a = books.settle("a", 2.0)
    assert a.joules == pytest.approx(150.0)
    assert a.coverage_ratio == pytest.approx(0.75)
    assert books.unattributed["gpu"] == pytest.approx(40.0)
    assert books.metered["gpu"] == pytest.approx(190.0)
    assert books.residual_joules()["gpu"] == pytest.approx(0.0)
