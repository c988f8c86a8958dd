"""Decisions and their replays on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from serve_app.cli.tables import table_console

_BEST = 3  # alternatives


def show_decisions(rows: Sequence[dict[str, Any]]) -> None:
    """Each decision with its words and the best alternatives, newest first."""
    console = table_console()
    if not rows:
        console.print("No decision is recorded yet.")
    for row in rows:
        words, found = row["words"], row["decision"]
        owner = "the fleet" if row["replica"] is None else f"replica {row['replica']}"
        state = ", in force" if row["in_force"] else ""
        if row["approved"]:
            state += f", approved by {row['approved_by'] or 'somebody without a key'}"
        console.print(f"{_clock(row['time_utc_s'])}  {owner} ({row['mode']}{state})  {row['id']}")
        console.print(f"  {words['move']}", style="bold", highlight=False)
        lines = [f"because   {words['why']}", _seen(found)]
        if words["expected"]:
            lines.append(f"expected  {words['expected']}")
        if row["alternatives"]:
            best = row["alternatives"][:_BEST]
            lines.append("instead   " + "; ".join(map(_alternative, best)))
        if words["came"]:
            lines.append(f"measured  {words['came']}")
        for line in filter(None, lines):
            console.print(f"  {line}", highlight=False)


def show_replay(rows: Sequence[dict[str, Any]]) -> None:
    """How many were the same again; a table of those that were not."""
    console = table_console()
    judged = [row for row in rows if row["unknown"] is None]
    same = sum(not row["differences"] for row in judged)
    console.print(f"{same} of {len(judged)} decisions are the same again, bit for bit.")
    table = Table("decision", "differs in", "recorded", "now")
    for row in judged:
        for key in row["differences"]:
            old, new = row["values"][key]
            table.add_row(row["id"], key, str(old), str(new))
    if table.row_count:
        console.print(table)
    for reason in sorted({str(row["unknown"]) for row in rows if row["unknown"]}):
        console.print(f"not replayed: {reason}", highlight=False)


def _clock(time_utc_s: float) -> str:
    return datetime.fromtimestamp(time_utc_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seen(found: dict[str, Any]) -> str:
    rate = found.get("load_arrival_rate_per_s")
    if rate is None:
        return ""
    words = f"seen      {rate:.3g} requests/s"
    prompts, outputs = found.get("load_prompt_tokens"), found.get("load_output_tokens")
    if prompts is not None and outputs is not None:
        words += f" of {prompts:.0f} prompt and {outputs:.0f} output tokens"
    return words


def _alternative(row: dict[str, Any]) -> str:
    if row["knob"] == "num_replicas":
        point = f"{row['num_replicas']} replicas"
    elif row["knob"] == "power_limit":
        watts = row["power_limit_watts"]
        point = "the device's default limit" if watts is None else f"{watts:g} W"
    else:
        point = f"at most {row['max_num_active_seqs']}"
    joules = row["joules_per_request"]
    cost = "cannot serve this" if joules is None else f"{joules:.3g} J/request"
    return f"{point}: {cost}" + ("" if row["binding"] == "none" else f", {row['binding']} breaks")
