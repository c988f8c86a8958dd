"""RAPL counters that this process may not read."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fake_powercap import FakePowercap

from policies.core.errors import MeterPermission
from serve_app.meters import RaplBackend, RaplSettings

READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from policies.core.errors import MeterPermission
from serve_app.meters import EnergyMeter, MeterOptions, RaplBackend, RaplSettings
os.setgroups([]); os.setgid(65534); os.setuid(65534)
root = Path(sys.argv[1])
try:
    RaplBackend(RaplSettings(root=root))
except MeterPermission as error:
    print(error)
    assert isinstance(error.__cause__, PermissionError)
    meter = EnergyMeter(["rapl"], options=MeterOptions(powercap_root=root))
    assert meter.unavailable["rapl"] == str(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_permission_denied_says_how_to_grant_it():
    """Root reads everything, so the denial is made real by a process that gives root up."""
    folder = tempfile.TemporaryDirectory()  # pytest's own folders are closed to other users
    Path(folder.name).chmod(0o755)
    tree = FakePowercap.server(Path(folder.name) / "p")
    tree.zones["intel-rapl:0"].file.chmod(0o400)
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_NOBODY, str(tree.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    folder.cleanup()
    assert done.returncode == 0, done.stderr
    assert "chmod a+r" in done.stdout
    assert "CVE-2020-8694" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read it")
def test_permission_denied_for_an_ordinary_user(tmp_path):
    tree = FakePowercap.server(tmp_path / "p")
    tree.zones["intel-rapl:0"].file.chmod(0)
    with pytest.raises(MeterPermission, match="chmod a\\+r"):
        RaplBackend(RaplSettings(root=tree.root))
