"""`jouleserve explain`: what each replica's power limit is, who set it, and what it does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from policies.core.errors import ConfigError

PATH = "/jouleserve/energy"
_TIMEOUT_S = 10.0


def explain(
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show each replica's power limit: asked for, enforced, binding or not, who holds it.

    Exit status: 0, or 1 where a limit that shall be set cannot be, or another program has set it.
    """
    rows = _rows(url)
    if as_json:
        typer.echo(json.dumps({"replicas": rows}))
    else:
        _show(rows)
    limits = [row["power_limit"] or {} for row in rows]
    wrong = any(
        (limit.get("actuator") != "none" and not limit.get("available"))
        or limit.get("drift_watts") is not None
        for limit in limits
    )
    if wrong:
        raise typer.Exit(1)


def _rows(url: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(url.rstrip("/") + PATH, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            data = json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ConfigError(f"--url {url}: {PATH} does not answer: {error}") from None
    return [
        {
            "deployment": one["deployment"],
            "replica": one["replica"],
            "power_limit": one.get("power_limit"),
        }
        for one in data["replicas"]
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from serve_app.cli.tables import table_console

    table = Table("replica", "natural draw", "asked for", "enforced", "does", "held by")
    for row in rows:
        limit = row["power_limit"] or {}
        table.add_row(
            row["replica"],
            _watts(limit.get("natural_draw_watts")),
            _watts(limit.get("asked_watts"), "the default"),
            _watts(limit.get("enforced_watts")),
            _effect(limit),
            limit.get("holder") or "nobody",
        )
    table_console().print(table)


def _effect(limit: dict[str, Any]) -> str:
    """What the limit does, or why there is none."""
    if limit.get("drift_watts") is not None:
        return f"another program has set {limit['drift_watts']:g} W"
    if not limit.get("available"):
        return f"cannot be set: {limit.get('reason', 'not known')}"
    words = {None: "not known", True: "inert", False: "binding"}[limit.get("inert")]
    clock = limit.get("clock_mhz")
    most = limit.get("most_watts")
    words = words if clock is None else f"clock at most {clock} MHz"
    return words if most is None else f"{words}; budget {most:g} W"


def _watts(value: float | None, absent: str = "not known") -> str:
    return absent if value is None else f"{value:g} W"
