"""`gpu-check` and the GPU part of `doctor`, run by test_gpu_check.py in a process of its own whose
LD_LIBRARY_PATH has the fake NVML library. Unmodified nvidia-ml-py; nothing is patched."""

import csv
import json
import os

import pytest
from fake_nvml import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, FakeNvml, uuid_of
from simulated import BUSY_WATTS, IDLE_WATTS, SimulatedLoad
from typer.testing import CliRunner

from serve_app.cli.gpu_check import app
from serve_app.doctor.findings import Level
from serve_app.doctor.gpus import gpu_findings
from serve_app.doctor.host import Host
from serve_app.doctor.meters import meters_section
from serve_app.doctor.scope import Scope
from serve_app.gpu_check.gpus import ReadOnlyNvml
from serve_app.gpu_check.run import CheckOptions, run_check

ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
BARE = Host(container=None, virtual_machine=False, vendor="Intel", has_nvidia_driver=True)


@pytest.fixture
def make_fake(monkeypatch, tmp_path):
    def make(gpus, **options):
        state = FakeNvml.create(tmp_path / "state", gpus=gpus, **options)
        monkeypatch.setenv("FAKE_NVML_STATE", str(state.path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return state

    return make


def nothing_was_set(fake):
    return all(d.n_set_limit == 0 and d.n_set_clock == 0 for d in fake.state.dev)


# ---- gpu-check


class Silent:
    """Progress that nobody watches."""

    def begin(self, total_s):
        pass

    def phase(self, text):
        pass

    def advance(self, seconds):
        pass


@pytest.fixture
def simulate(make_fake):
    """Run a whole check in simulated time; returns the run, the fake and the load."""

    def run(*, duration_s=60.0, gpus=1, counter=True, **sensors):
        fake = make_fake(gpus, virtual_ns=10**15)
        fake.state.energy_supported = int(counter)
        load = SimulatedLoad(fake, **sensors)
        options = CheckOptions(duration_s=duration_s, gpus=("0",))
        return run_check(options, Silent(), load=load, clock=load), fake, load

    return run


def test_a_true_gpu_passes_and_its_sensors_are_measured(simulate):
    run, fake, load = simulate(window_s=1.0, update_s=0.1)
    assert run.result.findings() == []
    (gpu,) = run.result.gpus
    assert gpu.counter_update_s.median == pytest.approx(0.1, abs=0.005)
    assert gpu.power_update_s.median == pytest.approx(0.1, abs=0.005)
    assert gpu.window.window_s == pytest.approx(1.0, rel=0.06)
    assert abs(gpu.window.lag_s) < 0.03
    phases = {phase.phase: phase for phase in gpu.phases}
    assert list(phases) == ["idle", "idle_with_context", "steps", "burst", "steady"]
    assert all(phase.within for phase in phases.values())
    assert phases["idle"].mean_watts == pytest.approx(IDLE_WATTS, rel=0.02)
    assert phases["steady"].mean_watts == pytest.approx(BUSY_WATTS, rel=0.02)
    bursts = 0.4 * BUSY_WATTS + 0.6 * IDLE_WATTS
    assert phases["burst"].mean_watts == pytest.approx(bursts, rel=0.05)
    started_joules = 2.0 * BUSY_WATTS + 3.0 * IDLE_WATTS  # the load's own start is left out
    counted = sum(phase.counter_joules for phase in phases.values())
    assert counted == pytest.approx(load.true_joules - started_joules, rel=0.02)
    assert nothing_was_set(fake)
    assert load.closed


def test_a_short_window_is_told_from_a_long_one(simulate):
    run, *_ = simulate(window_s=0.1, update_s=0.02, duration_s=18.0)
    assert run.result.gpus[0].window.window_s == pytest.approx(0.1, rel=0.15)


def test_a_power_sensor_that_is_off_is_a_finding(simulate):
    run, *_ = simulate(window_s=1.0, update_s=0.1, gain=1.25, duration_s=30.0)
    findings = run.result.findings()
    assert any("steady: integrated power is +2" in finding for finding in findings)


def test_without_a_counter_power_alone_is_reported(simulate):
    run, *_ = simulate(window_s=1.0, update_s=0.1, counter=False, duration_s=18.0)
    (gpu,) = run.result.gpus
    assert run.result.findings() == []
    assert gpu.gpu["has_counter"] is False
    assert (gpu.counter_update_s, gpu.window) == (None, None)
    assert {phase.counter_joules for phase in gpu.phases} == {None}
    steady = gpu.phases[-1]
    assert steady.mean_watts == pytest.approx(BUSY_WATTS, rel=0.05)


def test_a_gpu_lost_on_the_way_is_a_finding_and_keeps_its_phases(simulate, monkeypatch):
    fakes = []

    def lose_at_40_s(self):
        if self.now_s() > 40.0 and not fakes:
            fakes.append(self.fake)
            self.fake.fail("*", GPU_IS_LOST, device=0)

    monkeypatch.setattr(SimulatedLoad, "check", lose_at_40_s)
    run, *_ = simulate(window_s=1.0, update_s=0.1)
    (finding,) = run.result.findings()
    assert "bus" in finding
    (gpu,) = run.result.gpus
    assert [phase.phase for phase in gpu.phases] == ["idle", "idle_with_context", "steps", "burst"]
    assert all(phase.within for phase in gpu.phases)


def check(tmp_path, *arguments):
    """Run the command; returns its result, the manifest and the folder."""
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    manifest = out / "manifest.json"
    found = json.loads(manifest.read_text()) if manifest.exists() else {}
    return result, found, out


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command in real time, on a fake that draws the same all the time."""
    folder = tmp_path_factory.mktemp("command")
    fake = FakeNvml.create(folder / "state", gpus=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_NVML_STATE", str(fake.path))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        load = f"sh -c 'echo $$ > {folder / 'pid'}; exec sleep 1000'"
        arguments = ("--load", load, "--load-warm-up", "0.2", "--duration", "1")
        yield (*check(folder, *arguments), fake, folder)


def test_the_command_passes_and_costs_are_small_on_the_fake(command):
    result, manifest, *_ = command
    assert result.exit_code == 0, result.output
    assert manifest["findings"] == []
    assert [gpu["gpu"]["index"] for gpu in manifest["gpus"]] == [0, 1]
    for gpu in manifest["gpus"]:
        names = [phase["phase"] for phase in gpu["phases"]]
        assert names == ["idle", "idle_with_context", "steps", "burst", "steady"]
        assert all(0.0 < gpu["cost_s"][call]["median"] < 1e-3 for call in ("counter", "power"))
    assert manifest["cycle_s"]["median"] < 1e-3


def test_nothing_is_ever_set(command):
    fake = command[3]
    assert nothing_was_set(fake)
    nvml = ReadOnlyNvml()
    try:
        handle = nvml.read("nvmlDeviceGetHandleByIndex", 0)
        with pytest.raises(ValueError, match="only getters"):
            nvml.read("nvmlDeviceSetPowerManagementLimit", handle, 300_000)
    finally:
        nvml.close()
    assert nothing_was_set(fake)


def test_samples_manifest_and_report_tell_the_same(command):
    _, manifest, out, *_ = command
    with (out / "samples.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] == "1"]
    steady = [row for row in rows if row["phase"] == "steady"]
    (phase,) = [p for p in manifest["gpus"][1]["phases"] if p["phase"] == "steady"]
    span = float(steady[-1]["counter_joules"]) - float(steady[0]["counter_joules"])
    assert span == pytest.approx(phase["counter_joules"], rel=0.1)
    assert manifest["driver"]["driver"] == "580.159.04"
    assert manifest["gpus"][0]["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    texts = [path.read_text() for path in out.iterdir() if path.suffix != ".png"]
    assert not any(uuid_of(0) in text for text in texts)  # results are published
    report = (out / "report.md").read_text()
    assert "within the stated error" in report
    assert f"| steady | {phase['seconds']:.1f} |" in report


def test_the_load_is_gone_afterwards(command):
    pid = int((command[4] / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_load_that_ends_early_is_a_finding(make_fake, tmp_path):
    make_fake(1)
    result, manifest, _ = check(tmp_path, "--load", "true", "--load-warm-up", "0.2", "--duration=1")
    assert result.exit_code == 1
    assert "the load ended before the check did" in manifest["findings"][0]
    assert manifest["gpus"][0]["phases"][0]["phase"] == "idle"


def test_a_lost_gpu_is_a_finding_and_the_other_is_checked(make_fake, tmp_path):
    fake = make_fake(2)
    fake.fail("nvmlDeviceGetPowerUsage", GPU_IS_LOST, device=1)
    fake.fail("nvmlDeviceGetFieldValues", GPU_IS_LOST, device=1)
    fake.fail(ENERGY, GPU_IS_LOST, device=1)
    command = "sleep 1000"
    result, manifest, _ = check(tmp_path, "--load", command, "--load-warm-up=0", "--duration=1")
    assert result.exit_code == 1
    assert any("bus" in finding for finding in manifest["findings"])
    assert [gpu["gpu"]["index"] for gpu in manifest["gpus"]] == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "7"], "names no GPU"),
        (["--duration", "0"], "allowed: 1 to 3600"),
        (["--load", "/no/such/program", "--duration", "1"], "/no/such/program"),
    ],
)
def test_bad_input(make_fake, tmp_path, arguments, message):
    make_fake(1)
    result, _, _ = check(tmp_path, *arguments)
    assert message in str(result.exception)


# ---- doctor


def subjects(findings):
    return {finding.subject.split()[-1]: finding for finding in findings}


def test_doctor_names_each_gpu_by_uuid_with_its_sensor_and_limits(make_fake):
    fake = make_fake(2)
    fake.state.dev[1].limit_mw = 350_000
    found = subjects(gpu_findings(Scope(environ={}), BARE))
    first, second = found[uuid_of(0)], found[uuid_of(1)]
    assert first.level is Level.OK
    assert "energy counter" in first.text
    assert "power limit 700 W (200 to 700 W allowed" in first.text
    assert second.facts["power_limit_watts"] == 350.0
    assert second.facts["source"] == "counter"
    assert nothing_was_set(fake)


def test_doctor_says_that_a_gpu_is_shared(make_fake):
    fake = make_fake(1)
    fake.state.dev[0].n_compute = 3
    (finding,) = gpu_findings(Scope(environ={}), BARE)
    assert finding.level is Level.WARNING
    assert "3 processes share this GPU" in finding.text
    mps = Scope(environ={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps"})
    assert [f.subject for f in gpu_findings(mps, BARE)][-1] == "MPS"


def test_doctor_says_integrated_mig_and_not_in_scope(make_fake):
    fake = make_fake(3)
    fake.fail(ENERGY, NOT_SUPPORTED, device=0)
    fake.state.dev[1].mig_mode = 1
    found = subjects(gpu_findings(Scope(environ={"CUDA_VISIBLE_DEVICES": "0,1"}), BARE))
    assert found[uuid_of(0)].level is Level.NOTE
    assert "integrated" in found[uuid_of(0)].text
    sliced = found[uuid_of(1)]
    assert sliced.level is Level.PROBLEM
    assert "MIG" in sliced.text
    assert sliced.fix
    assert "CUDA_VISIBLE_DEVICES" in found[uuid_of(2)].text


def test_doctor_says_why_no_gpu_can_be_read(make_fake, monkeypatch):
    fake = make_fake(1)
    fake.fail(ENERGY, NO_PERMISSION)
    (finding,) = gpu_findings(Scope(environ={}, engine="gpu"), BARE)
    assert finding.level is Level.PROBLEM
    assert "may not read" in finding.text
    monkeypatch.setenv("FAKE_NVML_STATE", "/nonexistent")
    (finding,) = gpu_findings(Scope(environ={}), BARE)
    assert finding.level is Level.PROBLEM
    assert "driver is not loaded" in finding.text


def test_doctor_sees_a_counter_that_stands_still(make_fake, tmp_path):
    make_fake(1, virtual_ns=10**15)
    section = meters_section(Scope(environ={}, powercap_root=tmp_path / "none"), BARE)
    still = [f for f in section.findings if f.subject == uuid_of(0)]
    assert [f.level for f in still] == [Level.WARNING]
    (joules,) = [f for f in section.findings if f.subject == "joules"]
    assert joules.facts["devices"]["gpu"] == "nvml"
    assert joules.facts["sources"]["gpu"] == "counter"
