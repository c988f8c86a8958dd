"""Whether power limits can be set here, by whom, and what to grant. Nothing is set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError, MeterError
from serve_app.actuators import zeusd_limit
from serve_app.doctor.findings import Finding, Level
from serve_app.doctor.granting import AGENT_GROUP, AGENT_POD, AGENT_START
from serve_app.doctor.host import Host
from serve_app.doctor.scope import Scope
from serve_app.nvml_library import Nvml
from serve_app.power_agent.client import SOCKET, AgentClient

_CAP_SYS_ADMIN = 21  # linux/capability.h
_SUBJECT = "power limits"


def limit_findings(scope: Scope, host: Host) -> list[Finding]:
    """One finding about the actuator that the file names, or about what could be named; none where
    there is no GPU to limit."""
    if not _any_gpu():
        return []
    power = scope.energy.power if scope.energy is not None else None
    actuator = "none" if power is None else power.actuator
    socket = power.socket if power is not None else None
    if actuator == "nvml":
        return [_own(scope)]
    if actuator == "zeusd":
        return [_zeusd(socket or zeusd_limit.SOCKET)]
    return [_agent(socket or SOCKET, host, asked=actuator == "agent")]


def _any_gpu() -> bool:
    try:
        nvml = Nvml()
    except MeterError:
        return False
    try:
        return bool(nvml.call(nvml.api.nvmlDeviceGetCount))
    except MeterError:
        return False
    finally:
        nvml.close()


def _agent(path: Path, host: Host, *, asked: bool) -> Finding:
    """The power agent; `asked`: the file says that it is to be used."""
    missing = Level.PROBLEM if asked else Level.NOTE
    client = AgentClient(path)
    try:
        status = client.status()
    except ActuationError as error:
        return Finding(level=missing, subject=_SUBJECT, text=str(error), fix=_grant(path, host))
    finally:
        client.close()
    text = f"{path}: the agent answers and leases {_few(status)}"
    if not asked:
        text += "; to use it: energy.power.actuator: agent"
    return Finding(
        level=Level.OK if asked else Level.NOTE, subject=_SUBJECT, text=text, facts=status
    )


def _few(status: dict[str, Any]) -> str:
    gpus = status["gpus"]
    away = sum(gpu["state"] == "unavailable" for gpu in gpus)
    words = f"{len(gpus) - away} of {len(gpus)} GPUs"
    budget = status["budget_watts"]
    return words if budget is None else f"{words} within {budget:g} W"


def _grant(path: Path, host: Host) -> tuple[str, ...]:
    if host.container == "kubernetes":
        return AGENT_POD
    if path.is_socket() and not os.access(path, os.R_OK | os.W_OK):
        return (AGENT_GROUP,)
    return AGENT_START


def _own(scope: Scope) -> Finding:
    """Limits that a replica sets itself, if it runs as this process does."""
    if may_administer(scope.root):
        text = "a process like this one may set them (CAP_SYS_ADMIN); what was found is in a file"
        return Finding(level=Level.OK, subject=_SUBJECT, text=text)
    text = "energy.power.actuator is nvml, but a process like this one lacks CAP_SYS_ADMIN"
    fix = ("run the replicas as root, or better:", *AGENT_START)
    return Finding(level=Level.PROBLEM, subject=_SUBJECT, text=text, fix=fix)


def may_administer(root: Path) -> bool:
    """Whether this process has CAP_SYS_ADMIN, by /proc/self/status below `root`."""
    try:
        status = (root / "proc" / "self" / "status").read_text(encoding="utf-8")
        return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> _CAP_SYS_ADMIN & 1)
    except (OSError, ValueError, IndexError):
        return False


def _zeusd(path: Path) -> Finding:
    if path.is_socket() and os.access(path, os.R_OK | os.W_OK):
        text = f"{path}: zeusd, which puts nothing back when a replica is killed"
        return Finding(level=Level.WARNING, subject=_SUBJECT, text=text)
    text = f"{path}: no socket of zeusd that this process may open"
    return Finding(level=Level.PROBLEM, subject=_SUBJECT, text=text, fix=AGENT_START)
