"""The agent as a process: options, signals, the loop, what the supervisor is told."""

from __future__ import annotations

import argparse
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError, ConfigError, EnergyServeError, MeterError
from serve_app.actuators.limit_record import STATE_FILE, RecordFile
from serve_app.nvml_library import Nvml
from serve_app.power_agent.audit import AuditLog
from serve_app.power_agent.budget import Budget, parse_budget
from serve_app.power_agent.client import SOCKET
from serve_app.power_agent.connections import MAX_CONNECTIONS, gid_of
from serve_app.power_agent.node import Node, Rules
from serve_app.power_agent.server import Server, listen
from serve_app.power_agent.status import ping, show_status

AUDIT_FILE = Path("/var/log/jouleserve/power-agent.jsonl")
_TURN_S = 0.1
_LOOK_EVERY_S = 1.0
_GIVE_UP_S = 20.0  # putting back at the end; the state file keeps what was not


def parser() -> argparse.ArgumentParser:
    """The options of `jouleserve power-agent`."""
    found = argparse.ArgumentParser(
        prog="jouleserve power-agent",
        description="Lease the power limits of this node's GPUs to JouleServe's replicas, and put "
        "back what was found when a lease ends, lapses, or is orphaned. Runs as root.",
    )
    found.add_argument("--socket", type=Path, default=SOCKET, help="default: %(default)s")
    found.add_argument("--group", help="whose members may lease limits (default: this process's)")
    found.add_argument("--floor-watts", type=_watts, default=0.0, help="of every GPU")
    found.add_argument("--ceiling-watts", type=_watts, default=math.inf, help="of every GPU")
    found.add_argument("--budget-watts", type=_watts, help="the sum of all limits of the node")
    found.add_argument(
        "--budget-file",
        type=Path,
        help="the same, read again when it changes: lines of WATTS or HH:MM-HH:MM WATTS",
    )
    found.add_argument(
        "--min-interval-s", type=_seconds, default=1.0, help="between two writes to one GPU"
    )
    found.add_argument("--state-file", type=Path, default=STATE_FILE, help="default: %(default)s")
    found.add_argument(
        "--audit-file", type=Path, default=AUDIT_FILE, help="'-' = standard error; %(default)s"
    )
    asked = found.add_mutually_exclusive_group()
    asked.add_argument("--status", action="store_true", help="ask the running agent, and exit")
    asked.add_argument("--ping", action="store_true", help="exit 0 if the running agent answers")
    return found


def _watts(text: str) -> float:
    return _finite(text, "watts")


def _seconds(text: str) -> float:
    return _finite(text, "seconds")


def _finite(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit}, 0 or more")
    return value


class BudgetSource:
    """The budget of the options and of the file. A file that is gone or wrong changes nothing: the
    last one that could be read holds, and `tell` says so once."""

    def __init__(
        self, always_watts: float | None, path: Path | None, tell: Callable[..., None]
    ) -> None:
        self._always, self._path, self._tell = always_watts, path, tell
        self._stamp: tuple[int, int] | None = None
        self._budget = Budget()
        self._said: str | None = None

    def load(self) -> None:
        """Read the file if it has changed. ConfigError, OSError."""
        if self._path is None:
            return
        facts = self._path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        if stamp != self._stamp:
            self._budget = parse_budget(self._path.read_text("utf-8"), str(self._path))
            self._stamp = stamp

    def watts(self) -> float | None:
        """The lowest that holds now; None = no budget. Never raises."""
        said = None
        try:
            self.load()
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            said = str(error)
        if said is not None and said != self._said:
            self._tell("budget file", reason=said)
        self._said = said
        found = self._budget.at(datetime.now().astimezone().time())
        known = [watts for watts in (self._always, found) if watts is not None]
        return min(known, default=None)


class Agent:
    """The whole process. Opening it puts back what a killed one left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._stopped = False
        self._rotate = False
        path = None if str(options.audit_file) == "-" else options.audit_file
        self.audit = AuditLog(path, time.monotonic)
        self._nvml = Nvml()
        self._file = RecordFile(options.state_file)
        rules = Rules(
            floor_watts=options.floor_watts,
            ceiling_watts=options.ceiling_watts,
            min_interval_s=options.min_interval_s,
        )
        tell = self.audit.tell
        self._budget = BudgetSource(options.budget_watts, options.budget_file, tell)
        self._budget.load()
        self.node = Node(self._nvml, self._file, _uuids(self._nvml), rules, tell)
        self.node.budget_watts = self._budget.watts()
        self.node.tick(time.monotonic())
        gid = None if options.group is None else gid_of(options.group)
        self._listener = listen(options.socket, gid)
        self._server = Server(self._listener, self.node, self.audit, time.monotonic)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then put everything back. Exit status: 0, or 1 where
        something could not be put back."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reopen)
        self.audit.tell("started", pid=os.getpid())
        notify("READY=1")
        look_s = -math.inf
        while not self._stopped:
            now_s = time.monotonic()
            if now_s >= look_s + _LOOK_EVERY_S:
                look_s = now_s
                self._look(now_s)
            self.node.tick(time.monotonic())
            self._server.turn(self._wait_s())
        return self._end()

    def _look(self, now_s: float) -> None:
        if self._rotate:
            self._rotate = False
            self.audit.reopen()
        watts = self._budget.watts()
        if watts != self.node.budget_watts:
            self.audit.tell("budget", watts=watts)
            self.node.budget_watts = watts
        self.node.read_back(now_s)
        notify("WATCHDOG=1")

    def _wait_s(self) -> float:
        due_s = self.node.next_due_s()
        return _TURN_S if due_s is None else min(_TURN_S, max(due_s - time.monotonic(), 0.0))

    def _end(self) -> int:
        notify("STOPPING=1")
        self._server.close()
        give_up_s = time.monotonic() + _GIVE_UP_S
        while not (done := self.node.restore_all(time.monotonic())):
            if time.monotonic() > give_up_s:
                break
            time.sleep(0.5)
        self.audit.tell("stopped", all_put_back=done)
        self._file.close()
        return 0 if done else 1

    def _stop(self, *_: Any) -> None:
        self._stopped = True

    def _reopen(self, *_: Any) -> None:
        self._rotate = True


def _uuids(nvml: Nvml) -> list[str]:
    """All GPUs that tell their UUID. MeterError: NVML does not answer."""
    found = []
    for index in range(nvml.call(nvml.api.nvmlDeviceGetCount)):
        try:
            handle = nvml.call(nvml.api.nvmlDeviceGetHandleByIndex, index)
            found.append(nvml.text(nvml.api.nvmlDeviceGetUUID, handle))
        except MeterError:  # a lost one; it cannot be leased until the agent starts again
            continue
    return found


def notify(text: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it did not ask."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        try:
            one.sendto(text.encode(), address)
        except OSError as error:
            print(f"sd_notify: {error}", file=sys.stderr)


def _more_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 64
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent. Exit status: 0 ended as told, 1 something is not as it should be, 2 bad
    input."""
    options = parser().parse_args(arguments)
    if options.status:
        return show_status(options.socket)
    if options.ping:
        return ping(options.socket)
    if options.floor_watts > options.ceiling_watts:
        print("--floor-watts is above --ceiling-watts", file=sys.stderr)
        return 2
    _more_descriptors()
    try:
        agent = Agent(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (EnergyServeError, ActuationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return agent.run()
