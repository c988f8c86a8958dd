"""Decisions made again from their records, and records as rows for people."""

from __future__ import annotations

from typing import Any

from policies.core.errors import EnergyServeError
from serve_app.decisions.log import Decisions
from serve_app.decisions.record import alternatives_of, differences, replayed
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
    return [
        told(
            {
                "id": record.id,
                "time_utc_s": record.time_utc_s,
                "deployment": record.deployment,
                "replica": record.replica,
                "in_force": False,
                "slo_ttft_s": record.settings.slo.ttft_s,
                "slo_tpot_s": record.settings.slo.tpot_s,
                "mode": record.settings.mode.value,
                "decision": record.decision,
                "alternatives": alternatives_of(record, found.profiles),
                "outcome": found.outcomes.get(record.id),
            }
        )
        for record in (found.records[-last:] if last else [])[::-1]
    ]
