"""Windows of an EnergyMeter: begin and end, blocks, GreenStream's names."""

import asyncio
import threading
from datetime import datetime

import pytest
from constant_draw import ConstantDraw, gpu_and_cpu
from hypothesis import given
from hypothesis import strategies as st
from meter_contract import FakeClock

from policies.core.errors import ConfigError, MeterError
from serve_app.meters import Anomaly, EnergyMeter, Source


@pytest.fixture
def clock():
    return FakeClock()


def test_begin_and_end(clock):
    meter = EnergyMeter(gpu_and_cpu(clock), clock=clock)
    clock.advance(100.0)
    meter.begin()
    clock.advance(2.0)
    result = meter.end()
    assert result.duration_s == 2.0
    assert result.joules == 900.0
    assert result.joules_by_device == {"gpu:0": 600.0, "gpu:1": 200.0, "cpu:0": 100.0}
    assert result.joules_by_kind == {"gpu": 800.0, "cpu": 100.0}
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


def test_empty_window(clock):
    meter = EnergyMeter(gpu_and_cpu(clock), clock=clock)
    meter.begin()
    result = meter.end()
    assert (result.duration_s, result.joules, result.average_watts) == (0.0, 0.0, None)
    assert result.coverage_ratio == 1.0


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


# ---- GreenStream's names


def test_a_script_written_for_greenstream_runs_unchanged(clock):
    meter = EnergyMeter(
        gpu_and_cpu(clock), clock=clock, label="Batch LLM", include_idle=True, ignore_disk=True
    )
    with pytest.raises(MeterError, match="call begin"):
        meter.get_total_joules_per_component()
    meter.begin()
    clock.advance(2.0)
    meter.end()
    assert meter.get_total_joules_per_component() == {"cpu": 100.0, "gpu": 800.0, "dram": None}
    assert meter.duration == 2.0
    began = datetime.fromtimestamp(meter.start_time)
    assert abs((datetime.now() - began).total_seconds()) < 60.0
    assert meter.last.name == "Batch LLM"


@pytest.mark.parametrize("option", ["include_idle", "ignore_disk"])
def test_what_is_not_done_as_greenstream_does_it_is_refused(option):
    with pytest.raises(ConfigError, match=f"{option}=False; allowed: True"):
        EnergyMeter([], **{option: False})


def test_a_window_tells_its_own_faults_by_kind(clock):
    backend = ConstantDraw(clock, [("gpu:0", 10.0)])
    meter = EnergyMeter([backend], clock=clock)
    backend.faults["gpu:0"] = {Anomaly.RESET: 2, Anomaly.WRAP: 5}
    meter.begin()
    clock.advance(1.0)
    backend.faults["gpu:0"] = {Anomaly.RESET: 3, Anomaly.WRAP: 5, Anomaly.LATE: 1}
    (device,) = meter.end().devices
    assert device.anomaly_counts == {"reset": 1, "late": 1}
    assert device.anomalies == 1
