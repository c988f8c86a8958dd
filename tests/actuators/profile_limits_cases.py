"""`jouleserve profile` with power limits of a fake GPU, run by test_power_limit.py under the fake
NVML library. The engine is real and computes on the CPU, which stands in for the GPU's cores; the
meter, the limits and the command are as on a GPU."""

import dataclasses
import json
import sys

import pytest
import yaml
from fake_nvml import uuid_of

from serve_app.actuators import limit_record
from serve_app.actuators.limit_record import Found, LimitRecord, RecordFile
from serve_app.cli.main import main
from serve_app.meters import EstimateSettings
from serve_app.profiler import host, runner
from serve_app.profiler.samples import unlimited
from serve_app.profiler.shapes import shape_of
from serve_app.profiler.store import load_samples
from serve_app.profiler.torch_settings import TorchEngineSettings, open_torch_engine


class OnCpu(TorchEngineSettings):
    """What the engine itself goes by."""

    on_cpu = True


def open_on_cpu(settings):
    names = [field.name for field in dataclasses.fields(settings)]
    return open_torch_engine(OnCpu(**{name: getattr(settings, name) for name in names}))


SWEEP = "--engine torch --device cpu --max-num-seqs 4 --max-model-len 256 --repeats 1"
LIMITS = ("--power-limits-watts", "300,400,500", "--allow-setting-power-limits")


@pytest.fixture
def state_file(monkeypatch, tmp_path):
    path = tmp_path / "run" / "limits.json"
    monkeypatch.setattr(limit_record, "STATE_FILE", path)
    return path


@pytest.fixture
def profile(fake, state_file, monkeypatch, tmp_path, capsys):
    """The command on one fake GPU that is busy all the time, with the engine taken for a GPU's."""
    pytest.importorskip("torch")
    fake.state.virtual_ns, fake.state.ndev = 0, 1
    fake.state.dev[0].util = 60
    monkeypatch.setattr(TorchEngineSettings, "on_cpu", False)
    monkeypatch.setattr(runner, "open_torch_engine", open_on_cpu)

    def call(*options):
        words = ["profile", "tiny", "--out", tmp_path / "tiny.yaml", *SWEEP.split(), *options]
        monkeypatch.setattr(sys, "argv", ["jouleserve", *map(str, words), "--allow-disturbed"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    return call


def test_limits_are_measured_after_the_sweep_and_put_back(fake, profile, state_file, tmp_path):
    code, output = profile("--duration-budget-s", 25, *LIMITS)
    assert code in {0, 1}, output.err  # 1: measured beside other work, so not trusted
    samples = load_samples(tmp_path / "tiny.samples")
    limited = samples[len(unlimited(samples)) :]
    assert {s.power_limit_watts for s in limited} > {700.0}
    assert limited[0].power_limit_watts == limited[-1].power_limit_watts == 700.0
    assert all(s.power_limit_watts is None for s in samples[: -len(limited)])
    assert "runs for the power limits" in output.err
    # A CPU does not slow down with the GPU's limit, and the fit says so instead of making it up.
    assert "power limits: no response is fitted" in output.out
    assert yaml.safe_load((tmp_path / "tiny.yaml").read_text())["power"]["cap_response"] is None
    manifest = json.loads((tmp_path / "tiny.samples" / "manifest.json").read_text())
    assert manifest["power_limits"] == {"reference_watts": 700.0, "watts": [300.0, 400.0, 500.0]}
    assert manifest["gpus"]["devices"][0]["power_limit_watts"] == 700.0
    assert manifest["gpus"]["driver"]["driver"] == "580.159.04"
    assert fake.state.dev[0].limit_mw == 700_000
    assert fake.state.dev[0].n_set_limit > 2
    assert limit_record.read_record(state_file) is None


def test_a_limit_out_of_range_is_refused_before_the_engine_starts(fake, profile, tmp_path):
    code, output = profile("--power-limits-watts", "100,300,400", LIMITS[-1])
    assert code == 2
    assert "power limit 100 W" in output.err
    assert "starting" not in output.err
    assert fake.state.dev[0].limit_mw == 700_000
    assert not (tmp_path / "tiny.samples").exists()


def test_without_leave_no_limit_is_touched(fake, profile):
    code, output = profile("--power-limits-watts", "300,400,500")
    assert (code, fake.state.dev[0].n_set_limit) == (2, 0)
    assert "--allow-setting-power-limits" in output.err


def test_limits_that_a_killed_run_left_are_not_taken_for_the_machines_own(profile, state_file):
    file = RecordFile(state_file)
    file.write(LimitRecord(gpus={"GPU-1": Found(watts=700.0, asked_watts=(300.0,))}))
    file.close()
    code, output = profile()
    assert code == 2
    assert "has not put them back" in output.err


def test_gpus_that_the_engine_does_not_use_are_neither_metered_nor_limited(fake, monkeypatch):
    fake.state.virtual_ns = 0
    engine = TorchEngineSettings(name="tiny", shape=shape_of("tiny"), device="cpu")
    monkeypatch.setattr(TorchEngineSettings, "on_cpu", False)
    with host.open_meter(engine, EstimateSettings()) as meter:
        assert host.gpus_of(meter) == [uuid_of(0)]
        (facts,) = host.gpu_facts(host.gpus_of(meter))["devices"]
        assert facts["power_limit_watts"] == 700.0


def test_fewer_gpus_than_the_engine_needs_are_refused(fake, profile, monkeypatch):
    monkeypatch.setattr(TorchEngineSettings, "num_gpus", 4)
    code, output = profile()
    assert code == 2
    assert "the engine uses 4 GPUs; in sight: 1" in output.err
