"""Runs *_cases.py where the fake NVML library is found as the real one would be: nothing else in the
tests may set a power limit."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fake_nvml import build

from policies.core.errors import ActuationError
from serve_app.actuators.limited_gpus import LimitedGpus

ROOT = Path(__file__).parents[2]
CASES = sorted(Path(__file__).parent.glob("*_cases.py"))


@pytest.mark.slow
def test_cases_pass_under_the_fake_library(tmp_path):
    library = build(tmp_path / "lib")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", *map(str, CASES), "-q", "--no-header", "-p"]
    command += ["no:cacheprovider", f"--junitxml={report}", f"--basetemp={tmp_path / 'cases'}"]
    environ = {**os.environ, "LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ET.parse(report).getroot().find("testsuite")
    written = sum(case.read_text().count("\ndef test_") for case in CASES)
    assert int(suite.get("tests")) >= written > 20
    assert suite.get("skipped") == "0"


def test_one_file_alone_names_a_setter_of_nvml():
    setter = re.compile(r"nvml\w*(Set|Reset|Clear|Enable|Activate|Create|Destroy)[A-Z]\w*")
    named = {
        (path.name, found[0])
        for path in (ROOT / "serve_app").rglob("*.py")
        for found in setter.finditer(path.read_text())
    }
    assert named == {("power_limit.py", "nvmlDeviceSetPowerManagementLimit")}


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA driver")
def test_without_a_driver_nothing_is_set_and_the_reason_is_said(tmp_path):
    state_file = tmp_path / "limits.json"
    gpus = LimitedGpus(["GPU-1"], say=print, state_file=state_file)
    with pytest.raises(ActuationError, match="no power limit can be set: .*NVIDIA driver"):
        gpus.__enter__()
    assert list(tmp_path.iterdir()) == []
