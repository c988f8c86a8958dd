"""The command line as a user meets it: help, imports, exit codes, one line per error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from bench_server import Server, running, streaming

from serve_app.cli import main

HEAVY = ("ray", "vllm", "torch", "transformers", "scipy")


def imported_by(*arguments):
    """The top-level modules that a command imports, and its CPU seconds."""
    script = (
        "import json, sys, time\n"
        f"sys.argv = ['jouleserve', *{arguments!r}]\n"
        "from serve_app.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "names = sorted({name.split('.')[0] for name in sys.modules})\n"
        "print('\\n' + json.dumps([code or 0, names, time.process_time()]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_help_lists_every_command_and_imports_none(jouleserve):
    code, modules, cpu_s = imported_by("--help")
    assert code == 0
    assert not set(HEAVY) & set(modules)
    assert not {"aiohttp", "numpy"} & set(modules)
    assert cpu_s < 0.8
    listed = jouleserve("--help").stdout
    assert all(name in listed for name in main.COMMANDS)


@pytest.mark.parametrize("command", sorted(main.COMMANDS))
def test_every_command_has_help_and_the_line_of_the_list_is_its_own(jouleserve, command):
    result = jouleserve(command, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout.lower()


@pytest.fixture
def server():
    energy = {"joules": 1.5, "source": "estimated"}
    with running(Server(streaming(energy=energy))) as server:
        yield server


@pytest.mark.slow
def test_bench_does_not_import_the_engines(server):
    code, modules, _ = imported_by(
        "bench", "--url", server.url, "--rate=20", "--duration=0.5", "--json"
    )
    assert code == 0
    assert not set(HEAVY) & set(modules)


def test_bench_prints_one_json_document_and_saves_the_requests(jouleserve, server, tmp_path):
    saved = tmp_path / "requests.jsonl"
    result = jouleserve(
        *("bench", "--url", server.url, "--rate", "20", "--duration", "1", "--max-requests", "9"),
        *("--output-tokens", "3", "--json", "--save-requests", str(saved)),
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["requests"]["completed"] == 9
    assert document["energy"]["joules_per_request"] == 1.5
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert {line["output_tokens"] for line in lines} == {3}
    assert "note: no tokenizer for served" in result.stderr


def test_bench_prints_a_table_and_a_failed_request_is_a_finding(jouleserve, server):
    server.answer = None  # every request fails with a 500
    result = jouleserve("bench", "--url", server.url, "--rate", "20", "--duration", "0.5")
    assert result.returncode == 1, result.stderr
    assert "failed: http_500" in result.stdout
    assert "unavailable" in result.stdout


def test_ctrl_c_ends_a_bench_with_its_report(server):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "serve_app.cli.main", "bench", "--url", server.url),
            *("--rate", "20", "--duration", "60", "--json"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 20
    while len(server.bodies) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    document = json.loads(out)
    assert process.returncode == 0
    assert document["run"]["interrupted"] is True
    assert 3 <= document["requests"]["completed"] < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--burst", "x"], "--burst 'x': expected BASE:PEAK:PERIOD"),
        (["bench", "--endpoint", "embeddings"], "expected chat or completions"),
        (["bench", "--trace", "/no/such"], "/no/such: No such file"),
        (["bench", "--save-requests", "/no/such/x"], "--save-requests /no/such/x"),
        (["bench", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["model", "prepare", "/no/such"], "no such folder; known names: smollm2-135m-instruct"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(jouleserve, arguments, message):
    result = jouleserve(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("jouleserve: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["no-such-command"], ["bench", "--no-such-option"]])
def test_a_slip_on_the_command_line_is_exit_status_2(jouleserve, arguments):
    result = jouleserve(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert arguments[-1] in result.stderr


def test_an_interrupt_outside_of_a_bench_is_exit_status_130(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "jouleserve: interrupted\n"


def test_model_prepare_passes_ids_through(jouleserve):
    result = jouleserve("model", "prepare", "org/some-model", "--json")
    assert result.returncode == 0
    document = json.loads(result.stdout)
    assert (document["path"], document["already_prepared"]) == ("org/some-model", True)


def test_version_is_the_distributions(jouleserve):
    assert jouleserve("--version").stdout.strip() == version("jouleserve")
