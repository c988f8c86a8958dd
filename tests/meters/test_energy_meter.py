"""EnergyMeter over scripted and real back-ends."""

import time

import pytest
from constant_draw import ConstantDraw, gpu_and_cpu
from fake_powercap import FakePowercap
from meter_contract import FakeClock

from policies.core.errors import ConfigError, MeterError
from serve_app.meters import (
    Anomaly,
    EnergyMeter,
    MeterOptions,
    Source,
    open_meter,
)


@pytest.fixture
def clock():
    return FakeClock()


def test_each_kind_comes_from_the_first_back_end_that_has_it(clock):
    first = ConstantDraw(clock, [("cpu:0", 1.0), ("dram:0", 2.0)], name="first")
    second = ConstantDraw(clock, [("cpu:1", 100.0), ("gpu:0", 3.0)], name="second")
    third = ConstantDraw(clock, [("cpu:2", 100.0)], name="third")
    meter = EnergyMeter([first, second, third], clock=clock)
    assert [device.id for device in meter.devices()] == ["cpu:0", "dram:0", "gpu:0"]
    assert meter.backends() == {"cpu": "first", "dram": "first", "gpu": "second"}
    assert (first.closed, second.closed, third.closed) == (0, 0, 1)
    clock.advance(1.0)
    assert meter.read().joules_by_kind() == {"gpu": 3.0, "cpu": 1.0, "dram": 2.0}


def test_rapl_comes_before_the_estimate_and_is_not_added_to_it(tmp_path, clock):
    tree = FakePowercap.server(tmp_path / "p")
    options = {"powercap_root": tree.root}
    with open_meter(["rapl", "estimated"], clock=clock, **options) as meter:
        assert meter.backends() == {"cpu": "rapl", "dram": "rapl"}
        assert meter.unavailable == {}
    options["powercap_root"] = tmp_path / "none"
    with open_meter(["rapl", "estimated"], clock=clock, **options) as meter:
        assert meter.backends() == {"cpu": "estimated"}
        assert list(meter.unavailable) == ["rapl"]


def test_nothing_available_is_none_everywhere_and_never_zero(tmp_path, clock):
    options = MeterOptions(powercap_root=tmp_path / "none")
    with EnergyMeter(["rapl", "replay"], options=options, clock=clock) as meter:
        meter.begin()
        clock.advance(1.0)
        result = meter.end()
        assert meter.read().joules_by_kind() == {}
        assert meter.idle_watts() is None
    assert result.joules is None
    assert result.average_watts is None
    assert result.source is Source.UNAVAILABLE
    assert result.coverage_ratio == 0.0
    assert set(result.unavailable) == {"rapl", "replay"}
    assert all(result.unavailable.values())


def test_idle_watts_is_the_sum_of_known_baselines(clock):
    gpus, cpu = gpu_and_cpu(clock)
    assert EnergyMeter([gpus, cpu], clock=clock).idle_watts() == 150.0
    gpus.idle = None
    assert EnergyMeter([gpus, cpu], clock=clock).idle_watts() == 10.0
    cpu.idle = None
    assert EnergyMeter([gpus, cpu], clock=clock).idle_watts() is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: EnergyMeter(["nonsense"]), "nvml, rapl, pyrapl, estimated, replay"),
        (lambda: open_meter(["estimated"], pids=3), "allowed: gpus"),
    ],
)
def test_unknown_settings_are_refused_with_what_is_allowed(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_closing_closes_every_back_end_and_ends_reading(clock):
    gpus, cpu = gpu_and_cpu(clock)
    with EnergyMeter([gpus, cpu], clock=clock) as meter:
        pass
    assert (gpus.closed, cpu.closed) == (1, 1)
    with pytest.raises(MeterError, match="closed"):
        meter.read()


def test_a_failure_while_opening_closes_what_is_open_already(clock):
    gpus, _ = gpu_and_cpu(clock)
    with pytest.raises(ConfigError):
        EnergyMeter([gpus, "nonsense"], clock=clock)
    assert gpus.closed == 1


def test_a_meter_says_which_kinds_nobody_measures_and_why(tmp_path, clock):
    options = MeterOptions(powercap_root=tmp_path / "none")
    cpu = ConstantDraw(clock, [("cpu:0", 1.0)], name="cpu")
    with EnergyMeter(["rapl", cpu], options=options, clock=clock) as meter:
        missing = meter.missing()
        assert set(missing) == {"gpu", "dram"}
        assert missing["gpu"] == "none of the back-ends in use measures it"
        assert missing["dram"] == f"rapl: {meter.unavailable['rapl']}"


def test_a_reading_tells_age_faults_and_reason_by_device(clock):
    gpus, cpu = gpu_and_cpu(clock)
    meter = EnergyMeter([gpus, cpu], clock=clock)
    assert [one.last_known_s for one in meter.read().devices] == [clock()] * 3
    clock.advance(1.0)
    gpus.lost["gpu:0"] = clock()
    gpus.faults["gpu:1"] = {Anomaly.RESET: 2, Anomaly.WRAP: 1}
    clock.advance(3.0)
    reading = meter.read()
    lost, faulty, fine = reading.devices
    assert (lost.device.id, reading.time_s - lost.last_known_s, lost.reason) == (
        "gpu:0",
        3.0,
        "lost",
    )
    assert lost.source is Source.UNAVAILABLE
    assert (reading.time_s - faulty.last_known_s, faulty.reason) == (0.0, None)
    assert faulty.anomaly_counts == {"reset": 2, "wrap": 1}
    assert fine.anomaly_counts == {}


def test_the_wall_clock_may_jump(clock, monkeypatch):
    meter = EnergyMeter(gpu_and_cpu(clock), clock=clock)
    meter.begin()
    clock.advance(2.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    result = meter.end()
    assert (result.duration_s, result.joules) == (2.0, 900.0)
