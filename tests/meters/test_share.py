"""Shares of a host: the rule, its sum over replicas, and real processes."""

import os
import subprocess
import sys
import time

import pytest
from fake_powercap import FakePowercap
from hypothesis import given
from hypothesis import strategies as st
from meter_contract import FakeClock

from policies.core.errors import ConfigError
from serve_app.meters import ProcessShare, RaplBackend, RaplSettings
from serve_app.meters.poller import Poller
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


def test_the_pollers_of_a_host_act_together():
    poller = Poller("test", 3600.0, lambda: None, aligned=True)
    try:
        moment_s = time.monotonic() + poller._wait_s()
        assert (moment_s + 1.0) % 3600.0 == pytest.approx(1.0, abs=0.5)
    finally:
        poller.close()


def test_the_remainder_is_what_nobody_was_charged(tmp_path):
    tree = FakePowercap.server(tmp_path / "p")
    clock = FakeClock()
    quarter = ProcessShare(allotted_cores=os.cpu_count() / 4)
    settings = RaplSettings(root=tree.root, share=quarter, idle_watts=100.0)
    backends = [RaplBackend(settings, clock=clock) for _ in range(2)]
    try:
        for _ in range(5):
            clock.advance(1.0)
            for name in ("intel-rapl:0", "intel-rapl:0:2"):
                tree.zones[name].add(50_000_000)  # 100 W together: all of it is idle
            readings = [one for backend in backends for one in backend.read(clock())]
    finally:
        for backend in backends:
            backend.close()
    assert [one.joules for one in readings] == pytest.approx([62.5] * 4)
    assert [one.whole_joules for one in readings] == pytest.approx([250.0] * 4)
    assert "share of the host" in readings[0].caveat
    whole = {one.device.id: one.whole_joules for one in readings}
    for one in readings:
        whole[one.device.id] -= one.joules
    assert whole == pytest.approx({"cpu:package-0": 125.0, "dram:package-0": 125.0})


def test_idle_watts_follow_the_allotted_cores(tmp_path):
    def rapl(tree, **settings):
        backend = RaplBackend(RaplSettings(root=tree.root, **settings))
        backend.close()
        return backend

    tree = FakePowercap.server(tmp_path / "p")
    assert rapl(tree).idle_watts() is None
    assert rapl(tree, idle_watts=80.0).idle_watts() == 80.0
    half = ProcessShare(allotted_cores=os.cpu_count() / 2)
    assert rapl(tree, idle_watts=80.0, share=half).idle_watts() == pytest.approx(40.0)


def test_two_replicas_never_get_more_than_the_host_used(tmp_path):
    tree = FakePowercap.server(tmp_path / "p")
    burner = "t = __import__('time'); e = t.time() + 1.5\nwhile t.time() < e: pass"
    replicas = [subprocess.Popen([sys.executable, "-c", burner]) for _ in range(2)]
    half = os.cpu_count() / 2
    backends = [
        RaplBackend(
            RaplSettings(root=tree.root, share=ProcessShare(allotted_cores=half, pid=one.pid))
        )
        for one in replicas
    ]
    try:
        for _ in range(4):
            time.sleep(0.2)
            tree.zones["intel-rapl:0"].add(20_000_000)
            readings = [backend.read(time.monotonic())[0] for backend in backends]
        charged = [reading.joules for reading in readings]
    finally:
        for backend in backends:
            backend.close()
        for replica in replicas:
            replica.kill()
            replica.wait()
    assert all(joules > 0.0 for joules in charged)
    assert sum(charged) <= 80.0 * 1.1  # CPU time is counted in ticks of 10 ms


@pytest.mark.parametrize("cores", [-1.0, float("nan"), float("inf")])
def test_share_needs_a_valid_number_of_cores(cores):
    with pytest.raises(ConfigError, match="allotted_cores"):
        ProcessShare(allotted_cores=cores)
