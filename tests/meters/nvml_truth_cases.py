"""NVML cases: sensors that lie, lag, stall or disagree. Run by test_nvml.py under the fake library.

Unmodified nvidia-ml-py talks to the fake library here; nothing is patched.
"""

import pytest

from serve_app.meters import Anomaly, EnergyMeter, Source


def used_joules(fake, index=0):
    return fake.state.dev[index].used_mj / 1e3


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
    assert (after_reset.anomalies, after_reset.anomaly_counts) == (1, {Anomaly.RESET: 1})
    assert later.joules == pytest.approx(before + 70.0)


def test_a_backward_step_is_counted_and_adds_nothing(rig, fake):
    fake.state.dev[0].energy_mj = 5e9
    subject = rig(gpus=("0",))
    subject.work(1.0)
    fake.state.dev[0].energy_mj -= 1e6
    assert subject.read()[0].joules == 0.0
    subject.work(1.0)
    reading = subject.read()[0]
    assert reading.joules == pytest.approx(70.0)
    assert reading.anomaly_counts == {Anomaly.BACKWARD: 1}


def test_a_zero_reading_is_no_spike_and_loses_nothing(rig, fake):
    fake.state.dev[0].energy_mj = 5e9
    subject = rig(gpus=("0",))
    device = fake.state.dev[0]
    subject.work(1.0)
    real, device.energy_mj, device.energy_frozen = device.energy_mj, 0.0, 1
    assert subject.read()[0].joules == 0.0
    device.energy_mj, device.energy_frozen = real + 70e3, 0  # 70 J until now, and
    subject.work(1.0)  # 70 J more
    reading = subject.read()[0]
    assert reading.joules == pytest.approx(140.0)
    assert (reading.anomalies, reading.anomaly_counts) == (1, {Anomaly.ZERO: 1})


def test_an_impossible_jump_is_left_out(rig, fake):
    subject = rig(gpus=("0",))
    subject.work(1.0)
    fake.state.dev[0].energy_mj += 1e9  # a megajoule in a second
    subject.read()
    for _ in range(3):
        subject.work(1.0)
        reading = subject.read()[0]
    assert reading.joules == pytest.approx(210.0)
    assert reading.anomaly_counts == {Anomaly.JUMP: 1}


def test_a_stalled_counter_is_unavailable_until_it_moves_and_then_nothing_is_lost(rig, fake):
    subject = rig(gpus=("0",))
    meter = EnergyMeter([subject.backend], clock=subject.clock)
    device = fake.state.dev[0]
    subject.work(1.0)
    meter.begin()
    device.energy_frozen = 1
    for _ in range(4):
        subject.work(1.0)
        assert subject.read()[0].joules is not None  # it may only be slow
    for _ in range(4):
        subject.work(1.0)
        reading = subject.read()[0]
    assert (reading.joules, reading.source) == (None, Source.UNAVAILABLE)
    assert "stood still for 8.0 s while the GPU draws 70 W" in reading.reason
    assert reading.last_known_joules == pytest.approx(70.0)
    assert reading.last_known_s == subject.clock() - 8.0
    assert reading.anomaly_counts == {Anomaly.STALL: 1}
    stalled = meter.measure_since(meter._windows[None][0])
    assert stalled.coverage_ratio == 0.0
    device.energy_frozen = 0
    device.energy_mj = device.used_mj  # it catches up
    subject.work(1.0)
    result = meter.end()
    assert result.joules == pytest.approx(9 * 70.0)
    assert result.coverage_ratio == 1.0
    assert result.devices[0].anomaly_counts == {Anomaly.STALL: 1}


@pytest.mark.parametrize(("util", "stalls"), [(50, True), (0, False)])
def test_without_a_power_sensor_a_busy_gpu_tells_of_a_stall(rig, fake, util, stalls):
    fake.fail("nvmlDeviceGetPowerUsage", 3)
    subject = rig(gpus=("0",))
    fake.state.dev[0].energy_frozen = 1
    fake.state.dev[0].util = util
    subject.work(6.0)
    reading = subject.read()[0]
    assert (reading.joules is None) == stalls
    if stalls:
        assert "while the GPU is busy" in reading.reason


def test_a_power_sensor_that_reads_zero_is_unavailable_and_not_idle(rig, fake):
    fake.state.energy_supported = 0
    subject = rig(gpus=("0",))
    subject.work(1.0)
    assert subject.read()[0].joules == pytest.approx(70.0)
    fake.state.dev[0].power_override_mw = 0
    for _ in range(3):
        subject.work(1.0)
        reading = subject.read()[0]
    assert reading.joules is None
    assert reading.last_known_joules == pytest.approx(70.0)
    assert "0 W" in reading.reason
    assert reading.anomaly_counts == {Anomaly.ZERO: 3}


def test_a_gap_between_power_samples_is_not_made_up(rig, fake):
    fake.state.energy_supported = 0
    subject = rig(gpus=("0",))
    subject.work(3600.0)
    reading = subject.read()[0]
    assert reading.joules == 0.0
    assert (reading.anomalies, reading.anomaly_counts) == (1, {Anomaly.GAP: 1})


def test_late_power_samples_are_counted(fake, rig):
    fake.state.energy_supported = 0
    subject = rig(gpus=("0",), sample_period_s=0.1)
    for poller in subject.backend._pollers:
        poller.close()  # this test is the sampler
    subject.work(0.3)
    assert subject.read()[0].anomaly_counts == {}
    subject.work(0.5)
    reading = subject.read()[0]
    assert reading.joules == pytest.approx(0.8 * 70.0)
    assert (reading.anomalies, reading.anomaly_counts) == (0, {Anomaly.LATE: 1})


# ---- counter against power


def run_seconds(subject, seconds, draw=None):
    for second in range(seconds):
        if draw is not None:
            draw(second)
        subject.work(1.0)
        reading = subject.read()[0]
    return reading


def test_counter_and_integrated_power_are_cross_checked(rig, fake):
    subject = rig(gpus=("0",))
    assert run_seconds(subject, 9).cross_check_ratio is None
    agreed = run_seconds(subject, 1)
    assert agreed.cross_check_ratio == pytest.approx(1.0)
    assert agreed.anomaly_counts == {}
    fake.state.dev[0].power_permille = 1200  # the power sensor shows a fifth too much
    wrong = run_seconds(subject, 20)
    assert wrong.cross_check_ratio == pytest.approx(1.2)
    assert wrong.anomaly_counts[Anomaly.DISAGREEMENT] >= 1
    assert wrong.anomalies == 0  # which of the two is wrong is not known
    assert wrong.joules == pytest.approx(used_joules(fake))
    (told,) = EnergyMeter([subject.backend], clock=subject.clock).read().devices
    assert told.cross_check_ratio == wrong.cross_check_ratio


def test_a_load_that_pulses_between_the_samples_is_no_disagreement(rig, fake):
    """Half a second in every three, and a sample catches each: too much, but not the sensor's."""
    subject = rig(gpus=("0",))
    for second in range(40):
        for watts in (80, 600 if second % 3 == 0 else 80):
            fake.state.dev[0].power_override_mw = watts * 1000
            subject.work(0.5)
            subject.backend.power_limit_watts()  # any call lets the fake count
        reading = subject.read()[0]
    assert reading.cross_check_ratio > 1.25
    assert reading.anomaly_counts == {}


def test_a_reset_starts_the_cross_check_anew(rig, fake):
    fake.state.dev[0].energy_mj = 5e9
    subject = rig(gpus=("0",))
    run_seconds(subject, 8)
    fake.state.dev[0].energy_mj = 0.0
    reading = run_seconds(subject, 8)
    assert reading.cross_check_ratio is None  # no window without the reset is full yet
    assert run_seconds(subject, 4).cross_check_ratio == pytest.approx(1.0)
