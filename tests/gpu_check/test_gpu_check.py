"""Runs fake_gpu_cases.py where the fake NVML library is found as the real one would be."""

import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from under_fake_nvml import run_cases

from policies.core.errors import EngineError
from serve_app.cli.gpu_check import app
from serve_app.gpu_check.load import CommandLoad, TorchLoad, choose_load

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("fake_gpu_cases.py")


@pytest.mark.slow
def test_cases_pass_under_the_fake_library(tmp_path):
    run_cases([CASES], tmp_path)


def test_no_code_of_meters_doctor_and_check_names_a_setter_of_nvml():
    folders = [ROOT / "serve_app" / name for name in ("meters", "doctor", "gpu_check")]
    sources = [path for folder in folders for path in folder.glob("*.py")]
    assert len(sources) > 20
    setter = re.compile(r"nvml\w*(Set|Reset|Clear|Enable|Activate|Create|Destroy)[A-Z]\w*")
    assert not {(p.name, m[0]) for p in sources for m in setter.finditer(p.read_text())}


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA driver")
def test_without_a_gpu_there_is_one_line_and_exit_status_1(tmp_path):
    result = CliRunner().invoke(app, ["--quick", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("jouleserve gpu-check: no GPU to check: ")
    assert "NVIDIA driver" in line


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def becomes(pid, state):
    """Whether a process comes to be in a state, soon."""
    end_s = time.monotonic() + 10.0
    while time.monotonic() < end_s and state_of(pid) != state:
        time.sleep(0.01)
    return state_of(pid) == state


def test_a_command_runs_and_rests_as_told_and_is_ended_at_rest_too(tmp_path):
    load = CommandLoad(f"sh -c 'sleep 1000 & echo $! > {tmp_path}/child; wait'", 0.6)
    load.start()
    child = int((tmp_path / "child").read_text())
    assert becomes(child, "T")
    load.on()
    assert becomes(child, "S")
    load.off()
    assert becomes(child, "T")
    load.close()
    end_s = time.monotonic() + 10.0
    while Path(f"/proc/{child}").exists() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
    with pytest.raises(EngineError, match="status -15"):
        load.check()


def test_torch_without_cuda_is_no_load():
    assert "built without CUDA" in choose_load(None, [], 1.0) or "not installed" in choose_load(
        None, [], 1.0
    )


@pytest.mark.slow
def test_a_torch_load_that_cannot_start_says_why():
    load = TorchLoad(["GPU-none"])
    try:
        with pytest.raises(EngineError, match="did not start: error: .*CUDA"):
            load.start()
    finally:
        load.close()
