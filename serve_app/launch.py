"""Runs the whole application on this machine: check, prepare, start, say when it answers, stop
clean.

`serve run` (Ray's own command) does the serving, in a process group of its own, so that Ctrl-C and
every failure end all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from policies.core.errors import ConfigError, EngineError
from serve_app.security.asking import authorization, trusting
from serve_app.security.key_file import read_keys
from serve_app.settings import find_profile, parse_energy, parse_live, read_yaml

QUESTION = "What is the capital of France?"
_READY_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 40.0
_LEFT_TIMEOUT_S = 10.0  # Ray's daemons end a moment after their driver

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What a Serve config file says, as far as launching needs it."""

    path: Path
    host: str
    port: int
    models: tuple[str, ...]
    sources: tuple[str, ...]
    certificate: Path | None = None  # of TLS; None: plain HTTP

    @property
    def url(self) -> str:
        """Where it can be asked on this host."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"{'http' if self.certificate is None else 'https'}://{host}:{self.port}"


@dataclass(slots=True)
class Timings:
    """Seconds spent in each part of a launch, in order."""

    parts: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] = time.monotonic() - started_s


def read_deployment(path: Path) -> Deployment:
    """Check a Serve config file: its `energy:` blocks, profiles and live settings. Raises
    ConfigError that names file, key and choices."""
    data = read_yaml(path)
    applications = data.get("applications") if isinstance(data, dict) else None
    if not isinstance(applications, list) or not applications:
        raise ConfigError(f"{path}: applications: expected a list with at least one application")
    configs: list[Any] = []
    for application in applications:
        arguments = application.get("args") or {}
        if "energy" in arguments:
            energy = parse_energy(arguments["energy"], str(path))
            if energy.profile is not None:
                find_profile(energy.profile)
            if energy.security.api_keys_file is not None:
                read_keys(energy.security.api_keys_file)
            for deployment in application.get("deployments") or []:
                if str(deployment.get("name", "")).startswith("EnergyLLMServer:"):
                    parse_live(deployment.get("user_config") or {}, str(path), energy)
        configs += [c for c in arguments.get("llm_configs") or [] if isinstance(c, dict)]
    loading = [c.get("model_loading_config") or {} for c in configs]
    http = data.get("http_options") or {}
    return Deployment(
        path=path,
        host=str(http.get("host", "127.0.0.1")),
        port=int(http.get("port", 8000)),
        certificate=Path(http["ssl_certfile"]) if http.get("ssl_certfile") else None,
        models=tuple(str(item["model_id"]) for item in loading if "model_id" in item),
        sources=tuple(i["model_source"] for i in loading if isinstance(i.get("model_source"), str)),
    )


def require_free_port(deployment: Deployment) -> None:
    """Raises ConfigError when something listens on the port already."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        host = "127.0.0.1" if deployment.host == "0.0.0.0" else deployment.host
        if probe.connect_ex((host, deployment.port)) == 0:
            raise ConfigError(
                f"{deployment.path}: http_options.port: {deployment.port} is in use on {host}; "
                "stop what listens there or choose another port"
            )


class Running:
    """`serve run` as a child, with its output in a log file."""

    def __init__(self, deployment: Deployment, log_path: Path) -> None:
        self.deployment = deployment
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_COLOR_PREFIX": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            **os.environ,
        }
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "serve"), "run", str(deployment.path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def wait_until_ready(self, say: Say) -> dict[str, Any]:
        """The first answer. Raises EngineError with the log's last lines when serving ends or
        the application is refused first (`serve run` itself goes on then)."""
        started_s = time.monotonic()
        told = ""
        while time.monotonic() - started_s < _READY_TIMEOUT_S:
            if self._process.poll() is not None:
                raise EngineError(f"serving ended before it answered:\n{self.last_lines()}")
            if self._failed():
                raise EngineError(f"serving failed: {self.last_lines()}")
            answer = self._ask()
            if answer is not None:
                return answer
            stage = self._stage()
            if stage != told:
                told = stage
                say(f"{stage} ({time.monotonic() - started_s:.0f} s)")
            time.sleep(0.5)
        raise EngineError(f"no answer after {_READY_TIMEOUT_S:.0f} s:\n{self.last_lines()}")

    def _ask(self) -> dict[str, Any] | None:
        """The answer to one question; None while nobody can answer it yet, {} once those who can
        want another API key than $JOULESERVE_API_KEY."""
        body = {
            "model": self.deployment.models[0],
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": 24,
        }
        request = urllib.request.Request(  # noqa: S310 - http or https
            f"{self.deployment.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **authorization()},
        )
        context = trusting(self.deployment.certificate)
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as response:  # noqa: S310
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            return {} if error.code in {401, 403} and self._deployed() else None
        except (urllib.error.URLError, OSError, ValueError):
            return None

    def _stage(self) -> str:
        """What the log says is going on, in a few words."""
        with contextlib.suppress(OSError):
            text = self.log_path.read_text(errors="replace")
            for mark, stage in _STAGES:
                if mark in text:
                    return stage
        return "starting Ray"

    def _deployed(self) -> bool:
        """Whether Serve says that all replicas are there."""
        return _DEPLOYED in self.log_path.read_text(errors="replace")

    def _failed(self) -> bool:
        """Whether Serve has given the application up."""
        with contextlib.suppress(OSError):
            text = self.log_path.read_text(errors="replace")
            return any(mark in text for mark in _GIVEN_UP)
        return False

    def last_lines(self, count: int = 15) -> str:
        """The end of the log; if our builder refused the arguments, its one line alone."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        for mark, following in reversed(list(itertools.pairwise(lines))):
            fault = _PREFIX.sub("", following)
            if _REFUSED in mark and not fault.startswith("Traceback") and "ray::" not in fault:
                return fault.strip()
        return "\n".join(lines[-count:])

    def wait(self) -> int:
        """Until serving ends by itself."""
        return self._process.wait()

    def stop(self) -> None:
        """End everything: first as Ctrl-C would, then whatever is left of our own processes."""
        family = _family(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        _, left = psutil.wait_procs(family, timeout=_LEFT_TIMEOUT_S)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10.0)


_DEPLOYED = "' is ready"
_REFUSED = "' failed with exception:"
_PREFIX = re.compile(r"^\(\S+ pid=\d+\) ")
_GIVEN_UP = (_REFUSED, "Failed to update the deployments")
_STAGES = (
    ("Started vLLM engine", "warming up the engine"),
    ("Loading weights took", "preparing the KV cache"),
    ("Initializing a V1 LLM engine", "loading the model"),
    ("Deployment Options", "starting replicas"),
    ("Connecting to existing Ray cluster", "building the application"),
    ("Started a local Ray instance", "building the application"),
)


def _family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants, Ray's daemons included (they are its children)."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
