"""RAPL over a fake powercap tree."""

import time

import pytest
from fake_powercap import DRAM_RANGE_UJ, PACKAGE_RANGE_UJ, FakePowercap
from hypothesis import given
from hypothesis import strategies as st
from meter_contract import FakeClock

from policies.core.errors import MeterUnavailable
from serve_app.meters import (
    Anomaly,
    DeviceKind,
    EnergyMeter,
    MeterOptions,
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
    assert (reading.anomalies, reading.anomaly_counts) == (0, {Anomaly.WRAP: 4})
    assert reading.draw_watts == pytest.approx(17_000.000003 / 60)


@given(
    steps=st.lists(st.tuples(st.floats(0.1, 20.0), st.floats(1.0, 900.0)), max_size=15),
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
    zone.reset(to_uj=5_000_000)
    clock.advance(1.0)
    reading = backend.read(clock())[0]
    assert (reading.joules, reading.anomalies) == (0.0, 1)
    assert reading.anomaly_counts == {Anomaly.RESET: 1}


def test_a_zero_reading_loses_nothing(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0", start_uj=9_000_000_000)
    backend = open_rapl(tree)
    right = zone.file.read_text()
    zone.file.write_text(f"{0:<15d}\n")
    clock.advance(1.0)
    assert backend.read(clock())[0].joules == 0.0
    zone.file.write_text(right)
    zone.add(50_000_000)
    clock.advance(1.0)
    reading = backend.read(clock())[0]
    assert (reading.joules, reading.anomaly_counts) == (50.0, {Anomaly.ZERO: 1})


def test_a_counter_that_stands_still_is_unavailable_until_it_moves(tmp_path, open_rapl, clock):
    """As the DRAM zone of many client processors does."""
    tree = FakePowercap.server(tmp_path / "p")
    backend = open_rapl(tree)
    for _ in range(6):
        clock.advance(1.0)
        tree.zones["intel-rapl:0"].add(50_000_000)
        package, dram = backend.read(clock())
    assert package.joules == pytest.approx(300.0)
    assert (dram.joules, dram.source, dram.anomaly_counts) == (
        None,
        Source.UNAVAILABLE,
        {Anomaly.STALL: 1},
    )
    assert "stood still for 6.0 s" in dram.reason
    assert dram.last_known_s == clock() - 6.0
    tree.zones["intel-rapl:0:2"].add(60_000_000)
    clock.advance(1.0)
    assert backend.read(clock())[1].joules == pytest.approx(60.0)


def test_a_pause_in_which_a_wrap_may_have_been_missed_is_a_gap(tmp_path, open_rapl, clock):
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0", range_uj=DRAM_RANGE_UJ)
    backend = open_rapl(tree)
    zone.add(DRAM_RANGE_UJ + 1_000_000)
    clock.advance(60.0)  # 66 kJ can go by in 33 s
    reading = backend.read(clock())[0]
    assert reading.joules == 1.0  # a lower bound, and said to be one
    assert (reading.anomalies, reading.anomaly_counts) == (1, {Anomaly.GAP: 1})


def test_a_host_without_dram_zones_says_that_dram_is_missing(tmp_path, clock):
    tree = FakePowercap(tmp_path / "p")
    tree.add("intel-rapl:0", "package-0")  # AMD, and most client processors
    options = MeterOptions(powercap_root=tree.root)
    with EnergyMeter(["rapl"], options=options, clock=clock) as meter:
        assert meter.missing() == {
            "gpu": "none of the back-ends in use measures it",
            "dram": "rapl: shows no dram on this host",
        }


def test_wraps_between_two_distant_readings_are_seen_by_the_thread(tmp_path):
    # 1000 J of range at 2000 W at most: the thread reads at its shortest period, 0.5 s.
    tree = FakePowercap(tmp_path / "p")
    zone = tree.add("intel-rapl:0", "package-0", range_uj=1_000_000_000)
    backend = RaplBackend(RaplSettings(root=tree.root))
    try:
        for _ in range(2):
            zone.add(600_000_000)
            time.sleep(0.8)
        reading = backend.read(time.monotonic())[0]
    finally:
        backend.close()
    assert reading.joules == pytest.approx(1200.0)


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
