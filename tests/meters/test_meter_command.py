"""`jouleserve meter -- COMMAND` as users run it: a process with real streams and signals."""

import json
import signal
import subprocess
import sys
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
    done = run("--backends", "nonsense", "--", "true")
    assert done.returncode == 2
    assert "allowed: nvml, rapl, pyrapl, estimated, replay" in done.stderr


def started(code, *before):
    """The meter around a shell that has said that it runs."""
    process = subprocess.Popen(
        [*before, *ARGS, "--json", "--", "bash", "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "started\n"
    return process


def finished(process):
    stdout, stderr = process.communicate("go on\n", timeout=30)
    return process.returncode, json.loads(stdout), stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_energy_still_reported(number):
    process = started("echo started >&2; exec sleep 60")
    process.send_signal(number)
    code, document, _ = finished(process)
    assert code == document["exit_code"] == 128 + number
    assert document["joules"] > 0.0


def test_ctrl_c_is_left_to_the_command(tmp_path):
    """The terminal sends it to both; here the meter alone gets it, and must not end by it."""
    process = started("echo started >&2; sleep 0.5; exit 3")
    process.send_signal(signal.SIGINT)
    code, document, _ = finished(process)
    assert (code, document["exit_code"]) == (3, 3)


def test_a_signal_that_was_ignored_stays_ignored_for_the_command():
    ignored = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignored += "os.execvp(sys.argv[1], sys.argv[1:])"
    process = started(
        # It waits: what comes with the first line is lost to `communicate`.
        "echo started >&2; read; kill -HUP $$; echo survived >&2",
        sys.executable,
        "-c",
        ignored,
    )
    code, _, stderr = finished(process)
    assert (code, stderr) == (0, "survived\n")


def test_children_of_the_command_count(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    shell = f"{sys.executable} -S -c '{burn}' & {sys.executable} -S -c '{burn}'; wait"
    done = run("--json", "--", "bash", "-c", shell)
    document = json.loads(done.stdout)
    cpu_joules = document["joules"] - 1.0 * document["duration_s"]
    assert cpu_joules == pytest.approx(4.0 * 0.8, rel=0.25)


def test_the_document_says_which_kinds_are_missing_and_what_a_sensor_did():
    document = json.loads(run("--json", "--", "true").stdout)
    assert set(document["missing"]) == {"gpu", "dram"}
    assert document["missing"]["dram"].startswith("rapl: ")
    assert document["joules_by_kind"] == {"cpu": document["joules"]}
    assert document["caveats"] == {}
    assert document["devices"][0]["anomaly_counts"] == {}
    assert document["coverage_ratio"] == 1.0
