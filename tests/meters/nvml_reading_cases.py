"""NVML cases: readings, windows, loss and refusal. Run by test_nvml.py in a process that finds the fake library.

Unmodified nvidia-ml-py talks to the fake library here; nothing is patched.
"""

import os
import time
from pathlib import Path

import pynvml
import pytest
from fake_nvml import NO_PERMISSION, NOT_SUPPORTED, UNKNOWN, FakeNvml, uuid_of
from meter_contract import CHECKS

from policies.core.errors import MeterPermission, MeterUnavailable
from serve_app.meters import EnergyMeter, NvmlBackend, NvmlSettings, Source
from serve_app.nvml_library import ERRORS, GpuLost, NvmlNotSupported, NvmlTransient

ENERGY, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"
FIELDS = "nvmlDeviceGetFieldValues"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("energy_supported", [1, 0], ids=["counter", "integrated"])
def test_contract(rig, fake, check, energy_supported):
    fake.state.energy_supported = energy_supported
    check(rig())


def test_counter_is_exact_per_gpu(rig, fake):
    subject = rig()
    for index, watts in enumerate((100, 200, 300, 400)):
        fake.state.dev[index].power_override_mw = watts * 1000
    subject.work(10.0)
    readings = subject.read()
    assert [r.joules for r in readings] == pytest.approx([1000.0, 2000.0, 3000.0, 4000.0])
    assert [r.draw_watts for r in readings] == [100.0, 200.0, 300.0, 400.0]
    assert {r.source for r in readings} == {Source.COUNTER}
    assert [r.device.id for r in readings] == [uuid_of(i) for i in range(4)]


def test_old_gpu_is_integrated_by_the_trapezoid_rule(rig, fake):
    fake.state.energy_supported = 0
    subject = rig(gpus=("0",))
    fake.state.dev[0].power_override_mw = 300_000  # 70 W at open, 300 W at the next sample
    subject.work(1.0)
    assert subject.read()[0].joules == pytest.approx((70 + 300) / 2)
    subject.work(1.0)
    reading = subject.read()[0]
    assert reading.joules == pytest.approx(185 + 300)
    assert reading.source is Source.INTEGRATED


def test_background_thread_samples_a_burst_that_readings_miss(fake):
    fake.state.energy_supported = 0
    fake.state.virtual_ns = 0
    backend = NvmlBackend(NvmlSettings(gpus=("0",), sample_period_s=0.01), environ={})
    try:
        begin_s = time.monotonic()
        fake.state.dev[0].power_override_mw = 500_000
        time.sleep(0.3)
        fake.state.dev[0].power_override_mw = 1000
        burst_s = time.monotonic() - begin_s
        time.sleep(0.1)
        reading = backend.read(time.monotonic())[0]
    finally:
        backend.close()
    assert reading.joules == pytest.approx(500.0 * burst_s, rel=0.3)


def test_transient_failure_is_retried_and_then_costs_no_energy(rig, fake):
    subject = rig(gpus=("0",))
    fake.fail(ENERGY, UNKNOWN, times=1)
    subject.work(1.0)
    assert subject.read()[0].joules == pytest.approx(70.0)
    fake.fail(ENERGY, UNKNOWN, times=2)
    subject.work(1.0)
    failed = subject.read()[0]
    assert failed.joules is None
    assert failed.last_known_joules == pytest.approx(70.0)
    assert "999" in failed.reason
    subject.work(1.0)
    assert subject.read()[0].joules == pytest.approx(210.0)


@pytest.mark.parametrize("zero", [False, True], ids=["refused", "reads zero"])
def test_unreadable_power_leaves_the_counter_alone(rig, fake, zero):
    subject = rig(gpus=("0",))
    subject.work(1.0)
    if zero:
        subject.backend.power_limit_watts()  # any call lets the fake count
        fake.state.dev[0].power_override_mw = 0
    else:
        fake.fail(POWER, NO_PERMISSION)
    reading = subject.read()[0]
    assert reading.joules == pytest.approx(70.0)
    assert reading.draw_watts is None


def test_a_lost_gpu_stays_lost_and_the_others_count_on(rig, fake):
    subject = rig(gpus=("0", "1"))
    subject.work(1.0)
    subject.read()
    subject.lose()
    subject.work(1.0)
    lost, other = subject.read()
    assert lost.joules is None
    assert lost.last_known_joules == pytest.approx(70.0)
    assert other.joules == pytest.approx(140.0)
    fake.heal()
    assert subject.read()[0].joules is None


@pytest.mark.parametrize(
    ("code", "error"),
    [(NO_PERMISSION, MeterPermission), (UNKNOWN, MeterUnavailable)],
)
def test_nothing_readable_is_refused_at_open(rig, fake, code, error):
    fake.fail(ENERGY, code)
    with pytest.raises(error, match="GPU-"):
        rig()


def test_neither_counter_nor_power_is_refused_at_open(rig, fake):
    fake.state.energy_supported = 0
    fake.fail(POWER, NOT_SUPPORTED)
    fake.fail(FIELDS, NOT_SUPPORTED)
    with pytest.raises(MeterUnavailable, match="not supported"):
        rig()


def test_driver_not_loaded(monkeypatch):
    monkeypatch.setenv("FAKE_NVML_STATE", "/nonexistent")
    with pytest.raises(MeterUnavailable, match="driver is not loaded") as caught:
        NvmlBackend(environ={})
    assert isinstance(caught.value.__cause__, pynvml.NVMLError)
    with EnergyMeter(["nvml"]) as meter:
        assert "driver is not loaded" in meter.unavailable["nvml"]
        assert meter.devices() == ()
        meter.begin()
        assert meter.end().joules is None


def test_power_limit_is_the_enforced_one(rig, fake):
    subject = rig(gpus=("0", "1"))
    fake.state.dev[1].limit_mw = 350_000
    assert subject.backend.power_limit_watts() == {uuid_of(0): 700.0, uuid_of(1): 350.0}
    subject.lose()
    assert subject.backend.power_limit_watts()[uuid_of(0)] is None


def test_nothing_is_ever_set(rig, fake):
    subject = rig()
    subject.work(1.0)
    subject.read()
    subject.backend.power_limit_watts()
    subject.backend.close()
    assert all(d.n_set_limit == 0 and d.n_set_clock == 0 for d in fake.state.dev)


def test_idle_watts_only_if_configured(rig):
    assert rig().backend.idle_watts() is None
    assert rig(gpus=("0", "1"), idle_watts_per_gpu=72.0).backend.idle_watts() == 144.0


def test_error_table_names_codes_of_the_real_binding():
    codes = {
        value: name
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_") and isinstance(value, int)
    }
    assert set(ERRORS) <= set(codes)
    assert ERRORS[pynvml.NVML_ERROR_NO_PERMISSION][0] is MeterPermission
    assert ERRORS[pynvml.NVML_ERROR_GPU_IS_LOST][0] is GpuLost
    assert ERRORS[pynvml.NVML_ERROR_NOT_SUPPORTED][0] is NvmlNotSupported
    assert ERRORS[pynvml.NVML_ERROR_FUNCTION_NOT_FOUND][0] is NvmlNotSupported
    assert ERRORS[pynvml.NVML_ERROR_UNKNOWN][0] is NvmlTransient


def test_eight_gpus_are_read_in_a_millisecond(tmp_path, monkeypatch):
    state = FakeNvml.create(tmp_path / "eight", gpus=8)
    monkeypatch.setenv("FAKE_NVML_STATE", str(state.path))
    backend = NvmlBackend(environ={})
    try:
        costs = []
        for _ in range(200):
            begin_s = time.perf_counter()
            readings = backend.read(time.monotonic())
            costs.append(time.perf_counter() - begin_s)
        assert len(readings) == 8
        assert sorted(costs)[len(costs) // 2] < 1e-3
    finally:
        backend.close()


def test_fleet_sum_equals_the_fakes_own_energy_with_one_gpu_lost(rig, fake):
    subject = rig()
    start_mj = [fake.state.dev[i].energy_mj for i in range(4)]
    meter = EnergyMeter([subject.backend], clock=subject.clock)
    meter.begin()
    for second in range(60):
        for index in range(4):
            fake.state.dev[index].util = (second * 7 + index * 13) % 100
        subject.work(1.0)
        meter.read()
        if second == 30:
            lost_truth = (fake.state.dev[0].energy_mj - start_mj[0]) / 1e3
            subject.lose()
    result = meter.end()
    truth = lost_truth + sum((fake.state.dev[i].energy_mj - start_mj[i]) / 1e3 for i in (1, 2, 3))
    assert result.joules == pytest.approx(truth, abs=0.01)  # the counter shows whole millijoules
    assert result.coverage_ratio == pytest.approx((31 + 3 * 60) / 240)
    assert set(result.unavailable) == {uuid_of(0)}
    assert meter.read().unavailable() == {uuid_of(0): meter.read().devices[0].reason}
    assert meter.read().joules_by_kind()["gpu"] == pytest.approx(truth, abs=0.01)


def test_environment_is_the_fake_one():
    assert Path(os.environ["LD_LIBRARY_PATH"], "libnvidia-ml.so.1").exists()
