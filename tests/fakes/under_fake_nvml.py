"""Runs test files in a process that finds the fake NVML library as it would find the real one."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from fake_nvml import build

ROOT = Path(__file__).parents[2]


def run_cases(cases, tmp_path, *, more_than=0, timeout_s=120):
    """All tests of these files pass there, none is skipped, and there are more than `more_than`."""
    library = build(tmp_path / "lib")
    report = tmp_path / "report.xml"
    environ = {**os.environ, "LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="js-") as folder:  # a socket's path is short
        command = [sys.executable, "-m", "pytest", *map(str, cases), "-q", "--no-header", "-p"]
        command += ["no:cacheprovider", f"--junitxml={report}", f"--basetemp={folder}/c"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ET.parse(report).getroot().find("testsuite")
    written = sum(case.read_text().count("\ndef test_") for case in cases)
    assert int(suite.get("tests")) >= written > more_than
    assert suite.get("skipped") == "0"
