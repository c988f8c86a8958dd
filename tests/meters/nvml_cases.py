"""NVML cases, run by test_nvml.py in a process of its own whose LD_LIBRARY_PATH has the fake.

Unmodified nvidia-ml-py talks to the fake library here; nothing is patched.
"""

import os
import time
from pathlib import Path

import pynvml
import pytest
from fake_nvml import (
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    FakeNvml,
    uuid_of,
)
from meter_contract import CHECKS, FakeClock, Subject

from policies.core.errors import ConfigError, MeterPermission, MeterUnavailable
from serve_app.meters import EnergyMeter, NvmlBackend, NvmlSettings, Source
from serve_app.meters.nvml_errors import ERRORS, GpuLost, NvmlNotSupported, NvmlTransient

ENERGY, POWER = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"


@pytest.fixture
def fake(monkeypatch, tmp_path):
    state = FakeNvml.create(tmp_path / "state", gpus=4, virtual_ns=10**15)
    monkeypatch.setenv("FAKE_NVML_STATE", str(state.path))
    return state


@pytest.fixture
def rig(fake):
    """Opens a subject whose clock and the fake's go together."""
    opened = []

    def make(*, environ=None, **settings):
        clock = FakeClock()

        def work(seconds):
            fake.advance(seconds)
            clock.advance(seconds)

        settings.setdefault("sample_period_s", 60.0)  # samples are taken by the reading alone
        backend = NvmlBackend(NvmlSettings(**settings), environ=environ or {}, clock=clock)
        opened.append(backend)
        sources = frozenset({Source.COUNTER, Source.INTEGRATED})
        lose = lambda: fake.fail("*", GPU_IS_LOST, device=0)  # noqa: E731
        return Subject(backend, clock, work, lose, sources)

    yield make
    for backend in opened:
        backend.close()


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
        fake.state.dev[0].power_override_mw = 0
        burst_s = time.monotonic() - begin_s
        time.sleep(0.1)
        reading = backend.read(time.monotonic())[0]
    finally:
        backend.close()
    assert reading.joules == pytest.approx(500.0 * burst_s, rel=0.3)


def test_a_gap_between_power_samples_is_not_made_up(rig, fake):
    fake.state.energy_supported = 0
    subject = rig(gpus=("0",))
    subject.work(3600.0)
    reading = subject.read()[0]
    assert reading.joules == 0.0
    assert reading.anomalies == 1


def test_counter_reset_is_counted_and_adds_nothing(rig, fake):
    fake.state.dev[0].energy_mj = 5e9
    subject = rig(gpus=("0",))
    subject.work(1.0)
    before = subject.read()[0].joules
    fake.state.dev[0].energy_mj = 0.0  # the driver was reloaded
    subject.work(1.0)
    after_reset = subject.read()[0]
    subject.work(1.0)
    later = subject.read()[0]
    assert after_reset.joules == before
    assert after_reset.anomalies == 1
    assert later.joules == pytest.approx(before + 70.0)


def test_a_zero_reading_is_no_spike(rig, fake):
    fake.state.dev[0].energy_mj = 5e9
    subject = rig(gpus=("0",))
    fake.state.dev[0].energy_mj = 0.0
    subject.work(1.0)
    subject.read()
    fake.state.dev[0].energy_mj = 5e9 + 140e3
    subject.work(1.0)
    reading = subject.read()[0]
    assert reading.joules < 200.0
    assert reading.anomalies == 2


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


def test_unreadable_power_leaves_the_counter_alone(rig, fake):
    subject = rig(gpus=("0",))
    fake.fail(POWER, NO_PERMISSION)
    subject.work(1.0)
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


def test_a_gpu_that_is_lost_at_open_is_named(rig, fake):
    fake.fail("*", GPU_IS_LOST, device=1)
    subject = rig()
    readings = subject.read()
    assert [r.joules is None for r in readings] == [False, True, False, False]
    assert readings[1].device.id == "gpu-index-1"
    assert "bus" in readings[1].reason


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


def test_mig_board_is_unavailable_with_its_reason(rig, fake):
    fake.state.dev[2].mig_mode = 1
    readings = rig().read()
    assert readings[2].joules is None
    assert "MIG" in readings[2].reason
    assert readings[3].joules is not None


def test_mig_instance_is_unavailable(rig):
    subject = rig(environ={"CUDA_VISIBLE_DEVICES": f"MIG-{uuid_of(0)[4:]},1"})
    readings = subject.read()
    assert [r.joules is None for r in readings] == [True, False]
    with pytest.raises(MeterUnavailable, match="MIG"):
        rig(environ={"CUDA_VISIBLE_DEVICES": "MIG-1"})


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("2,0", [2, 0]), (uuid_of(3), [3]), (uuid_of(1)[:12], [1]), ("1,-1,2", [1])],
)
def test_cuda_visible_devices_selects(rig, visible, expected):
    devices = rig(environ={"CUDA_VISIBLE_DEVICES": visible}).backend.devices()
    assert [device.id for device in devices] == [uuid_of(i) for i in expected]


@pytest.mark.parametrize("visible", ["", "-1"])
def test_no_visible_gpu_is_unavailable(rig, visible):
    with pytest.raises(MeterUnavailable, match="CUDA_VISIBLE_DEVICES"):
        rig(environ={"CUDA_VISIBLE_DEVICES": visible})


def test_explicit_gpus_win_over_the_environment(rig):
    environ = {"CUDA_VISIBLE_DEVICES": "0"}
    assert [d.id for d in rig(environ=environ, gpus=("3",)).backend.devices()] == [uuid_of(3)]
    with pytest.raises(ConfigError, match=r"meter\.gpus.*'9'"):
        rig(gpus=("9",))


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


def test_environment_is_the_fake_one():
    assert Path(os.environ["LD_LIBRARY_PATH"], "libnvidia-ml.so.1").exists()
