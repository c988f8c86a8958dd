"""`jouleserve power-agent --status`: what the running agent says, for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError
from serve_app.power_agent.client import AgentClient


def show_status(path: Path) -> int:
    """Print it; exit status 1 where there is no agent or something is not as it should be."""
    client = AgentClient(path, timeout_s=5.0)
    try:
        status = client.status()
    except ActuationError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        client.close()
    for gpu in status["gpus"]:
        print(_line(gpu))
    print(_budget(status))
    wrong = any(gpu["state"] != "ok" for gpu in status["gpus"]) or status["over_budget_watts"] > 0.0
    return 1 if wrong else 0


def ping(path: Path) -> int:
    """Exit status 0 if an agent answers within a second, else 1."""
    client = AgentClient(path)
    try:
        client.status()
    except ActuationError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        client.close()
    return 0


def _line(gpu: dict[str, Any]) -> str:
    limit, enforced = _watts(gpu["limit_watts"]), _watts(gpu["enforced_watts"])
    words = [f"{gpu['uuid']}  {gpu['name']}: limit {limit}, enforced {enforced}"]
    if gpu["found_watts"] is not None:
        words.append(f"found {_watts(gpu['found_watts'])}")
    if gpu["wanted_watts"] not in {None, gpu["set_watts"]}:
        words.append(f"wanted {_watts(gpu['wanted_watts'])}")
    if gpu["clock_mhz"] is not None:
        words.append(f"clock at most {gpu['clock_mhz']} MHz")
    if gpu["holder"] is not None:
        words.append(f"held by {gpu['holder']}, lapses in {gpu['lapses_in_s']:.0f} s")
    elif gpu["restoring"]:
        words.append("to be put back")
    if gpu["state"] == "drift":
        words.append(f"another program has set it ({_watts(gpu['set_watts'])} was ours)")
    if gpu["reason"] is not None:
        words.append(f"unavailable: {gpu['reason']}")
    return "; ".join(words)


def _budget(status: dict[str, Any]) -> str:
    total = f"limits sum up to {_watts(status['limits_sum_watts'])}"
    if status["budget_watts"] is None:
        return f"{total}; no node budget"
    budget = f"{total}; node budget {_watts(status['budget_watts'])}"
    over = status["over_budget_watts"]
    return f"{budget}, exceeded by {_watts(over)}" if over > 0.0 else budget


def _watts(value: float | None) -> str:
    return "not readable" if value is None else f"{value:g} W"
