"""A decision in plain words, for the page and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.core.types import Mode, Reason

_WHY = {
    Reason.CHEAPEST_FEASIBLE: "the cheapest point that holds the targets",
    Reason.SLO_AT_RISK: "the targets were at risk",
    Reason.NO_BETTER_POINT: "nothing cheaper holds the targets",
    Reason.SAVING_TOO_SMALL: "what is cheaper saves too little to move for",
    Reason.DWELL: "another point is wanted, but the last move was too recent",
    Reason.NO_FEASIBLE_POINT: "no point holds the targets; this one misses them least",
    Reason.NO_TRAFFIC: "nobody asks",
    Reason.STALE: "reports are missing or too old: the safe point",
    Reason.MODEL_UNTRUSTED: "the model does not speak for this load: the safe point",
    Reason.ERROR: "the policy failed: everything stays",
    Reason.STATIC: "fixed by the configuration",
    Reason.RAY_DEFAULT: "Ray Serve's own rule",
}
_NAMES = {"num_replicas": "replicas", "power_limit_watts": "limit", "max_num_active_seqs": "batch"}
_FLEET, _REPLICA = ("num_replicas",), ("power_limit_watts", "max_num_active_seqs")


def told(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a decision with its words."""
    words = {
        "move": move_of(row),
        "why": why_of(row),
        "expected": expected_of(row),
        "came": outcome_of(row),
        "waits": waits(row),
    }
    return {**row, "words": words}


def move_of(row: Mapping[str, Any]) -> str:
    """What the decision does, e.g. "limit 500 W → 300 W, at most 64 at a time"."""
    found = row["decision"]
    knobs = _FLEET if row["replica"] is None else _REPLICA
    parts = []
    to = "proposed" if row["mode"] == Mode.APPROVE.value else "chosen"
    for knob in knobs:
        old, new = found.get(f"present_{knob}"), found.get(f"{to}_{knob}")
        shown = _value(knob, new) if old == new else f"{_value(knob, old)} → {_value(knob, new)}"
        parts.append(f"{_NAMES[knob]} {shown}")
    changed = any(found.get(f"present_{k}") != found.get(f"{to}_{k}") for k in knobs)
    return ", ".join(parts) if changed else f"stays: {', '.join(parts)}"


def waits(row: Mapping[str, Any]) -> bool:
    """Whether an operator's yes would change something."""
    found = row["decision"]
    knobs = _FLEET if row["replica"] is None else _REPLICA
    wanted = any(found.get(f"present_{k}") != found.get(f"proposed_{k}") for k in knobs)
    return row["mode"] == Mode.APPROVE.value and wanted and not row.get("approved")


def why_of(row: Mapping[str, Any]) -> str:
    """Why, and what held it back."""
    found = row["decision"]
    try:
        why = _WHY[Reason(found["reason"])]
    except ValueError:
        why = str(found["reason"])
    notes = "; ".join(str(note) for note in found.get("notes") or ())
    return f"{why} ({notes})" if notes else why


def expected_of(row: Mapping[str, Any]) -> str:
    """What the model expects at the chosen point; empty where it says nothing."""
    found = row["decision"]
    joules = found.get("predicted_chosen_joules_per_request")
    if joules is None:
        return ""
    words = f"{joules:.3g} J/request"
    before = found.get("predicted_present_joules_per_request")
    if before is not None and f"{before:.3g}" != f"{joules:.3g}":
        words += f" (before: {before:.3g})"
    for name, target in (("ttft_s", "slo_ttft_s"), ("tpot_s", "slo_tpot_s")):
        value = found.get(f"predicted_chosen_{name}")
        shown = "beyond all bounds" if value is None else _seconds(value)
        words += f", {name[:4].upper()} {shown} of {_seconds(row[target])}"
    return words


def outcome_of(row: Mapping[str, Any]) -> str:
    """What came of it, measured; empty where nothing is known yet."""
    came = row.get("outcome")
    if not came:
        return ""
    words = f"{came['requests']:g} requests in {came['for_s']:.0f} s"
    if came["joules_per_request"] is not None:
        words += f", {came['joules_per_request']:.3g} J each"
    elif came["joules"] is None:
        words += ", energy unavailable"
    if came["attainment_ratio"] is not None:
        words += f", {100 * came['attainment_ratio']:.4g} % within the targets"
    return words


def _value(knob: str, value: Any) -> str:
    if knob == "power_limit_watts":
        return "the device's default" if value is None else f"{value:g} W"
    if knob == "max_num_active_seqs":
        return f"at most {value}"
    return str(value)


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1.0 else f"{1e3 * value:.3g} ms"
