"""RAPL over a fake powercap tree."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fake_powercap import DRAM_RANGE_UJ, PACKAGE_RANGE_UJ, FakePowercap
from hypothesis import given
from hypothesis import strategies as st
from meter_contract import FakeClock

from policies.core.errors import ConfigError, MeterPermission, MeterUnavailable
from serve_app.meters import (
    DeviceKind,
    EnergyMeter,
    MeterOptions,
    ProcessShare,
    RaplBackend,
    RaplSettings,
    Source,
)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def open_rapl(clock):
    opened = []

    def make(tree, **settings):
        opened.append(RaplBackend(RaplSettings(root=tree.root, **settings), clock=clock))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


def ids(backend):
    return [device.id for device in backend.devices()]


def test_core_uncore_and_psys_are_never_added(tmp_path, open_rapl, clock):
    tree = FakePowercap.server(tmp_path / "p", sockets=2)
    backend = open_rapl(tree)
    assert ids(backend) == ["cpu:package-0", "dram:package-0", "cpu:package-1", "dram:package-1"]
    for name, zone in tree.zones.items():
        zone.add({1: 100_000_000, 2: 10_000_000}[name.count(":")])
    clock.advance(1.0)
    assert [r.joules for r in backend.read(clock())] == [100.0, 10.0, 100.0, 10.0]


def test_psys_only_where_there_is_no_package(tmp_path, open_rapl):
    tree = FakePowercap(tmp_path / "p")
    tree.add("intel-rapl:0", "psys")
    assert ids(open_rapl(tree)) == ["cpu:psys"]
    tree.add("intel-rapl:1", "package-0")
    assert ids(open_rapl(tree)) == ["cpu:package-0"]


def test_two_dies_on_one_socket_are_two_devices(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    for die in (0, 1):
        tree.add(f"intel-rapl:{die}", f"package-0-die-{die}").add(0)
        tree.add(f"intel-rapl:{die}:0", "dram", range_uj=DRAM_RANGE_UJ)
    backend = open_rapl(tree)
    assert ids(backend)[::2] == ["cpu:package-0-die-0", "cpu:package-0-die-1"]
    assert [d.kind for d in backend.devices()] == [DeviceKind.CPU, DeviceKind.DRAM] * 2
    tree.zones["intel-rapl:1"].add(7_000_000)
    clock.advance(1.0)
    assert [r.joules for r in backend.read(clock())] == [0.0, 0.0, 7.0, 0.0]


def test_the_mmio_view_of_a_package_is_not_a_second_package(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    tree.add("intel-rapl-mmio:0", "package-0")
    with pytest.raises(MeterUnavailable, match="no package zone"):
        open_rapl(tree)
    msr = tree.add("intel-rapl:0", "package-0")
    tree.add("intel-rapl-mmio:1", "package-9")
    backend = open_rapl(tree)
    assert ids(backend) == ["cpu:package-0"]
    msr.add(3_000_000)
    clock.advance(1.0)
    assert backend.read(clock())[0].joules == 3.0


def test_amd_names(tmp_path, open_rapl):
    tree = FakePowercap(tmp_path / "p")
    tree.add("amd-rapl:0", "package-0")
    assert ids(open_rapl(tree)) == ["cpu:package-0"]


def test_exact_over_three_wraps(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0", start_uj=PACKAGE_RANGE_UJ - 1)
    backend = open_rapl(tree)
    while zone.total_uj < 3 * PACKAGE_RANGE_UJ:
        zone.add(17_000_000_003)
        clock.advance(60.0)
        reading = backend.read(clock())[0]
        assert reading.joules == pytest.approx(zone.total_uj / 1e6, rel=1e-15)
    assert reading.anomalies == 0
    assert reading.draw_watts == pytest.approx(17_000.000003 / 60)


@given(
    steps=st.lists(st.tuples(st.floats(0.1, 20.0), st.floats(0.0, 900.0)), max_size=30),
    start=st.integers(0, DRAM_RANGE_UJ - 1),
)
def test_any_load_through_the_files_is_exact(tmp_path_factory, steps, start):
    clock = FakeClock()
    tree = FakePowercap(tmp_path_factory.mktemp("p"))
    zone = tree.add("intel-rapl:0", "package-0", range_uj=DRAM_RANGE_UJ, start_uj=start)
    backend = RaplBackend(RaplSettings(root=tree.root), clock=clock)
    try:
        for dt, watts in steps:
            clock.advance(dt)
            zone.add(int(dt * watts * 1e6))
            reading = backend.read(clock())[0]
            assert reading.joules == pytest.approx(zone.total_uj / 1e6, rel=1e-12)
    finally:
        backend.close()


def test_a_reset_is_counted_and_no_wrap(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0", start_uj=9_000_000_000)
    backend = open_rapl(tree)
    zone.reset()
    clock.advance(1.0)
    reading = backend.read(clock())[0]
    assert (reading.joules, reading.anomalies) == (0.0, 1)


def test_wraps_between_two_distant_readings_are_seen_by_the_thread(tmp_path):
    # 1000 J of range at 2000 W at most: the thread reads at its shortest period, 0.5 s.
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0", range_uj=1_000_000_000)
    backend = RaplBackend(RaplSettings(root=tree.root))
    try:
        for _ in range(3):
            zone.add(600_000_000)
            time.sleep(0.9)
        reading = backend.read(time.monotonic())[0]
    finally:
        backend.close()
    assert reading.joules == pytest.approx(1800.0)


def test_a_zone_that_cannot_be_read_comes_back(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0")
    backend = open_rapl(tree)
    hidden = zone.path / "hidden"
    zone.file.rename(hidden)
    clock.advance(1.0)
    gone = backend.read(clock())[0]
    assert (gone.joules, gone.last_known_joules, gone.source) == (None, 0.0, Source.UNAVAILABLE)
    hidden.rename(zone.file)
    zone.add(5_000_000)
    clock.advance(1.0)
    assert backend.read(clock())[0].joules == 5.0


def test_garbage_in_the_file_is_a_reason_and_no_exception(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0")
    backend = open_rapl(tree)
    zone.file.write_text("not a number\n")
    reading = backend.read(clock())[0]
    assert reading.joules is None
    assert "energy_uj" in reading.reason


def test_no_tree_and_an_empty_tree_are_unavailable(tmp_path, open_rapl):
    with pytest.raises(MeterUnavailable, match="absent"):
        RaplBackend(RaplSettings(root=tmp_path / "none"))
    with pytest.raises(MeterUnavailable, match="no package zone"):
        open_rapl(FakePowercap(tmp_path / "empty"))
    with EnergyMeter(["rapl"], options=MeterOptions(powercap_root=tmp_path / "none")) as meter:
        assert "absent" in meter.unavailable["rapl"]


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from policies.core.errors import MeterPermission
from serve_app.meters import EnergyMeter, MeterOptions, RaplBackend, RaplSettings
os.setgroups([]); os.setgid(65534); os.setuid(65534)
root = Path(sys.argv[1])
try:
    RaplBackend(RaplSettings(root=root))
except MeterPermission as error:
    print(error)
    assert isinstance(error.__cause__, PermissionError)
    meter = EnergyMeter(["rapl"], options=MeterOptions(powercap_root=root))
    assert meter.unavailable["rapl"] == str(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_permission_denied_says_how_to_grant_it():
    """Root reads everything, so the denial is made real by a process that gives root up."""
    folder = tempfile.TemporaryDirectory()  # pytest's own folders are closed to other users
    Path(folder.name).chmod(0o755)
    tree = FakePowercap.server(Path(folder.name) / "p")
    tree.zones["intel-rapl:0"].file.chmod(0o400)
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_NOBODY, str(tree.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    folder.cleanup()
    assert done.returncode == 0, done.stderr
    assert "chmod a+r" in done.stdout
    assert "CVE-2020-8694" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read it")
def test_permission_denied_for_an_ordinary_user(tmp_path, open_rapl):
    tree = FakePowercap.server(tmp_path / "p")
    tree.zones["intel-rapl:0"].file.chmod(0)
    with pytest.raises(MeterPermission, match="chmod a\\+r"):
        open_rapl(tree)


def test_idle_watts_follow_the_allotted_cores(tmp_path, open_rapl):
    tree = FakePowercap.server(tmp_path / "p")
    assert open_rapl(tree).idle_watts() is None
    assert open_rapl(tree, idle_watts=80.0).idle_watts() == 80.0
    half = ProcessShare(allotted_cores=os.cpu_count() / 2)
    assert open_rapl(tree, idle_watts=80.0, share=half).idle_watts() == pytest.approx(40.0)


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


def test_share_needs_a_valid_number_of_cores():
    with pytest.raises(ConfigError, match="allotted_cores"):
        ProcessShare(allotted_cores=-1.0)
