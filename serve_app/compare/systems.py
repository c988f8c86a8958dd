"""How each system under comparison is started, asked, switched and stopped.

Stock and ours are two applications of one Ray cluster, so that one start serves both and whatever
disturbs the machine disturbs both; bare vLLM is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from policies.core.errors import EngineError
from serve_app.compare.configs import (
    AppPlan,
    Base,
    bare_arguments,
    bare_environment,
    cluster_config,
)
from serve_app.compare.loopback import fetch, free_port
from serve_app.compare.processes import Child, Command, wait_until

READY_TIMEOUT_S = 900.0
RAY_NICENESS = 15  # Ray's default `worker_niceness`
_SWITCH_TIMEOUT_S = 60.0
_DASHBOARD = re.compile(r"View the dashboard at\D*(http://[\d.]+:\d+)")
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """One thing to load. `app` is its name in the CPU parts; `prepare` is called before a cell."""

    name: str
    url: str
    app: str
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rig:
    """Systems that are up at the same time, and the process trees behind them."""

    systems: tuple[System, ...]
    children: tuple[Child, ...]
    configs: dict[str, Any]


class Cluster:
    """A local Ray cluster that serves some applications; `with` stops it."""

    def __init__(self, base: Base, apps: Sequence[AppPlan], folder: Path) -> None:
        self._base = base
        self._apps = {app.name: app for app in apps}
        self.port = free_port()
        self.config = cluster_config(base, apps, self.port)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        self._scratch = tempfile.TemporaryDirectory(prefix="jouleserve-")
        direct = any(app.direct for app in apps)
        more = direct_environment(self._scratch.name) if direct else {}
        serve = str(Path(sys.executable).parent / "serve")
        self.child = Child(
            Command(
                name="ray",
                # A cluster of its own, also where another one runs on this machine.
                arguments=[serve, "run", "--address", "local", str(file)],
                environment={**_ENVIRONMENT, **more},
                log=folder / "ray.log",
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.stop()
        self._scratch.cleanup()

    def url(self, app: str) -> str:
        """Return the base URL of an application."""
        return f"http://127.0.0.1:{self.port}/{app}"

    def wait_ready(self, say: Say) -> None:
        """Wait for an answer of every application. Raises EngineError."""
        for app in self._apps:
            wait_answer(self.child, self.url(app), self._base.model)
            say(f"{app} answers")

    def set_mode(self, app: str, mode: str) -> None:
        """Switch our policy's mode live (Ray's lightweight update). Raises EngineError."""
        if self._live(app).get("mode") == mode:
            return
        for application in self.config["applications"]:
            if application["name"] == app:
                application["deployments"][0]["user_config"]["mode"] = mode
        url = f"{self._dashboard()}/api/serve/applications/"
        fetch(url, json.dumps(self.config).encode(), method="PUT")
        wait_until(self.child, _SWITCH_TIMEOUT_S, lambda: self._live(app).get("mode") == mode)

    def _live(self, app: str) -> dict[str, Any]:
        """Return the `user_config` of our deployment, once the application runs with it."""
        answer = json.loads(fetch(f"{self._dashboard()}/api/serve/applications/"))
        found = answer["applications"][app]
        if found["status"] != "RUNNING":
            return {}
        for deployment in found["deployments"].values():
            live = deployment["deployment_config"].get("user_config")
            if live:
                return dict(live)
        return {}

    def _dashboard(self) -> str:
        log = self.child.log_path.read_text(encoding="utf-8", errors="replace")
        match = _DASHBOARD.search(re.sub(r"\x1b\[\d+m", "", log))
        if match is None:
            raise EngineError(f"{self.child.log_path}: Ray did not say where its dashboard is")
        return match[1]


def direct_environment(folder: str) -> dict[str, str]:
    """Return Ray's switches for direct streaming; HAProxy with ports and a folder of its own.

    `folder` must be short: Ray puts a node id of 56 characters between it and the name of a socket,
    and a socket's path ends at 107.
    """
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


@contextlib.contextmanager
def closed_loop_rig(base: Base, apps: Sequence[AppPlan], folder: Path, say: Say) -> Iterator[Rig]:
    """Yield bare vLLM and a cluster with the apps `stock` and `ours`, all of them answering."""
    with Cluster(base, apps, folder) as cluster, start_bare(base, folder) as (bare, port):
        yield _ready(base, cluster, (bare, port), say)


def one_replica_each(*, direct: bool, profile: str | None) -> list[AppPlan]:
    """Return stock and ours, as alike as they can be: one replica each."""
    return [
        AppPlan(name="stock", ours=False, direct=direct),
        AppPlan(name="ours", ours=True, mode="off", direct=direct, profile=profile),
    ]


@contextlib.contextmanager
def start_bare(base: Base, folder: Path) -> Iterator[tuple[Child, int]]:
    """Start vLLM's own API server; yields it and its port.

    It gets the priority of Ray's workers, so that what else runs here holds up all alike.
    """
    port = free_port()
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = Command(
        name="bare",
        arguments=[*server, *bare_arguments(base, port)],
        environment={**_ENVIRONMENT, **bare_environment(base)},
        log=folder / "bare.log",
    )
    with Child(command) as child:
        psutil.Process(child.pid).nice(RAY_NICENESS)
        yield child, port


def _ready(base: Base, cluster: Cluster, bare: tuple[Child, int], say: Say) -> Rig:
    child, port = bare
    url = f"http://127.0.0.1:{port}"
    wait_answer(child, url, base.model)
    say("bare vLLM answers")
    cluster.wait_ready(say)
    ours = cluster.url("ours")
    return Rig(
        systems=(
            System(name="bare", url=url, app="bare"),
            System(name="stock", url=cluster.url("stock"), app="stock"),
            System(
                name="ours-off",
                url=ours,
                app="ours",
                prepare=lambda: cluster.set_mode("ours", "off"),
            ),
            System(
                name="ours",
                url=ours,
                app="ours",
                prepare=lambda: cluster.set_mode("ours", "active"),
            ),
        ),
        children=(child, cluster.child),
        configs={"serve": cluster.config, "bare": bare_arguments(base, port)},
    )


def wait_answer(child: Child, url: str, model: str) -> None:
    """Wait until a chat request is answered. Raises EngineError when `child` ends first."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}

    def answered() -> bool:
        try:
            fetch(f"{url}/v1/chat/completions", json.dumps(body).encode())
        except EngineError:
            return False
        return True

    wait_until(child, READY_TIMEOUT_S, answered)
