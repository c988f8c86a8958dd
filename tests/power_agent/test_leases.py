"""The table of leases and the node's budget: no process, no GPU, no clock."""

from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ActuationRefused, ConfigError
from serve_app.power_agent.budget import Asked, parse_budget, shares
from serve_app.power_agent.leases import Holder, LeaseTable, UnknownLease, Wish

HOLDER = Holder(name="one", pid=1, uid=0)


def test_a_lease_lasts_as_long_as_it_is_renewed():
    table = LeaseTable()
    lease = table.acquire(0.0, ["a", "b"], HOLDER, Wish(watts=300.0), 10.0)
    assert table.of_gpu("b") == lease
    assert table.next_expiry_s() == 10.0
    assert table.renew(9.0, lease.id).expires_s == 19.0
    moved = table.renew(9.5, lease.id, Wish(watts=200.0))
    assert (moved.wish.watts, moved.expires_s) == (200.0, 19.5)
    assert table.lapsed(19.4) == ()
    with pytest.raises(UnknownLease):
        table.renew(19.5, lease.id)  # too late, though nobody has looked yet
    assert table.lapsed(19.5) == (moved,)
    assert (len(table), table.next_expiry_s(), table.of_gpu("a")) == (0, None, None)


def test_a_gpu_has_one_holder_and_a_refused_lease_takes_none():
    table = LeaseTable()
    lease = table.acquire(0.0, ["a"], HOLDER, Wish(watts=300.0), 10.0)
    with pytest.raises(ActuationRefused, match=r"a is held by one \(process 1, user 0\)"):
        table.acquire(0.0, ["b", "a"], HOLDER, Wish(watts=300.0), 10.0)
    assert table.of_gpu("b") is None
    assert table.release(1.0, lease.id) == lease
    with pytest.raises(UnknownLease):
        table.release(1.0, lease.id)
    assert table.acquire(1.0, ["a"], HOLDER, Wish(watts=300.0), 10.0).id != lease.id


watts = st.floats(0.0, 1000.0)
asked = st.builds(lambda least, more: Asked(watts=least + more, least_watts=least), watts, watts)


@given(st.lists(asked, max_size=9), st.floats(0.0, 9000.0))
def test_shares_keep_the_budget_and_cut_nobody_below_a_level(some, budget):
    by_name = {str(place): one for place, one in enumerate(some)}
    found = shares(by_name, budget)
    assert found.keys() == by_name.keys()
    least = sum(one.least_watts for one in some)
    assert sum(found.values()) <= max(budget, least) + 1e-6
    for name, one in by_name.items():
        assert one.least_watts - 1e-6 <= found[name] <= one.watts + 1e-6
    cut = [name for name, one in by_name.items() if found[name] < one.watts - 1e-6]
    if cut and least <= budget:
        assert sum(found.values()) >= budget - 1e-6  # nothing is left over
        level = max(found[name] for name in cut)
        for name, one in by_name.items():  # nobody has more than those cut, but for its least
            assert found[name] <= max(level, one.least_watts) + 1e-6


def test_those_who_ask_for_little_get_it():
    asks = {"a": 700.0, "b": 300.0, "c": 700.0}
    found = shares({k: Asked(watts=v, least_watts=200.0) for k, v in asks.items()}, 1300.0)
    assert found == pytest.approx({"a": 500.0, "b": 300.0, "c": 500.0})


def test_a_budget_file_has_times_of_day():
    budget = parse_budget("# night\n22:00-06:00 2400\n 7:30 - 9:00 1200.5 # peak\n3000\n", "b")
    assert budget.at(time(23, 0)) == budget.at(time(5, 59)) == 2400.0
    assert budget.at(time(6, 0)) == budget.at(time(9, 0)) == 3000.0
    assert budget.at(time(7, 30)) == 1200.5
    assert parse_budget("\n# none\n", "b").at(time(0, 0)) is None


@pytest.mark.parametrize(
    "text", ["much", "-1", "1e3", "25:00-06:00 3", "22:00 3", "10:00-11:00", "nan", "1 2"]
)
def test_a_line_that_is_no_budget_is_named(text):
    with pytest.raises(ConfigError, match=r"budget, line 2: .* \(allowed: WATTS, or HH:MM"):
        parse_budget(f"100\n{text}\n", "budget")
