"""EnergyMeter over scripted and real back-ends."""

import asyncio
import threading

import pytest
from fake_powercap import FakePowercap
from hypothesis import given
from hypothesis import strategies as st
from meter_contract import FakeClock

from policies.core.errors import ConfigError, MeterError
from serve_app.meters import (
    Device,
    DeviceKind,
    DeviceReading,
    EnergyMeter,
    MeterOptions,
    Source,
    open_meter,
)


class ConstantDraw:
    """A back-end of devices with a fixed draw; devices in `lost` stop at the time they were lost."""

    def __init__(self, clock, watts, *, name="constant", source=Source.COUNTER, idle=None):
        self.name, self.source, self.idle = name, source, idle
        self._opened_s = clock()
        self.watts = {Device(id=i, kind=DeviceKind(i.split(":")[0]), name=i): w for i, w in watts}
        self.lost = {}
        self.closed = 0

    def devices(self):
        return tuple(self.watts)

    def read(self, now_s):
        return tuple(self._read(device, watts, now_s) for device, watts in self.watts.items())

    def _read(self, device, watts, now_s):
        known_s = min(now_s, self.lost.get(device.id, now_s))
        joules = watts * (known_s - self._opened_s)
        gone = device.id in self.lost
        return DeviceReading(
            device=device,
            joules=None if gone else joules,
            source=Source.UNAVAILABLE if gone else self.source,
            reason="lost" if gone else None,
            draw_watts=None if gone else watts,
            last_known_joules=joules,
            last_known_s=known_s,
        )

    def idle_watts(self):
        return self.idle

    def close(self):
        self.closed += 1


@pytest.fixture
def clock():
    return FakeClock()


def gpu_and_cpu(clock):
    gpus = ConstantDraw(clock, [("gpu:0", 300.0), ("gpu:1", 100.0)], name="gpus", idle=140.0)
    cpu = ConstantDraw(clock, [("cpu:0", 50.0)], name="cpu", source=Source.ESTIMATED, idle=10.0)
    return gpus, cpu


def test_begin_and_end(clock):
    meter = EnergyMeter(gpu_and_cpu(clock), clock=clock)
    clock.advance(100.0)
    meter.begin()
    clock.advance(2.0)
    result = meter.end()
    assert result.duration_s == 2.0
    assert result.joules == 900.0
    assert result.joules_by_device == {"gpu:0": 600.0, "gpu:1": 200.0, "cpu:0": 100.0}
    assert result.average_watts == 450.0
    assert result.source is Source.ESTIMATED  # the weakest that entered the sum
    assert result.coverage_ratio == 1.0
    assert result.unavailable == {}


def test_named_windows_nest_and_overlap(clock):
    meter = EnergyMeter([ConstantDraw(clock, [("gpu:0", 10.0)])], clock=clock)
    meter.begin()
    clock.advance(1.0)
    meter.begin("a")
    clock.advance(1.0)
    meter.begin("b")
    clock.advance(1.0)
    a = meter.end("a")
    with meter.window("inner") as inner:
        clock.advance(4.0)
    b = meter.end("b")
    outer = meter.end()
    assert (a.joules, b.joules, outer.joules) == (20.0, 50.0, 70.0)
    assert inner.measurement.joules == 40.0
    assert (a.name, inner.measurement.name, outer.name) == ("a", "inner", None)


def test_window_is_measured_also_when_the_block_raises(clock):
    meter = EnergyMeter([ConstantDraw(clock, [("gpu:0", 10.0)])], clock=clock)
    window = meter.window()
    with pytest.raises(MeterError, match="not begun"):
        window.so_far()

    def block():
        with window:
            clock.advance(1.0)
            assert window.so_far().joules == 10.0
            clock.advance(1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert window.measurement.joules == 20.0


def test_wrong_use_of_windows_is_an_error_that_names_them(clock):
    meter = EnergyMeter([ConstantDraw(clock, [("gpu:0", 1.0)])], clock=clock)
    with pytest.raises(MeterError, match=r"\(unnamed\) is not open; open: none"):
        meter.end()
    meter.begin("a")
    with pytest.raises(MeterError, match="'a' is open already"):
        meter.begin("a")
    with pytest.raises(MeterError, match="open: 'a'"):
        meter.end("b")
    meter.end("a")
    meter.begin("a")


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


def test_a_device_lost_inside_the_window_gives_a_lower_bound(clock):
    gpus, cpu = gpu_and_cpu(clock)
    meter = EnergyMeter([gpus, cpu], clock=clock)
    meter.begin()
    clock.advance(1.0)
    gpus.lost["gpu:0"] = clock()
    clock.advance(3.0)
    result = meter.end()
    assert result.joules_by_device == {"gpu:0": 300.0, "gpu:1": 400.0, "cpu:0": 200.0}
    assert result.joules == 900.0
    assert result.average_watts == 450.0  # each device over the time it was covered
    assert result.coverage_ratio == pytest.approx((1 + 4 + 4) / 12)
    assert "measured for 1.000 s" in result.unavailable["gpu:0"]
    assert meter.read().joules_by_kind()["gpu"] == 700.0  # the floor stays in the sum


def test_a_device_lost_before_the_window_is_none_in_it(clock):
    gpus, cpu = gpu_and_cpu(clock)
    meter = EnergyMeter([gpus, cpu], clock=clock)
    gpus.lost = {"gpu:0": clock(), "gpu:1": clock()}
    meter.begin()
    clock.advance(1.0)
    result = meter.end()
    assert result.joules_by_device == {"gpu:0": None, "gpu:1": None, "cpu:0": 50.0}
    assert result.joules == 50.0
    assert result.coverage_ratio == pytest.approx(1 / 3)
    assert meter.read().joules_by_kind() == {"gpu": None, "cpu": 50.0}


def test_idle_watts_is_the_sum_of_known_baselines(clock):
    gpus, cpu = gpu_and_cpu(clock)
    assert EnergyMeter([gpus, cpu], clock=clock).idle_watts() == 150.0
    gpus.idle = None
    assert EnergyMeter([gpus, cpu], clock=clock).idle_watts() == 10.0
    cpu.idle = None
    assert EnergyMeter([gpus, cpu], clock=clock).idle_watts() is None


def test_empty_window(clock):
    meter = EnergyMeter(gpu_and_cpu(clock), clock=clock)
    meter.begin()
    result = meter.end()
    assert (result.duration_s, result.joules, result.average_watts) == (0.0, 0.0, None)
    assert result.coverage_ratio == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: EnergyMeter(["pyrapl"]), "nvml, rapl, estimated, replay"),
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


def test_threads_use_windows_of_their_own():
    with EnergyMeter(["estimated"]) as meter:
        results = []

        def work(name):
            for _ in range(20):
                meter.begin(name)
                with meter.window("same name everywhere") as window:
                    pass
                results.append((meter.end(name), window.measurement))

        threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 80
    assert all(inner.joules <= outer.joules for outer, inner in results)


async def test_windows_overlap_across_tasks():
    with EnergyMeter(["estimated"]) as meter:

        async def work(seconds):
            with meter.window("request") as window:
                await asyncio.sleep(seconds)
            return window.measurement

        short, long = await asyncio.gather(work(0.05), work(0.15))
    assert 0.05 <= short.duration_s < long.duration_s
    assert 0.0 < short.joules < long.joules


@given(
    gaps=st.lists(st.floats(0.0, 100.0), min_size=2, max_size=20),
    watts=st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=4),
)
def test_consecutive_windows_add_up_to_the_whole(gaps, watts):
    clock = FakeClock(now_s=0.0)
    backend = ConstantDraw(clock, [(f"gpu:{i}", w) for i, w in enumerate(watts)])
    meter = EnergyMeter([backend], clock=clock)
    meter.begin("whole")
    parts = []
    for gap in gaps:
        meter.begin()
        clock.advance(gap)
        parts.append(meter.end())
    whole = meter.end("whole")
    assert all(part.joules >= 0.0 for part in parts)
    assert whole.joules == pytest.approx(sum(p.joules for p in parts), rel=1e-9, abs=1e-6)
    assert whole.joules == pytest.approx(sum(watts) * sum(gaps), rel=1e-9, abs=1e-6)
