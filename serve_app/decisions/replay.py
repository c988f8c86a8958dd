"""Decisions made again from their records, and records as rows for people."""

from __future__ import annotations

from typing import Any

from policies.core.errors import EnergyServeError
from serve_app.decisions.log import Decisions
from serve_app.decisions.record import alternatives_of, differences, replayed, row_of
from serve_app.decisions.words import told


def verdicts(found: Decisions, last: int) -> list[dict[str, Any]]:
    """For each of the last records: the keys in which the decision made again differs (none: the
    same bit for bit), or why it cannot be made again."""
    rows = []
    for record in found.records[-last:] if last else []:
        row: dict[str, Any] = {
            "id": record.id,
            "time_utc_s": record.time_utc_s,
            "deployment": record.deployment,
            "replica": record.replica,
            "differences": [],
            "unknown": None,
        }
        try:
            again = replayed(record, found.profiles)
        except EnergyServeError as error:
            rows.append({**row, "unknown": str(error)})
            continue
        keys = differences(record, again)
        values = {key: [record.decision.get(key), again.get(key)] for key in keys}
        rows.append({**row, "differences": keys, "values": values})
    return rows


def rows_of(found: Decisions, last: int) -> list[dict[str, Any]]:
    """The last records, newest first, as the ledger tells them."""
    rows = []
    for one in (found.records[-last:] if last else [])[::-1]:
        row = row_of(one, alternatives_of(one, found.profiles), found.outcomes.get(one.id))
        yes = found.approvals.get(one.id)
        row |= {"approved": yes is not None, "approved_by": yes["by"] if yes else None}
        rows.append(told(row))
    return rows
