"""A cluster's life around a stand-in for Ray's `serve`: start, ask, switch live, stop."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml

from policies.core.errors import EngineError
from serve_app.compare import systems
from serve_app.compare.configs import AppPlan, Base
from serve_app.compare.systems import Cluster, closed_loop_rig, direct_environment, one_replica_each


@pytest.fixture
def base(tmp_path):
    config = {"model_loading_config": {"model_id": "m", "model_source": str(tmp_path)}}
    return Base(
        path=tmp_path, model="m", source=str(tmp_path), llm_config=config, ingress={}, energy={}
    )


@pytest.fixture
def dashboard():
    """Ray's REST API as far as it is used: a PUT takes effect after two more GETs."""
    state = {"puts": [], "lag": 0, "config": None}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state["lag"] = max(0, state["lag"] - 1)
            apps = {}
            for app in (state["config"] or {}).get("applications", []):
                live = [d.get("user_config") for d in app.get("deployments", [])]
                apps[app["name"]] = {
                    "status": "DEPLOYING" if state["lag"] else "RUNNING",
                    "deployments": {
                        str(n): {"deployment_config": {"user_config": u}}
                        for n, u in enumerate([None, *live])
                    },
                }
            self.reply(json.dumps({"applications": apps}).encode())

        def do_PUT(self):
            state["config"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["puts"].append(state["config"])
            state["lag"] = 2
            self.reply(b"")

        def reply(self, body):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def ray(tmp_path, monkeypatch, dashboard):
    """Puts a `serve` beside `sys.executable` that says where the dashboard is, as Ray does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "serve"

    def behave(then="sleep 60"):
        url = f"\\033[1m\\033[32m{dashboard['url']} \\033[39m"
        script.write_text(f'#!/bin/bash\nprintf "View the dashboard at {url}\\n"\n{then}\n')
        script.chmod(0o755)

    behave()
    monkeypatch.setattr(systems.sys, "executable", str(folder / "python"))
    return behave


def plans():
    return one_replica_each(direct=False, profile=None)


def test_the_mode_is_switched_live_and_only_when_it_differs(base, tmp_path, ray, dashboard):
    with Cluster(base, plans(), tmp_path / "run") as cluster:
        systems.wait_until(cluster.child, 10, lambda: "dashboard" in cluster.child.last_lines())
        dashboard["config"] = json.loads(json.dumps(cluster.config))
        cluster.set_mode("ours", "off")
        assert dashboard["puts"] == []
        cluster.set_mode("ours", "active")
        assert dashboard["lag"] == 0, "it waits until the update is through"
        cluster.set_mode("ours", "active")
        (put,) = dashboard["puts"]
    changed = {app["name"]: app for app in put["applications"]}
    written = yaml.safe_load((tmp_path / "run" / "serve.yaml").read_text())
    before = {app["name"]: app for app in written["applications"]}
    assert changed["stock"] == before["stock"]
    assert changed["ours"]["deployments"][0]["user_config"] == {"mode": "active"}
    assert changed["ours"]["args"] == before["ours"]["args"]


def test_a_cluster_that_dies_is_told_by_its_log(base, tmp_path, ray):
    ray(then="echo no such model; exit 7")
    with (
        pytest.raises(EngineError, match=r"(?s)status 7.*no such model"),
        Cluster(base, plans(), tmp_path / "run") as cluster,
    ):
        cluster.wait_ready(str)


def test_when_one_system_fails_all_are_stopped(base, tmp_path, ray, monkeypatch):
    """Bare vLLM cannot start here (its interpreter is not there): the cluster must not stay."""
    started = []
    real = systems.Child

    def child(command):
        started.append(real(command))
        return started[-1]

    monkeypatch.setattr(systems, "Child", child)
    with (
        pytest.raises(FileNotFoundError),
        closed_loop_rig(base, plans(), tmp_path / "run", str),
    ):
        pass
    (cluster,) = started
    assert not psutil.pid_exists(cluster.pid)


def test_bare_vllm_has_the_priority_of_rays_workers(base, tmp_path, ray):
    python = Path(systems.sys.executable)
    python.write_text("#!/bin/bash\nsleep 60\n")
    python.chmod(0o755)
    with systems.start_bare(base, tmp_path / "run") as (child, _):
        assert psutil.Process(child.pid).nice() == 15
    assert not psutil.pid_exists(child.pid)


def test_direct_streaming_sockets_fit_into_a_socket_address(base, tmp_path, ray):
    seen = tmp_path / "seen"
    ray(then=f"env > {seen}.part; mv {seen}.part {seen}; sleep 60")
    direct = [AppPlan(name="ours", ours=True, direct=True)]
    with Cluster(base, direct, tmp_path / "run") as cluster:
        systems.wait_until(cluster.child, 10, seen.exists)
    environment = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert environment["RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"] == "1"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["RAY_AUTH_MODE"] == "disabled"
    folder, _, name = environment["RAY_SERVE_HAPROXY_SOCKET_PATH"].rpartition("/")
    assert len(f"{folder}/{'n' * 56}/{name}") < 108
    ports = {v for k, v in direct_environment("/x").items() if k.endswith("_PORT")}
    assert len(ports) == 2
