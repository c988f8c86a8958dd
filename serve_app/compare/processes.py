"""Child process trees: started apart, stopped whole; which part of a serving stack each one is.

Ray and vLLM write what a process does into its title; a process without a known title belongs to
its nearest titled ancestor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from policies.core.errors import EngineError

_STOP_TIMEOUT_S = 45.0
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.05
_REPLICA = "ray::ServeReplica:"
_FRONTS = ("OpenAiIngress", "EnergyIngress", "LLMRouter")  # deployments that hold no engine
_ENGINES = ("VLLM::EngineCore", "VLLM::Worker")
_TITLES = {  # prefix of a title → its part
    "ray::ServeController": "ray/controller",
    "ray::ProxyActor": "ray/proxy",
    "ray::HAProxyManager": "ray/proxy",
    "haproxy": "ray/proxy",
    "ray::Ledger": "ours/ledger",
}
RAY_OTHER = "ray/other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What to start. `environment` goes on top of this process's own."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path


class Child:
    """A command running in a session of its own. Used as a context manager it is always stopped."""

    def __init__(self, command: Command) -> None:
        self.name = command.name
        self.log_path = command.log
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                list(command.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.environment},
                start_new_session=True,
            )
        self._known: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The pid of the command itself."""
        return self._process.pid

    def require_alive(self) -> None:
        """Raise EngineError, with the last lines of the log, once the command has ended."""
        code = self._process.poll()
        if code is not None:
            raise EngineError(f"{self.name} ended with status {code}:\n{self.last_lines()}")

    def family(self) -> list[psutil.Process]:
        """Return the living processes of the tree, parents before children."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.pid)
            found = [root, *root.children(recursive=True)]
            self._known.update(found)
            return found
        return []

    def last_lines(self, count: int = 15) -> str:
        """Return the end of the log."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def stop(self) -> None:
        """End the tree: as Ctrl-C would, then whatever of it is left. Safe to call twice.

        A second Ctrl-C meanwhile is not heard: it would leave the rest running.
        """
        with _undisturbed():
            self._stop()

    def _stop(self) -> None:
        self.family()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_STOP_TIMEOUT_S)
        self.family()
        # Processes that were in the tree at any look, also those adopted by init since.
        for process in self._known:
            with contextlib.suppress(psutil.Error):
                process.kill()
        end_s = time.monotonic() + _KILL_TIMEOUT_S
        while not all(map(ended, self._known)) and time.monotonic() < end_s:
            time.sleep(_POLL_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_KILL_TIMEOUT_S)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM for the block; only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(process: psutil.Process) -> bool:
    """Return whether a process runs no more; one that only waits to be reaped does not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A process, the part it belongs to (`app/role`), and its CPU seconds so far.

    `title` is empty for one that has ended and is not waited for yet. `first`: its parent belongs
    to another part; a fork has the title of what it was forked from, but is not first.
    """

    process: psutil.Process
    title: str
    part: str
    first: bool
    cpu_s: float


def parts_of(child: Child) -> list[Part]:
    """Return every living process of a tree with its part.

    Parts: `<app>/server` (the replica or API server), `<app>/engine`, `<app>/ingress`,
    `ours/ledger`, `ray/proxy`, `ray/controller`, `ray/other`. The tree of a bare server is the app
    `child.name`.
    """
    parts: dict[int, str] = {}
    found = []
    for process in child.family():
        try:
            with process.oneshot():
                title = " ".join(process.cmdline())
                parent = parts.get(process.ppid())
                times = process.cpu_times()
        except psutil.Error:
            continue
        part = part_of(title, parent) if parent else _root_part(child.name)
        parts[process.pid] = part
        cpu_s = times.user + times.system
        first = parent != part
        found.append(Part(process=process, title=title, part=part, first=first, cpu_s=cpu_s))
    return found


def _root_part(name: str) -> str:
    return RAY_OTHER if name == "ray" else f"{name}/server"


def part_of(title: str, parent: str) -> str:
    """Return the part of a process from its title and its parent's part."""
    if title.startswith(_REPLICA):
        application, _, deployment = title.removeprefix(_REPLICA).partition(":")
        role = "ingress" if deployment.startswith(_FRONTS) else "server"
        return f"{application}/{role}"
    for prefix, part in _TITLES.items():
        if title.startswith(prefix) or Path(title.partition(" ")[0]).name == prefix:
            return part
    if title.startswith(_ENGINES):
        return f"{parent.partition('/')[0]}/engine"
    return parent


class CpuWatch:
    """CPU seconds by part between two looks. A process that ends in between keeps what was last
    seen of it; one that starts counts from its start."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._before = self._look()

    def spent(self) -> dict[str, float]:
        """Return CPU seconds by part since the watch was made."""
        spent: dict[str, float] = {}
        for process, part in self._look().items():
            before = self._before.get(process)
            used_s = part.cpu_s - (before.cpu_s if before else 0.0)
            spent[part.part] = spent.get(part.part, 0.0) + used_s
        return spent

    def _look(self) -> dict[psutil.Process, Part]:
        return {p.process: p for child in self._children for p in parts_of(child)}


def replica_processes(child: Child, app: str) -> Iterator[psutil.Process]:
    """Yield the replica actors (roots of server and engine) of one application."""
    for found in parts_of(child):
        asked = found.first and found.part == f"{app}/server"
        if asked and found.title.startswith(_REPLICA):
            yield found.process


def wait_until(child: Child, timeout_s: float, done: Callable[[], bool]) -> None:
    """Wait until `done()` is true. Raises EngineError when the child ends or the time is up."""
    end_s = time.monotonic() + timeout_s
    while not done():
        child.require_alive()
        if time.monotonic() > end_s:
            raise EngineError(f"{child.name}: not ready after {timeout_s:.0f} s")
        time.sleep(0.5)
