"""Runs *_cases.py where the fake NVML library is found as the real one would be: nothing else in the
tests may set a power limit."""

import re
from pathlib import Path

import pytest
from under_fake_nvml import run_cases

from policies.core.errors import ActuationError
from serve_app.actuators.limited_gpus import LimitedGpus

ROOT = Path(__file__).parents[2]
CASES = sorted(Path(__file__).parent.glob("*_cases.py"))


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_cases_pass_under_the_fake_library(tmp_path, cases):
    run_cases([cases], tmp_path, timeout_s=240)


def test_one_file_alone_names_a_setter_of_nvml():
    setter = re.compile(r"nvml\w*(Set|Reset|Clear|Enable|Activate|Create|Destroy)[A-Z]\w*")
    named = {
        (path.name, found[0])
        for path in (ROOT / "serve_app").rglob("*.py")
        for found in setter.finditer(path.read_text())
    }
    assert named == {
        ("power_limit.py", "nvmlDeviceSetPowerManagementLimit"),
        ("power_limit.py", "nvmlDeviceSetGpuLockedClocks"),
        ("power_limit.py", "nvmlDeviceResetGpuLockedClocks"),
    }


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA driver")
def test_without_a_driver_nothing_is_set_and_the_reason_is_said(tmp_path):
    state_file = tmp_path / "limits.json"
    gpus = LimitedGpus(["GPU-1"], say=print, state_file=state_file)
    with pytest.raises(ActuationError, match="no power limit can be set: .*NVIDIA driver"):
        gpus.__enter__()
    assert list(tmp_path.iterdir()) == []
