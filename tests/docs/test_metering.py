"""docs/metering.md: its snippets run, its commands work, its names exist."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

FAKES = str(Path(__file__).parents[1] / "fakes")
if FAKES not in sys.path:
    sys.path.insert(0, FAKES)

from fake_powercap import FakePowercap  # noqa: E402

from serve_app.cli import doctor, gpu_check  # noqa: E402
from serve_app.doctor import granting  # noqa: E402
from serve_app.meters import BACKENDS, Source  # noqa: E402
from serve_app.observers.metrics import METRICS  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metering.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[2][:20])
def test_python_snippets_run(code, capsys):
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out


def test_our_own_commands_run():
    ours = [line for line in COMMANDS if line.startswith("jouleserve ")]
    assert ours
    for line in ours:
        command = [sys.executable, "-m", "serve_app.cli.main", *line.split()[1:]]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


def test_all_commands_are_shell():
    script = "\n".join(COMMANDS)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_page_and_the_doctor_grant_alike():
    told = (
        granting.RAPL_ONCE,
        *granting.RAPL_UDEV,
        *granting.RAPL_TMPFILES,
        granting.RAPL_CAPABILITY,
    )
    assert set(told) <= set(COMMANDS)
    for part in (granting.RAPL_MODULE, granting.MASKED, granting.MOUNT_POINT):
        assert part in TEXT


def test_the_rules_match_the_files_of_a_powercap_tree(tmp_path):
    tree = FakePowercap.server(tmp_path / "class")
    wanted = {zone.file.resolve() for zone in tree.zones.values()}
    glob = granting.RAPL_ONCE.split("/sys/class/powercap/")[1]
    assert {path.resolve() for path in tree.root.glob(glob)} == wanted
    printf = granting.RAPL_TMPFILES[0].partition(" | ")[0]
    lines = subprocess.run(
        ["sh", "-c", printf], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    patterns = [line.split()[1].removeprefix(f"{granting.MASKED}/") for line in lines]
    # The links lie in the same fake folder: the real directory has none of them.
    real = [p for p in tree.root.rglob("*") if p.is_symlink()]
    for link in real:
        link.unlink()
    assert {p for pattern in patterns for p in tree.root.glob(pattern)} == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a capability")
def test_the_capability_reads_what_only_root_may():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        secret = Path(folder) / "energy_uj"
        secret.write_text("42\n")
        secret.chmod(0o400)
        line = granting.RAPL_CAPABILITY.replace("sudo ", "").replace("COMMAND", f"cat {secret}")
        line = line.replace("$(id -g)", "$(id -g nobody)")
        for script, found in ((line, "42\n"), (line.replace("+dac_read_search", "-all"), "")):
            done = subprocess.run(
                ["sh", "-c", script],
                env={**os.environ, "USER": "nobody"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout == found


def test_yaml_blocks_are_yaml():
    found = [yaml.safe_load(block) for block in blocks("yaml")]
    assert len(found) >= 2
    assert all(isinstance(document, dict) for document in found)


def test_options_back_ends_and_sources_are_those_of_the_code():
    helps = Path(doctor.__file__).read_text() + Path(gpu_check.__file__).read_text()
    for option in ("--powercap-root", "--load"):
        assert option in TEXT
        assert f"{option.removeprefix('--').replace('-', '_')}: Annotated" in helps
    assert all(f"| `{name}` |" in TEXT for name in BACKENDS)
    assert all(f"| `{source}` |" in TEXT for source in Source)


def test_metric_names_exist():
    ours = {f"{m.name}_total" if m.kind == "counter" else m.name for m in METRICS}
    assert set(re.findall(r"\bjouleserve_\w+", TEXT)) <= ours
    vllm = Path(importlib.util.find_spec("vllm").origin).parent
    source = (vllm / "v1" / "metrics" / "loggers.py").read_text()
    theirs = set(re.findall(r"vllm:\w+", TEXT))
    assert len(theirs) > 4
    assert all(f'"{name}"' in source for name in theirs)


def test_opentelemetry_names_are_those_of_the_conventions():
    attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.hw_attributes")
    metrics = pytest.importorskip("opentelemetry.semconv._incubating.metrics.hw_metrics")
    known = {v for module in (attributes, metrics) for v in vars(module).values() if type(v) is str}
    named = set(re.findall(r"`(hw\.[a-z_.]+)", TEXT))
    assert {"hw.energy", "hw.power", "hw.id", "hw.type", "hw.name", "hw.host.energy"} <= named
    assert named <= known
    kinds = {member.value for member in attributes.HwTypeValues}
    assert set(re.findall(r'hw\.type="(\w+)"', TEXT)) <= kinds
    assert "Unit: J" in Path(metrics.__file__).read_text().split("HW_ENERGY: Final")[1][:120]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target
