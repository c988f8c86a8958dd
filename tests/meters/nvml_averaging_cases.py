"""NVML cases: power that is a mean over one second. Run by test_nvml.py under the fake library.

Unmodified nvidia-ml-py talks to the fake library here; nothing is patched.
"""

import pytest
from fake_nvml import uuid_of

from serve_app.meters import EnergyMeter, Source


@pytest.fixture
def averaging(fake):
    """GPU 0 as an Ampere board with an old driver and no counter: power is a one-second mean."""
    device = fake.state.dev[0]
    fake.state.energy_supported = 0
    device.power_mean_ms, device.no_instant, device.arch, device.cc = 1000, 1, 7, 86
    device.power_override_mw = 100_000
    return device


def burst(subject, device, seconds):
    """A window of `seconds` at 500 W after a long time at 100 W; returns it and its truth."""
    meter = EnergyMeter([subject.backend], clock=subject.clock)
    for _ in range(40):
        subject.work(0.05)
        subject.read()
    meter.begin()
    device.power_override_mw = 500_000
    for _ in range(round(seconds / 0.05)):
        subject.work(0.05)
        subject.read()
    return meter.end(), 500.0 * seconds


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0, 10.0])
def test_averaged_power_smears_a_window_as_the_formula_says(rig, averaging, seconds):
    result, truth = burst(rig(gpus=("0",)), averaging, seconds)
    resolved = seconds / 2 if seconds < 1.0 else 1.0 - 0.5 / seconds
    expected = truth * resolved + 100.0 * seconds * (1.0 - resolved)
    assert result.joules == pytest.approx(expected, rel=0.03)
    assert result.source is Source.INTEGRATED
    assert result.devices[0].resolved_ratio == pytest.approx(resolved)
    assert result.coverage_ratio == pytest.approx(resolved)
    assert f"{1.0 - resolved:.0%} of the joules" in result.caveats[uuid_of(0)]


@pytest.mark.parametrize(
    ("no_instant", "arch", "cc", "averaged_s"),
    [
        (0, 7, 86, 0.0),
        (1, 7, 86, 1.0),
        (2, 7, 86, 1.0),
        (1, 7, 80, 0.0),
        (1, 9, 90, 1.0),
        (1, 5, 70, 0.0),
    ],
)
def test_the_most_direct_power_value_is_taken(rig, averaging, no_instant, arch, cc, averaged_s):
    """The present draw as a field value; else nvmlDeviceGetPowerUsage, a mean but for GA100."""
    averaging.no_instant, averaging.arch, averaging.cc = no_instant, arch, cc
    if arch == 5 or cc == 80:
        averaging.power_mean_ms = 0
    subject = rig(gpus=("0",))
    result, truth = burst(subject, averaging, 1.0)
    assert subject.read()[0].averaged_s == averaged_s
    if averaged_s == 0.0:
        assert result.joules == pytest.approx(truth, rel=0.03)
        assert (result.coverage_ratio, result.caveats) == (1.0, {})
