"""The choice of a packing router: the simulator's rule, and what it believes between reports."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.sim import kernel
from serve_app.packing import STATS_KEY, Candidate, PackedLoads, Told, characters_of, packed_order

NO_GATE = 1 << 40
few = st.integers(0, 3)
replicas = st.lists(st.tuples(few, few, few, st.integers(1, 3)), min_size=1, max_size=7)


@given(replicas)
def test_it_is_the_rule_of_the_simulator(rows):
    """`pack_seqs` 0 is how the simulator says that a replica has not told."""
    outstanding, waiting, pack_seqs, pack_tokens = np.array(rows, dtype=np.int64).T
    fleet = SimpleNamespace(
        accepting=np.ones(len(rows)),
        outstanding=outstanding,
        waiting_tokens=waiting,
        pack_seqs=pack_seqs,
        pack_tokens=pack_tokens,
    )
    wanted = kernel._packed.py_func(fleet)  # as Python: not compiled
    order = packed_order(
        [
            Candidate(outstanding=o, waiting_tokens=w, pack_seqs=s or None, pack_tokens=t)
            for o, w, s, t in rows
        ]
    )
    assert order[0] == wanted
    assert sorted(order) == list(range(len(rows)))


def told(time_s=100.0, outstanding=0.0, waiting=0.0, rank=0, **more):
    values = {"pack_seqs": 4, "pack_tokens": 1000, "prompt_tokens": 100.0} | more
    return Told(
        time_s=time_s, num_outstanding=outstanding, waiting_tokens=waiting, rank=rank, **values
    )


def send(loads, count, now_s=100.0, characters=400.0, start=0):
    """Where so many requests go, one after the other."""
    went = []
    for i in range(count):
        replica = loads.order(now_s)[0]
        loads.give(now_s, f"q{start + i}", replica, characters)
        went.append(replica)
    return went


def test_replicas_are_filled_by_rank_up_to_their_hint():
    loads = PackedLoads()
    reports = {"z": told(rank=0), "a": told(rank=1), "b": told(rank=2)}
    loads.hear(100.0, reports)
    gateless = 1.0  # a character: no tokens to speak of
    assert send(loads, 9, characters=gateless) == ["z"] * 4 + ["a"] * 4 + ["b"]


def test_all_at_once_are_counted_before_anything_is_heard():
    loads = PackedLoads()
    loads.hear(100.0, {"a": told(rank=0), "b": told(rank=1)})
    # 100 tokens each, as the mean says: the tenth would wait behind 1000.
    wide = {"a": told(rank=0, pack_seqs=64), "b": told(rank=1, pack_seqs=64)}
    loads.hear(100.0, wide)
    assert send(loads, 12) == ["a"] * 10 + ["b"] * 2


def test_what_waits_is_computed_meanwhile_and_a_report_begins_anew():
    loads = PackedLoads()
    fast = {"pack_seqs": 64, "prompt_tokens_per_s": 500.0}
    loads.hear(100.0, {"a": told(rank=0, **fast), "b": told(rank=1, **fast)})
    assert send(loads, 11) == ["a"] * 10 + ["b"]
    assert loads.order(100.1)[0] == "a"  # 50 tokens fewer
    loads.give(100.1, "q11", "a", 400.0)
    assert loads.order(100.15)[0] == "b"
    # Made at 100.05: it holds the ten, not the eleventh.
    loads.hear(100.2, {"a": told(100.05, outstanding=10, waiting=990.0, rank=0, **fast), "b": None})
    (a, _) = (loads._known["a"], loads._known["b"])
    assert a.outstanding == 11
    assert a.waiting_tokens == pytest.approx(990.0 - 25.0 + 100.0 - 50.0)


def test_ended_requests_make_room():
    loads = PackedLoads()
    loads.hear(100.0, {"a": told(rank=0), "b": told(rank=1)})
    assert send(loads, 5, characters=1.0) == ["a"] * 4 + ["b"]
    loads.end(100.5, "q0", "a")
    assert send(loads, 2, characters=1.0, start=5) == ["a", "b"]


def test_a_request_that_is_asked_for_again_counts_once():
    loads = PackedLoads()
    loads.hear(100.0, {"a": told(rank=0), "b": told(rank=1)})
    for _ in range(10):
        loads.give(100.0, "same", "a", 1.0)
    assert loads._known["a"].outstanding == 1
    loads.give(100.0, "same", "b", 1.0)
    loads.end(100.1, "same", "a")  # wherever it was in the end
    assert (loads._known["a"].outstanding, loads._known["b"].outstanding) == (0, 0)


def test_without_a_hint_from_anybody_the_rule_says_nothing():
    loads = PackedLoads()
    loads.hear(100.0, {"a": None, "b": told(pack_seqs=None)})
    assert loads.order(100.0) is None
    loads.hear(100.0, {"a": None, "b": told(rank=1, pack_seqs=1)})
    assert send(loads, 2, characters=1.0) == ["b", "a"]  # who has told nothing comes after


def test_a_clock_that_is_off_costs_at_most_some_seconds_of_the_routers_own_acts():
    loads = PackedLoads()
    for clock_s in (-1000.0, 1000.0):
        loads.hear(100.0, {"a": told(rank=0, pack_seqs=64)})
        send(loads, 3, now_s=97.0, characters=1.0, start=int(clock_s))
        send(loads, 3, now_s=99.5, characters=1.0, start=int(clock_s) + 3)
        loads.hear(100.0, {"a": told(100.0 + clock_s, outstanding=6, rank=0, pack_seqs=64)})
        assert 6 <= loads._known["a"].outstanding <= 9


def test_memory_is_bounded():
    loads = PackedLoads()
    loads.hear(0.0, {"a": told(0.0)})
    for i in range(70_000):
        loads.give(0.01 * i, f"r{i}", "a", 4.0)
    assert len(loads._given) == 65_536
    assert len(loads._known["a"].since) <= 502
    loads.hear(700.0, {})
    assert not loads._known


def test_a_report_travels_as_plain_data():
    one = told(rank=2)
    plain = {name: getattr(one, name) for name in Told.__slots__}
    assert Told.from_stats({STATS_KEY: plain, "other": 1}) == one
    assert Told.from_stats({}) is None
    assert Told.from_stats(None) is None
    assert Told.from_stats({STATS_KEY: {"of another version": 1}}) is None


@pytest.mark.parametrize(
    ("request_", "characters"),
    [
        (SimpleNamespace(prompt="hello"), 5),
        (SimpleNamespace(prompt=["ab", "cde"]), 5),
        (SimpleNamespace(prompt=[1, 2, 3]), 12),
        (SimpleNamespace(prompt=[[1, 2], [3]]), 12),
        (SimpleNamespace(messages=[{"role": "user", "content": "hello"}]), 5),
        (SimpleNamespace(messages=[SimpleNamespace(content="hello")]), 5),
        (
            SimpleNamespace(
                messages=[{"content": [{"type": "text", "text": "ab"}, {"type": "image_url"}]}]
            ),
            2,
        ),
        (SimpleNamespace(), 0),
        (SimpleNamespace(messages=[{"role": "assistant", "content": None}]), 0),
    ],
)
def test_the_length_of_a_request(request_, characters):
    assert characters_of(request_) == characters
