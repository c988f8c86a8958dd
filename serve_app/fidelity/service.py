"""The default deployment under measurement: its replica count set from outside, its log read.

One application of `serve_config.yaml` in a Ray cluster of its own. Nothing decides about it: the
mode is off, and Ray's own autoscaling is bounded to exactly the replicas that are asked for. The
bounds stand under `deployments:` from the start: there a change is lightweight, while bounds that
appear later would be a new version of the application, and restart it.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml

from policies.core.errors import EngineError
from serve_app.compare.configs import AppPlan, Base, cluster_config
from serve_app.compare.loopback import fetch, free_port
from serve_app.compare.processes import Child, Command
from serve_app.compare.systems import Say, wait_answer

APP = "ours"
_DEPLOYMENT = "EnergyLLMServer"
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})")
_DASHBOARD = re.compile(r"View the dashboard at\D*(http://[\d.]+:\d+)")
_EVENTS = {
    "asked": re.compile(rf"Adding \d+ replicas? to Deployment\(name='{_DEPLOYMENT}"),
    "engine_up": re.compile(rf" {APP}_{_DEPLOYMENT}\S* (?P<id>\w+) -- Started vLLM engine"),
    "stopping": re.compile(rf"Removing \d+ replicas? from Deployment\(name='{_DEPLOYMENT}"),
    "stopped": re.compile(rf"Replica\(id='(?P<id>\w+)', deployment='{_DEPLOYMENT}.*is stopped"),
}
_SIZES = {
    "max_num_batched_tokens": re.compile(r"max_num_batched_tokens=(\d+)"),
    "kv_capacity_tokens": re.compile(r"KV cache size: ([\d,]+) tokens"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What Serve or a replica logs. `time_s`: UNIX time; `kind`: asked, engine_up, stopping or
    stopped; `replica` None: the line names none."""

    time_s: float
    kind: str
    replica: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSizes:
    """What bounds a step of the engine: tokens of one step, tokens of the KV cache, sequences."""

    max_num_batched_tokens: int
    kv_capacity_tokens: int
    max_num_seqs: int


class Fleet:
    """The deployment, running with one replica. Use it in `with`."""

    def __init__(self, base: Base, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.requests = folder / "requests"
        self.model = base.model
        self._port = free_port()
        self._config = fleet_config(base, self.requests, self._port)
        engine = base.llm_config.get("engine_kwargs") or {}
        self._events: list[Event] = []
        self._read_bytes, self._reading = 0, threading.Lock()
        self._max_num_seqs = int(engine.get("max_num_seqs", 0))
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._config, sort_keys=False), encoding="utf-8")
        serve = str(Path(sys.executable).parent / "serve")
        self.child = Child(
            Command(
                name="ray",
                # A cluster of its own, also where another one runs on this machine.
                arguments=[serve, "run", "--address", "local", str(file)],
                environment=_ENVIRONMENT,
                log=folder / "ray.log",
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.stop()

    @property
    def url(self) -> str:
        """Base URL of the application."""
        return f"http://127.0.0.1:{self._port}/{APP}"

    def wait_ready(self, say: Say) -> None:
        """Wait for an answer. Raises EngineError."""
        wait_answer(self.child, self.url, self.model)
        say("the service answers")

    def set_replicas(self, count: int) -> None:
        """Ask for exactly so many. Returns at once."""
        self._config = with_replicas(self._config, count)
        url = f"{self._dashboard()}/api/serve/applications/"
        fetch(url, json.dumps(self._config).encode(), method="PUT")

    def wait_started(self, count: int, timeout_s: float, period_s: float = 0.25) -> float:
        """Wait for the replica that was just asked for, the `count`-th to run; returns the UNIX
        time of the first answer that says so.

        Asking costs CPU: before the new replica's log says that its engine is up nobody is asked.
        EngineError after `timeout_s`.
        """
        up = sum(event.kind == "engine_up" for event in self.events)
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            self.child.require_alive()
            seen = sum(event.kind == "engine_up" for event in self.events)
            if seen > up and self._running() == count:
                return time.time()
            time.sleep(period_s)
        raise EngineError(f"not {count} replicas after {timeout_s:.0f} s")

    def wait_stopped(self, timeout_s: float, period_s: float = 0.25) -> None:
        """Wait until every replica that was given up is gone. EngineError after `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            kinds = [event.kind for event in self.events]
            if kinds.count("stopped") >= kinds.count("stopping") > 0:
                return
            time.sleep(period_s)
        raise EngineError(f"a replica did not stop within {timeout_s:.0f} s")

    @property
    def events(self) -> list[Event]:
        """All so far, in order. Only what is new in the log is read."""
        with self._reading, self.child.log_path.open("rb") as log:
            log.seek(self._read_bytes)
            new = log.read()
            whole = new.rfind(b"\n") + 1
            self._read_bytes += whole
            text = _COLOUR.sub("", new[:whole].decode("utf-8", "replace"))
            self._events += events_in(text)
            return list(self._events)

    @property
    def sizes(self) -> EngineSizes:
        """What the engine says of itself. EngineError where it does not."""
        return replace(sizes_in(self._log()), max_num_seqs=self._max_num_seqs)

    def meter(self) -> dict[str, Any]:
        """The application's books now."""
        found: dict[str, Any] = json.loads(fetch(f"{self.url}/jouleserve/energy"))
        return found

    def _running(self) -> int:
        answer = json.loads(fetch(f"{self._dashboard()}/api/serve/applications/"))
        deployments = answer["applications"][APP]["deployments"]
        return sum(
            replica["state"] == "RUNNING"
            for name, deployment in deployments.items()
            if name.startswith(_DEPLOYMENT)
            for replica in deployment["replicas"]
        )

    def _dashboard(self) -> str:
        match = _DASHBOARD.search(self._log())
        if match is None:
            raise EngineError(f"{self.child.log_path}: Ray did not say where its dashboard is")
        return match[1]

    def _log(self) -> str:
        text = self.child.log_path.read_text(encoding="utf-8", errors="replace")
        return _COLOUR.sub("", text)


def ask(url: str, model: str, output_tokens: int) -> None:
    """One request of exactly so many output tokens. Raises EngineError."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    fetch(f"{url}/v1/chat/completions", json.dumps(body).encode())


def fleet_config(base: Base, requests: Path, port: int) -> dict[str, Any]:
    """The Serve config: one replica, mode off, a request log of its own."""
    energy = {**base.energy, "request_log": {"folder": str(requests)}}
    plan = AppPlan(name=APP, ours=True, mode="off")
    return with_replicas(cluster_config(replace(base, energy=energy), [plan], port), 1)


def with_replicas(config: dict[str, Any], count: int) -> dict[str, Any]:
    """A copy of the config that asks for exactly so many replicas."""
    found = copy.deepcopy(config)
    found["applications"][0]["deployments"][0]["autoscaling_config"] = {
        "min_replicas": count,
        "max_replicas": count,
    }
    return found


def events_in(log: str) -> list[Event]:
    """The events in log lines; their times are local."""
    found = []
    for line in log.splitlines():
        if _DEPLOYMENT not in line:
            continue
        for kind, pattern in _EVENTS.items():
            told, stamp = pattern.search(line), _STAMP.search(line)
            if told and stamp:
                when = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S,%f").astimezone(UTC)
                name = told.groupdict().get("id")
                found.append(Event(time_s=when.timestamp(), kind=kind, replica=name))
    return found


def sizes_in(log: str) -> EngineSizes:
    """The sizes in vLLM's log lines; `max_num_seqs` 0. EngineError where one is missing."""
    found = {"max_num_seqs": 0}
    for name, pattern in _SIZES.items():
        told = pattern.search(log)
        if told is None:
            raise EngineError(f"the engine's log does not tell its {name}")
        found[name] = int(told[1].replace(",", ""))
    return EngineSizes(**found)
