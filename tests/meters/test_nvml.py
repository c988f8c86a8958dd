"""Runs nvml_*_cases.py against the fake library, in a process that finds it like the real one."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fake_nvml import build

from serve_app.meters import EnergyMeter

ROOT = Path(__file__).parents[2]
CASES = sorted(Path(__file__).parent.glob("nvml_*_cases.py"))


@pytest.mark.slow
def test_cases_pass_under_the_fake_library(tmp_path):
    library = build(tmp_path / "lib")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", *map(str, CASES), "-q", "--no-header", "-p"]
    command += ["no:cacheprovider", f"--junitxml={report}", f"--basetemp={tmp_path / 'cases'}"]
    environ = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ET.parse(report).getroot().find("testsuite")
    written = sum(case.read_text().count("\ndef test_") for case in CASES)
    assert int(suite.get("tests")) >= written > 40
    assert suite.get("skipped") == "0"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA driver")
def test_without_a_driver_nvml_is_unavailable_with_its_reason():
    with EnergyMeter(["nvml"]) as meter:
        assert "NVIDIA driver" in meter.unavailable["nvml"]
        meter.begin()
        result = meter.end()
    assert result.joules is None
    assert result.joules_by_device == {}
