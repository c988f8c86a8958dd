"""Decisions and control state as plain data: flat for logs, exact for Ray's policy state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from policies.core.memory import Memory
from policies.core.types import (
    Binding,
    ControlState,
    Decision,
    Load,
    OperatingPoint,
    Prediction,
    Reason,
)

SCHEMA_VERSION = 1


def decision_to_dict(decision: Decision) -> dict[str, Any]:
    """One flat JSON object: nested values as `<part>_<field>`, e.g. `chosen_num_replicas`.

    Numbers that are not finite become null, so that every JSON reader takes the line.
    """
    flat: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for item in fields(Decision):
        value = getattr(decision, item.name)
        if isinstance(value, OperatingPoint | Prediction | Load):
            for part in fields(value):
                flat[f"{item.name}_{part.name}"] = _plain(getattr(value, part.name))
        elif item.name not in {"predicted_present", "predicted_chosen", "load"}:
            flat[item.name] = _plain(value)
    return flat


def state_to_dict(state: ControlState) -> dict[str, Any]:
    """JSON-able data that `state_from_dict` reads back exactly."""
    data = {"schema_version": SCHEMA_VERSION, **_values(state), "memory": _values(state.memory)}
    if state.last_decision is not None:
        decision = _values(state.last_decision)
        for name, value in decision.items():
            if isinstance(value, OperatingPoint | Prediction | Load):
                decision[name] = _values(value)
        data["last_decision"] = decision
    return data


def _values(part: Any) -> dict[str, Any]:
    """Its fields, one level deep: numbers, words, and tuples of numbers are as good as copied."""
    found = {item.name: getattr(part, item.name) for item in fields(part)}
    for name, value in found.items():
        if isinstance(value, Enum):
            found[name] = value.value
    return found


def state_from_dict(data: Mapping[str, Any] | None) -> ControlState:
    """The state from `state_to_dict`'s data; a fresh one where the data is empty or not readable.

    Losing the state costs one dwell time; failing on it would cost the controller.
    """
    if not data or data.get("schema_version") != SCHEMA_VERSION:
        return ControlState()
    try:
        clocks = {
            item.name: _number(data.get(item.name))
            for item in fields(ControlState)
            if item.name not in {"last_decision", "memory"}
        }
        last = data.get("last_decision")
        return ControlState(
            **clocks,
            last_decision=None if last is None else _decision(last),
            memory=Memory.from_dict(data.get("memory") or {}),
        )
    except (TypeError, ValueError, KeyError, AttributeError):
        return ControlState()


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _decision(data: Mapping[str, Any]) -> Decision:
    values = dict(data)
    for name in ("present", "proposed", "chosen"):
        values[name] = OperatingPoint(**values[name])
    for name in ("predicted_present", "predicted_chosen"):
        if values[name] is not None:
            values[name] = Prediction(
                **{**values[name], "binding": Binding(values[name]["binding"])}
            )
    if values["load"] is not None:
        values["load"] = Load(**values["load"])
    values["reason"] = Reason(values["reason"])
    values["notes"] = tuple(values["notes"])
    return Decision(**values)
