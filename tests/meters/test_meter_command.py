"""`jouleserve meter -- COMMAND` as users run it: a process with real streams and signals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = "import typer; from serve_app.cli.meter import meter; typer.run(meter)"
# The estimate is always there; what else this host has must not change the test.
ARGS = [sys.executable, "-c", RUN, "--backends", "rapl,estimated"]


def run(*args):
    return subprocess.run(
        [*ARGS, *args], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_json_document_and_exit_code():
    burn = "import time, sys\nwhile time.process_time() < 0.5: pass\nprint('from the command')"
    done = run("--json", "--", sys.executable, "-S", "-c", f"{burn}\nsys.exit(7)")
    assert done.returncode == 7
    document = json.loads(done.stdout)
    assert "from the command" in done.stderr
    assert document["exit_code"] == 7
    assert document["command"][-1].endswith("sys.exit(7)")
    assert document["unavailable"]["rapl"]
    (device,) = document["devices"]
    assert (device["id"], device["source"]) == ("cpu:estimated", "estimated")
    cpu_joules = document["joules"] - 1.0 * document["duration_s"]  # less the default idle draw
    assert cpu_joules == pytest.approx(4.0 * 0.5, rel=0.25)
    assert document["average_watts"] == pytest.approx(document["joules"] / document["duration_s"])


def test_table_goes_to_stderr_and_stdout_is_the_commands():
    done = run("--", "printf", "%s", "--json")  # options after -- are the command's
    assert (done.returncode, done.stdout) == (0, "--json")
    assert "estimated" in done.stderr
    assert "unavailable: rapl: " in done.stderr
    assert "duration" in done.stderr


def test_nothing_measurable_is_unavailable_and_null():
    args = [*ARGS[:-1], "rapl"]
    table, document = (
        subprocess.run([*args, *more, "--", "true"], cwd=ROOT, capture_output=True, text=True)
        for more in ([], ["--json"])
    )
    assert table.returncode == document.returncode == 0
    assert "unavailable" in table.stderr
    parsed = json.loads(document.stdout)
    assert (parsed["joules"], parsed["average_watts"]) == (None, None)
    assert parsed["source"] == "unavailable"


@pytest.mark.parametrize(("command", "code"), [(["/no/such/command"], 127), (["/etc/passwd"], 126)])
def test_a_command_that_cannot_start(command, code):
    done = run("--", *command)
    assert done.returncode == code
    assert command[0] in done.stderr


def test_bad_input_is_exit_code_2():
    done = run("--backends", "pyrapl", "--", "true")
    assert done.returncode == 2
    assert "allowed: nvml, rapl, estimated, replay" in done.stderr


def test_sigterm_is_passed_on_and_energy_still_reported():
    process = subprocess.Popen(
        [*ARGS, "--json", "--", "sh", "-c", "echo started >&2; exec sleep 60"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(stdout)["joules"] > 0.0
