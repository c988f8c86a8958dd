"""What `jouleserve serve` finds out before it starts anything."""

import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from policies.core.errors import ConfigError
from serve_app.launch import Running, read_deployment, require_free_port

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path, text):
    path = tmp_path / "serve.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_a_plain_ray_file_is_read_as_it_is(tmp_path):
    deployment = read_deployment(
        write(
            tmp_path,
            """
            http_options: {host: 127.0.0.1, port: 9001}
            applications:
            - import_path: serve_app.app:build_openai_app
              args:
                llm_configs:
                - model_loading_config: {model_id: a, model_source: b/c}
            """,
        )
    )
    assert (deployment.port, deployment.models, deployment.sources) == (9001, ("a",), ("b/c",))


def test_the_keys_of_a_service_are_read_before_it_starts_and_its_certificate_is_known(tmp_path):
    keys = tmp_path / "keys.yaml"
    text = f"""
        http_options: {{host: 0.0.0.0, port: 9001, ssl_keyfile: k.pem, ssl_certfile: c.pem}}
        applications: [{{args: {{energy: {{security: {{api_keys_file: {keys}}}}}}}}}]
        """
    with pytest.raises(ConfigError, match=f"{keys}: No such file"):
        read_deployment(write(tmp_path, text))
    keys.write_text("[]")
    deployment = read_deployment(write(tmp_path, text))
    assert deployment.url == "https://127.0.0.1:9001"
    assert deployment.certificate == Path("c.pem")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("applications: []", "applications: expected a list"),
        ("- 1", "applications: expected a list"),
        (
            "applications: [{args: {energy: {slo: {ttft_mss: 1}}}}]",
            r"serve.yaml: energy.slo.ttft_mss: unknown key \(allowed: ttft_ms",
        ),
        ("applications: [{args: {energy: {profile: nope}}}]", "energy.profile: no file 'nope'"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_starts(tmp_path, text, line):
    with pytest.raises(ConfigError, match=line):
        read_deployment(write(tmp_path, text))


def test_a_busy_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path = write(tmp_path, f"http_options: {{port: {port}}}\napplications: [{{args: {{}}}}]")
        with pytest.raises(ConfigError, match=f"port: {port} is in use"):
            require_free_port(read_deployment(path))


def test_the_command_says_it_in_one_line(tmp_path):
    path = write(tmp_path, "applications: [{args: {energy: {slo: {ttft_mss: 1}}}}]")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.cli.main", "serve", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "energy.slo.ttft_mss: unknown key (allowed: ttft_ms, tpot_ms, percentile)" in line


@pytest.mark.slow
def test_a_run_that_will_not_stop_is_killed_with_its_children(tmp_path, monkeypatch):
    """`serve` replaced by a script at the lowest seam: it ignores SIGINT and has a child."""
    from serve_app import launch

    (tmp_path / "python").symlink_to(sys.executable)
    script = tmp_path / "serve"
    script.write_text(
        f"#!{sys.executable}\n"
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('up', flush=True); time.sleep(60)\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(launch, "_STOP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(launch, "_LEFT_TIMEOUT_S", 0.5)
    deployment = read_deployment(write(tmp_path, "applications: [{args: {}}]"))
    running = launch.Running(deployment, tmp_path / "log")
    until = time.monotonic() + 10
    while "up" not in (tmp_path / "log").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    family = launch._family(running._process.pid)
    assert len(family) == 2
    running.stop()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            (
                "(ServeController pid=7) ERROR 12:00 -- Deploying app 'llm' failed with exception:\n"
                "(ServeController pid=7) application args: energy.slo.ttft_mss: unknown key\n"
                "(raylet) more\n"
            ),
            "application args: energy.slo.ttft_mss: unknown key",
        ),
        (
            (
                "(ServeController pid=7) ERROR 12:00 -- Deploying app 'llm' failed with exception:\n"
                "(ServeController pid=7) Traceback (most recent call last):\n"
                "(ServeController pid=7) ImportError: no such module\n"
            ),
            (
                "(ServeController pid=7) Traceback (most recent call last):\n"
                "(ServeController pid=7) ImportError: no such module"
            ),
        ),
    ],
)
def test_what_serve_says_of_an_application_that_it_gave_up(tmp_path, log, told):
    running = Running.__new__(Running)
    running.log_path = tmp_path / "serve.log"
    running.log_path.write_text("all is well\n")
    assert not running._failed()
    running.log_path.write_text(log)
    assert running._failed()
    assert running.last_lines(count=2) == told
