"""The pyrapl back-end on the real pyRAPL. Run by test_pyrapl.py inside a fake /sys/class/powercap."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_powercap import PACKAGE_RANGE_UJ, FakePowercap
from meter_contract import CHECKS, FakeClock, Subject

from policies.core.errors import MeterUnavailable
from serve_app.meters import EnergyMeter, MeterOptions, ProcessShare, PyRaplBackend, RaplSettings
from serve_app.meters.powercap import POWERCAP_ROOT


@pytest.fixture
def root():
    for child in POWERCAP_ROOT.iterdir():
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    return POWERCAP_ROOT


def subject_of(root, share="host"):
    clock = FakeClock()
    tree = FakePowercap.server(root)
    zones = [tree.zones["intel-rapl:0"], tree.zones["intel-rapl:0:2"]]

    def work(seconds):
        clock.advance(seconds)
        for zone in zones:
            zone.add(round(seconds * 100e6))

    def lose():
        zones[0].file.write_text("")  # pyRAPL keeps the file open

    backend = PyRaplBackend(RaplSettings(share=share), clock=clock)
    return Subject(backend, clock, work, lose)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("share", ["host", ProcessShare(allotted_cores=1.0)], ids=["host", "share"])
def test_contract(root, check, share):
    subject = subject_of(root, share)
    try:
        check(subject)
    finally:
        subject.backend.close()


def test_exact_over_three_wraps(root):
    clock = FakeClock()
    tree = FakePowercap(root)
    zone = tree.add("intel-rapl:0", "package-0", start_uj=PACKAGE_RANGE_UJ - 1)
    backend = PyRaplBackend(clock=clock)
    while zone.total_uj < 3 * PACKAGE_RANGE_UJ:
        zone.add(17_000_000_003)
        clock.advance(60.0)
        assert backend.read(clock())[0].joules == pytest.approx(zone.total_uj / 1e6, rel=1e-15)
    backend.close()


def test_what_pyrapl_cannot_start_on_is_unavailable_and_says_what_can(root):
    tree = FakePowercap(root)
    for die in (0, 1):
        tree.add(f"intel-rapl:{die}", f"package-0-die-{die}")
    with pytest.raises(MeterUnavailable, match="several dies on a socket.*back-end `rapl`"):
        PyRaplBackend()
    with EnergyMeter(["pyrapl", "rapl"]) as meter:
        assert meter.backends() == {"cpu": "rapl"}
        assert "several dies" in meter.unavailable["pyrapl"]


READ_AS_NOBODY = """
import os
from policies.core.errors import MeterPermission
from serve_app.meters import PyRaplBackend
from serve_app.meters.pyrapl import _import_pyrapl
_import_pyrapl()  # it may be installed where only root may look
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    PyRaplBackend()
except MeterPermission as error:
    print(error)
"""


def test_a_counter_for_root_only_says_how_to_grant_it(root):
    tree = FakePowercap(root)
    Path(root).chmod(0o755)
    tree.add("intel-rapl:0", "package-0").file.chmod(0o400)
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_NOBODY], capture_output=True, text=True, env=os.environ
    )
    assert "chmod a+r" in done.stdout, done.stderr


def test_its_import_neither_logs_nor_configures_logging():
    code = (
        "import logging; from serve_app.meters.pyrapl import _import_pyrapl; _import_pyrapl(); "
        "assert not logging.root.handlers and not logging.root.manager.disable"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert logging.root.manager.disable == 0


def test_another_root_is_refused(tmp_path):
    options = MeterOptions(powercap_root=tmp_path)
    with EnergyMeter(["pyrapl"], options=options) as meter:
        assert "/sys/class/powercap only" in meter.unavailable["pyrapl"]
