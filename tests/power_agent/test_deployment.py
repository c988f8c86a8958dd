"""The systemd unit and the DaemonSet start the agent that is here, with options that it knows."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serve_app.actuators.limit_record import STATE_FILE
from serve_app.power_agent.agent import AUDIT_FILE, parser
from serve_app.power_agent.client import SOCKET

CONFIGS = Path(__file__).parents[2] / "configs"
UNIT = CONFIGS / "systemd" / "jouleserve-power-agent.service"
MANIFEST = CONFIGS / "kubernetes" / "base" / "power-agent.yaml"
NAMESPACE = MANIFEST.with_name("namespace.yaml")


class Unit(configparser.RawConfigParser):
    """Keys may be given twice."""

    def optionxform(self, optionstr):
        return optionstr


@pytest.fixture
def service():
    unit = Unit(strict=False, delimiters=("=",), comment_prefixes=("#",))
    unit.read(UNIT)
    return unit["Service"]


def options_after_module(words):
    place = words.index("serve_app.power_agent")
    return parser().parse_args(words[place + 1 :])


def test_the_unit_runs_the_agent_with_its_folders(service):
    options = options_after_module(service["ExecStart"].split())
    assert options.group == "jouleserve"
    assert Path("/run", service["RuntimeDirectory"]) == SOCKET.parent
    assert Path("/var/lib", service["StateDirectory"]) == STATE_FILE.parent
    assert Path("/var/log", service["LogsDirectory"]) == AUDIT_FILE.parent


def test_the_unit_brings_a_killed_agent_back_and_gives_it_nothing_else(service):
    assert (service["Restart"], service["Type"]) == ("always", "notify")
    assert service["CapabilityBoundingSet"] == "CAP_SYS_ADMIN CAP_CHOWN"
    assert service["RestrictAddressFamilies"] == "AF_UNIX"
    for key in ("NoNewPrivileges", "ProtectHome", "PrivateNetwork", "ProtectKernelModules"):
        assert service[key] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_no_fault_in_the_unit():
    done = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in done.stderr


def test_the_daemon_set_runs_the_agent_on_gpu_nodes_with_what_it_needs():
    namespace, daemon_set = (yaml.safe_load(path.read_text()) for path in (NAMESPACE, MANIFEST))
    assert namespace["metadata"]["name"] == daemon_set["metadata"]["namespace"]
    pod = daemon_set["spec"]["template"]["spec"]
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    assert daemon_set["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = pod["containers"]
    options = options_after_module([*container["command"], *container["args"]])
    assert str(options.audit_file) == "-"
    probe = options_after_module(container["livenessProbe"]["exec"]["command"])
    assert probe.ping
    added = container["securityContext"]["capabilities"]
    assert added == {"drop": ["ALL"], "add": ["SYS_ADMIN", "CHOWN"]}
    mounts = {one["name"]: Path(one["mountPath"]) for one in container["volumeMounts"]}
    assert mounts == {"run": SOCKET.parent, "state": STATE_FILE.parent}
    volumes = {one["name"]: Path(one["hostPath"]["path"]) for one in pod["volumes"]}
    assert volumes == mounts
