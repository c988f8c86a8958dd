"""`jouleserve explain`: what was decided and why, and what each replica's power limit does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from policies.core.errors import ConfigError
from serve_app.security.asking import authorization

ENERGY, DECISIONS, RECORDS = "/jouleserve/energy", "/energy/decisions", "/jouleserve/decisions"
_TIMEOUT_S = 10.0
_NOT_FOUND = 404


def explain(
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    *,
    last: Annotated[int, typer.Option(min=0, max=512, help="How many decisions.")] = 5,
    log: Annotated[
        Path | None, typer.Option(help="A decision log, or its folder, instead of the service.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Decide again from the records; compare bit by bit.")
    ] = False,
    counterfactual: Annotated[
        bool,
        typer.Option(
            "--counterfactual", help="Simulate the logged load: had the policy (not) been active."
        ),
    ] = False,
    minutes: Annotated[float, typer.Option(min=1.0, help="Of the counterfactual.")] = 30.0,
    requests: Annotated[
        Path | None, typer.Option(help="Folder of the request log, if not the default one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show the last decisions: on what load, what the model expected of the chosen point and of the
    best others, what held it back, what came of it; and each replica's power limit.

    Exit status: 0, or 1 where a limit that shall be set cannot be, another program has set it, or a
    decision was not the same when it was made again.
    """
    if counterfactual:
        _instead(log, requests, minutes, as_json=as_json)
        return
    if replay or log is not None:
        _from_records(url, log, last, replay=replay, as_json=as_json)
        return
    rows = _limits(url)
    decisions = _ask(url, f"{DECISIONS}?last={last}", missing=[])
    if as_json:
        typer.echo(json.dumps({"replicas": rows, "decisions": decisions}))
    else:
        from serve_app.cli.decision_tables import show_decisions
        from serve_app.decisions.words import told

        _show(rows)
        show_decisions([told(row) for row in decisions])
    limits = [row["power_limit"] or {} for row in rows]
    wrong = any(
        (limit.get("actuator") != "none" and not limit.get("available"))
        or limit.get("drift_watts") is not None
        for limit in limits
    )
    if wrong:
        raise typer.Exit(1)


def _from_records(url: str, log: Path | None, last: int, *, replay: bool, as_json: bool) -> None:
    """Explain, or decide again, from the records alone."""
    from serve_app.cli.decision_tables import show_decisions, show_replay
    from serve_app.decisions.log import Decisions, read_decisions
    from serve_app.decisions.record import read_record
    from serve_app.decisions.replay import rows_of, verdicts

    if log is not None:
        found = read_decisions(log)
    else:
        told = _ask(url, f"{RECORDS}?last={last}")
        records = [read_record(json.dumps(one)) for one in told["records"]]
        found = Decisions(records=records, profiles=told["profiles"])
    if not replay:
        rows = rows_of(found, last)
        if as_json:
            typer.echo(json.dumps({"decisions": rows}))
        else:
            show_decisions(rows)
        return
    made = verdicts(found, last)
    if as_json:
        typer.echo(json.dumps({"replayed": made}))
    else:
        show_replay(made)
    if any(one["differences"] for one in made):
        raise typer.Exit(1)


def _instead(log: Path | None, requests: Path | None, minutes: float, *, as_json: bool) -> None:
    """Simulate what the logs hold under what did not run."""
    from dataclasses import asdict

    from serve_app.decisions.counterfactual import counterfactual, sentences
    from serve_app.decisions.log import read_decisions
    from serve_app.request_log.reader import ReadCounts, read_rows
    from serve_app.settings import decision_log_folder, request_log_folder

    decisions = read_decisions(log or decision_log_folder())
    rows = read_rows(requests or request_log_folder(), ReadCounts())
    found = counterfactual(decisions, rows, minutes)
    if as_json:
        typer.echo(json.dumps({"counterfactual": asdict(found)}))
        return
    for line in sentences(found):
        typer.echo(line)


def _limits(url: str) -> list[dict[str, Any]]:
    names = ("deployment", "replica")
    return [
        {**{name: one[name] for name in names}, "power_limit": one.get("power_limit")}
        for one in _ask(url, ENERGY)["replicas"]
    ]


def _ask(url: str, path: str, missing: Any = None) -> Any:
    """The answer of the service; `missing` where it does not know the path. Raises ConfigError."""
    request = urllib.request.Request(url.rstrip("/") + path, headers=authorization())  # noqa: S310
    shown = path.partition("?")[0]
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == _NOT_FOUND and missing is not None:
            return missing
        raise ConfigError(f"--url {url}: {shown} answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ConfigError(f"--url {url}: {shown} does not answer: {error}") from None


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
