import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.meters.share import HostWindow, host_share


def window(**values):
    base = {
        "duration_s": 10.0,
        "tree_cpu_s": 0.0,
        "host_busy_s": 0.0,
        "host_cores": 8.0,
        "allotted_cores": 2.0,
    }
    return HostWindow(**{**base, **values})


def test_idle_follows_cores_and_work_follows_cpu_time():
    assert host_share(window()) == 0.25
    assert host_share(window(tree_cpu_s=20.0, host_busy_s=80.0)) == 0.25
    # Half of the host is busy, all of it with us: half of the idle part's quarter, all of the rest.
    assert host_share(window(tree_cpu_s=40.0, host_busy_s=40.0)) == 0.5 * 0.25 + 0.5
    # A quarter is busy: three quarters of the energy are idle, not one.
    assert host_share(window(tree_cpu_s=20.0, host_busy_s=20.0)) == 0.75 * 0.25 + 0.25
    known = window(tree_cpu_s=10.0, host_busy_s=20.0, idle_ratio=0.4)
    assert host_share(known) == pytest.approx(0.4 * 0.25 + 0.6 * 0.5)


def test_alone_on_the_host_everything_is_ours():
    assert host_share(window(tree_cpu_s=30.0, host_busy_s=30.0, allotted_cores=8.0)) == 1.0


def test_a_process_that_does_nothing_and_owns_nothing_pays_nothing():
    assert host_share(window(host_busy_s=40.0, allotted_cores=0.0)) == 0.0


@given(
    weights=st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=8),
    busy_ratio=st.floats(0.0, 1.0),
    idle_ratio=st.none() | st.floats(0.0, 3.0),
    duration_s=st.floats(0.0, 100.0),
)
def test_shares_of_all_processes_sum_to_at_most_one(weights, busy_ratio, idle_ratio, duration_s):
    cores = 16.0
    busy_s = busy_ratio * cores * duration_s
    cpu_sum = max(1.0, sum(cpu for cpu, _ in weights))
    core_sum = max(1.0, sum(part for _, part in weights))
    shares = [
        host_share(
            HostWindow(
                duration_s=duration_s,
                tree_cpu_s=busy_s * cpu / cpu_sum,
                host_busy_s=busy_s,
                host_cores=cores,
                allotted_cores=cores * part / core_sum,
                idle_ratio=idle_ratio,
            )
        )
        for cpu, part in weights
    ]
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert sum(shares) <= 1.0 + 1e-9


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_more_work_never_costs_less(low, more):
    base = window(host_busy_s=1e6, idle_ratio=0.3)
    shares = [
        host_share(HostWindow(**{f: getattr(base, f) for f in base.__slots__} | {"tree_cpu_s": s}))
        for s in (low, min(1e6, low + more))
    ]
    assert shares[0] <= shares[1]
