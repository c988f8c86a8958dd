"""Runs nvml_*_cases.py against the fake library, in a process that finds it like the real one."""

from pathlib import Path

import pytest
from under_fake_nvml import run_cases

from serve_app.meters import EnergyMeter

ROOT = Path(__file__).parents[2]
CASES = sorted(Path(__file__).parent.glob("nvml_*_cases.py"))


@pytest.mark.slow
def test_cases_pass_under_the_fake_library(tmp_path):
    run_cases(CASES, tmp_path, more_than=40)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA driver")
def test_without_a_driver_nvml_is_unavailable_with_its_reason():
    with EnergyMeter(["nvml"]) as meter:
        assert "NVIDIA driver" in meter.unavailable["nvml"]
        meter.begin()
        result = meter.end()
    assert result.joules is None
    assert result.joules_by_device == {}
