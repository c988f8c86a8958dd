"""Joules are conserved: whatever arrives in whatever order, metered = sum of all shares."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.attribution import RequestEnergy, StepShare, TokenWeigher
from policies.core.energy import EnergyBooks
from policies.model.attribution import ModelWeigher
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel

IDS = [f"r{i}" for i in range(6)]
share = st.builds(
    StepShare,
    request_id=st.sampled_from(IDS),
    prefill_tokens=st.integers(0, 512),
    decode_tokens=st.integers(0, 4),
    context_tokens=st.integers(0, 4096),
)
dt = st.floats(0.0, 2.0)
event = st.one_of(
    st.tuples(st.just("begin"), dt, st.lists(share, max_size=5).map(tuple)),
    st.tuples(st.just("end"), dt),
    st.tuples(
        st.just("close"),
        dt,
        st.dictionaries(
            st.sampled_from(["gpu", "cpu", "dram"]), st.none() | st.floats(0.0, 1e4), max_size=3
        ),
    ),
    st.tuples(st.just("settle"), dt, st.sampled_from(IDS)),
    st.tuples(st.just("drop"), dt),
    st.tuples(st.just("late"), dt, st.floats(0.0, 1e4)),
)


LATENCY = LatencyModel(
    t0_s=0.007, a_s_per_seq=8e-5, b_s_per_kv_token=2e-8, c_s_per_prefill_token=2.5e-5
)
POWER = PowerModel(
    idle_watts=120.0, e0_joules_per_step=3.3, e1_joules_per_seq=0.065,
    e2_joules_per_kv_token=1e-5, e3_joules_per_prefill_token=0.017,
)  # fmt: skip
weighers = st.sampled_from([TokenWeigher(), ModelWeigher(LATENCY, POWER)])


def play(events, idle_watts, weigher):
    books, now, settled = EnergyBooks(0.0, weigher), 0.0, []
    for kind, step_s, *rest in events:
        now += step_s
        if kind == "begin":
            books.begin_step(now, rest[0])
        elif kind == "end":
            books.end_step(now)
        elif kind == "close":
            books.close_window(now, rest[0], {"cpu": idle_watts, "gpu": idle_watts})
        elif kind == "late":
            books.book_late("gpu", rest[0])
        elif kind == "settle":
            settled.append(books.settle(rest[0], now))
        else:
            books.drop_steps(now)
    return books, settled


@given(st.lists(event, max_size=60), st.floats(0.0, 50.0), weighers)
def test_every_joule_is_somewhere_and_nothing_is_negative(events, idle_watts, weigher):
    books, settled = play(events, idle_watts, weigher)
    for kind, residual in books.residual_joules().items():
        scale = books.metered[kind] + books.settled.get(kind, 0.0) + 1.0
        assert abs(residual) <= 1e-9 * scale
    for shares in (books.metered, books.idle, books.settled, books.prepaid, books.open_joules()):
        assert all(value >= -1e-9 for value in shares.values())
    assert all(value >= -1e-6 for value in books.unattributed.values())
    for energy in settled:
        if energy.joules is not None:
            assert energy.joules >= 0.0
            assert energy.attribution_ratio is None or 0.0 <= energy.attribution_ratio <= 1.0
            assert energy.idle_joules <= energy.joules + 1e-6
            assert math.isclose(
                energy.prefill_joules + energy.decode_joules, energy.joules, abs_tol=1e-6
            )


@given(st.lists(event, max_size=60), st.floats(0.0, 50.0), weighers)
def test_requests_sum_to_what_the_books_settled(events, idle_watts, weigher):
    books, settled = play(events, idle_watts, weigher)
    total = math.fsum(energy.joules or 0.0 for energy in settled)
    assert math.isclose(total, math.fsum(books.settled.values()), rel_tol=1e-9, abs_tol=1e-6)


def decode(*ids):
    return tuple(
        StepShare(request_id=i, prefill_tokens=0, decode_tokens=1, context_tokens=10) for i in ids
    )


def test_a_step_is_shared_by_tokens_and_a_window_by_engine_time():
    books = EnergyBooks(0.0)
    books.begin_step(0.0, decode("a", "b"))  # 1 s shared by two
    books.end_step(1.0)
    books.begin_step(1.0, decode("a"))  # 1 s alone
    books.end_step(2.0)
    books.close_window(4.0, {"gpu": 100.0}, {"gpu": 10.0})  # 2 s busy, 2 s idle at 10 W
    assert books.idle["gpu"] == pytest.approx(20.0)
    a, b = books.settle("a", 4.0), books.settle("b", 4.0)
    assert a.joules == pytest.approx(80.0 * 1.5 / 2.0)
    assert b.joules == pytest.approx(80.0 * 0.5 / 2.0)
    assert a.idle_joules == pytest.approx(15.0)  # 10 W x its 1.5 engine seconds
    assert b.decode_joules == pytest.approx(b.joules)
    assert books.unattributed.get("gpu", 0.0) == pytest.approx(0.0)


def test_prefill_and_decode_are_told_apart():
    books = EnergyBooks(0.0)
    mixed = (
        StepShare(request_id="new", prefill_tokens=30, decode_tokens=0, context_tokens=30),
        StepShare(request_id="old", prefill_tokens=0, decode_tokens=10, context_tokens=99),
    )
    books.begin_step(0.0, mixed)
    books.end_step(1.0)
    books.close_window(1.0, {"gpu": 40.0}, {})
    new, old = books.settle("new", 1.0), books.settle("old", 1.0)
    assert (new.prefill_joules, new.decode_joules) == (pytest.approx(30.0), 0.0)
    assert (old.prefill_joules, old.decode_joules) == (0.0, pytest.approx(10.0))


def test_a_step_that_spans_windows_is_busy_in_both():
    books = EnergyBooks(0.0)
    books.begin_step(0.5, decode("a"))
    books.close_window(1.0, {"gpu": 10.0}, {"gpu": 4.0})
    assert books.idle["gpu"] == pytest.approx(2.0)
    books.end_step(1.5)
    books.close_window(2.0, {"gpu": 10.0}, {"gpu": 4.0})
    assert books.idle["gpu"] == pytest.approx(4.0)
    assert books.settle("a", 2.0).joules == pytest.approx(16.0)


def test_leaving_mid_window_is_prepaid_and_taken_out_of_the_next_reading():
    books = EnergyBooks(0.0)
    books.begin_step(0.0, decode("a"))
    books.close_window(1.0, {"gpu": 50.0}, {})
    books.end_step(1.2)
    left = books.settle("a", 1.2)
    assert left.joules == pytest.approx(60.0)  # 50 metered + 0.2 s at the last rate
    assert books.prepaid["gpu"] == pytest.approx(10.0)
    books.close_window(2.0, {"gpu": 12.0}, {})
    assert books.prepaid["gpu"] == pytest.approx(0.0)
    assert books.unattributed["gpu"] == pytest.approx(2.0)
    assert books.residual_joules()["gpu"] == pytest.approx(0.0)


def test_a_window_without_work_is_idle_whatever_the_baseline_says():
    books = EnergyBooks(0.0)
    books.close_window(10.0, {"gpu": 500.0}, {"gpu": 1.0})
    assert books.idle == {"gpu": 500.0}


def test_no_meter_means_unknown_not_zero():
    books = EnergyBooks(0.0)
    books.begin_step(0.0, decode("a"))
    books.end_step(1.0)
    books.close_window(1.0, {"gpu": None}, {})
    energy = books.settle("a", 1.0)
    assert energy.joules is None
    assert energy.coverage_ratio == 0.0
    assert books.metered == {}


def test_a_late_step_of_a_settled_request_is_unattributed():
    books = EnergyBooks(0.0)
    books.begin_step(0.0, decode("a"))
    books.end_step(1.0)
    books.close_window(1.0, {"gpu": 5.0}, {})
    books.settle("a", 1.0)
    books.begin_step(1.0, decode("a"))
    books.end_step(2.0)
    books.close_window(2.0, {"gpu": 7.0}, {})
    assert books.unattributed["gpu"] == pytest.approx(7.0)
    assert books.open_requests == 0


def test_a_group_sums_its_parts_and_unknown_parts_lower_the_coverage():
    known = RequestEnergy(
        joules=3.0,
        idle_joules=1.0,
        prefill_joules=1.0,
        decode_joules=2.0,
        joules_by_kind={"gpu": 3.0},
        coverage_ratio=1.0,
    )
    unknown = RequestEnergy(
        joules=None,
        idle_joules=None,
        prefill_joules=None,
        decode_joules=None,
        joules_by_kind={},
        coverage_ratio=0.0,
    )
    total = RequestEnergy.total([known, known, unknown])
    assert total.joules == pytest.approx(6.0)
    assert total.joules_by_kind == {"gpu": 6.0}
    assert total.coverage_ratio == pytest.approx(2 / 3)
    assert RequestEnergy.total([unknown]).joules is None


def test_token_weights_are_tokens():
    assert TokenWeigher().weigh(decode("a")).shares == [(0.0, 1.0)]
