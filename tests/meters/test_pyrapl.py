"""The pyrapl back-end: without pyRAPL, and (slow) on the real one inside a fake powercap tree."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fake_sys_class import command_under, possible

from serve_app.meters import DEFAULT_BACKENDS, EnergyMeter

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("pyrapl_cases.py")


def rapl_wraps():
    """The script beside this file, as a module."""
    from importlib import util

    spec = util.spec_from_file_location("rapl_wraps", Path(__file__).with_name("rapl_wraps.py"))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_opened_by_name_only_and_missing_it_says_how_to_install_it(monkeypatch):
    assert "pyrapl" not in DEFAULT_BACKENDS
    monkeypatch.setitem(sys.modules, "pyRAPL", None)  # what an import of a missing module finds
    with EnergyMeter(["pyrapl"]) as meter:
        assert "pip install 'jouleserve[pyrapl]'" in meter.unavailable["pyrapl"]
        assert meter.devices() == ()


@pytest.fixture
def scripts():
    module = rapl_wraps()
    if not possible():
        pytest.skip("needs root and a mount namespace")
    if module.pyrapl_folder() is None:
        pytest.skip(f"no pyRAPL: {module.__doc__.splitlines()[-1]}")
    return module


@pytest.mark.slow
def test_cases_pass_on_the_real_pyrapl(scripts, tmp_path):
    tree, report = tmp_path / "tree", tmp_path / "report.xml"
    tree.mkdir()
    command = command_under(tree, sys.executable, "-m", "pytest", str(CASES), "-q", "-p")
    command += ["no:cacheprovider", f"--junitxml={report}", f"--basetemp={tmp_path / 'cases'}"]
    done = subprocess.run(
        command, cwd=ROOT, env=scripts.environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ET.parse(report).getroot().find("testsuite")
    assert int(suite.get("tests")) >= CASES.read_text().count("\ndef test_")
    assert suite.get("skipped") == "0"
    assert not os.path.ismount("/sys/class/powercap")


@pytest.mark.slow
def test_ours_is_exact_over_wraps_and_pyrapls_own_measurement_is_not(scripts, tmp_path):
    found = scripts.run()
    rows = found["rows"]
    assert {row["window_wraps"] for row in rows if row["zone"] == "package-0"} == {0, 1, 2, 3}
    for row in rows:
        truth, theirs = row["truth_joules"], row["pyRAPL_joules"]
        assert row["rapl_joules"] == pytest.approx(truth, rel=1e-12)
        assert row["pyrapl_backend_joules"] == pytest.approx(truth, rel=1e-12)
        if row["window_wraps"] == 0:
            assert theirs == pytest.approx(truth)
        else:
            assert theirs is None or abs(theirs / truth - 1.0) > 0.2
    scripts.write(tmp_path, found)
    assert "None" in (tmp_path / "report.md").read_text()
