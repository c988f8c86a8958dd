"""One decision with all that it was made from, as a line of JSON that can be decided again.

The policy is pure, so a record that holds its inputs exactly gives the same decision bit for bit:
`replayed` is both the explanation's proof and a regression test for every later release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from policies.core.alternatives import alternatives
from policies.core.errors import ConfigError, ModelError
from policies.core.record import decision_to_dict
from policies.core.types import (
    ControlSettings,
    ControlState,
    Knob,
    Load,
    Observation,
    OperatingPoint,
    Prediction,
)
from policies.model.fitted import FittedModel
from policies.model.online import Correction
from serve_app.deciders import RAY_DEFAULT, Serving, policy_for
from serve_app.settings import EnergySettings, PolicySettings

_ALTERNATIVES = 8
_POINT = ("num_replicas", "max_num_active_seqs", "power_limit_watts")


class Record(BaseModel):
    """A decision and its inputs. `replica`: None = the fleet tick. `profile`: the fingerprint of
    the model's profile, None = there is none. `decision`: as `decision_to_dict` has it."""

    # Neither JSON nor a log line has a word for infinity; a string survives both ways.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    id: str
    time_utc_s: float
    deployment: str
    replica: str | None
    policy: PolicySettings
    profile: str | None
    correction: Correction | None
    serving: Serving
    observation: Observation
    state: ControlState
    settings: ControlSettings
    free: tuple[Knob, ...]
    decision: dict[str, Any]

    @property
    def key(self) -> tuple[str, str | None]:
        """Whose decision it is."""
        return self.deployment, self.replica


def lines_of(records: Iterable[Record]) -> list[str]:
    """The records as lines."""
    return [record.model_dump_json() for record in records]


def row_of(
    record: Record, alternatives: list[dict[str, Any]], outcome: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A record for people and the API: the flat decision, what else could have been, what came."""
    slo = record.settings.slo
    return {
        "id": record.id,
        "time_utc_s": record.time_utc_s,
        "deployment": record.deployment,
        "replica": record.replica,
        "in_force": False,
        "approved": False,
        "approved_by": None,
        "slo_ttft_s": slo.ttft_s,
        "slo_tpot_s": slo.tpot_s,
        "mode": record.settings.mode.value,
        "decision": record.decision,
        "alternatives": alternatives,
        "outcome": outcome,
    }


def read_record(line: str | bytes) -> Record:
    """The record of one line. Raises ConfigError that names the first wrong key."""
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"]) or "record"
        raise ConfigError(f"decision record: {key}: {fault['msg']}") from None


def model_of(record: Record, profiles: Mapping[str, Mapping[str, Any]]) -> FittedModel | None:
    """The profile that the decision was made with, uncorrected; None where there was none. Raises
    ConfigError where it is not among `profiles` (by fingerprint), ModelError for a broken one."""
    if record.profile is None:
        return None
    if record.profile not in profiles:
        raise ConfigError(f"decision {record.id}: its profile {record.profile} is not at hand")
    return FittedModel.from_dict(profiles[record.profile], source=f"profile {record.profile}")


def replayed(record: Record, profiles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the policy of this release decides from the record's inputs. Raises ConfigError where
    that cannot be asked: Ray's own rule reads Ray's context, which no record holds."""
    if record.policy.name == RAY_DEFAULT and Knob.NUM_REPLICAS in record.free:
        raise ConfigError(f"decision {record.id}: Ray's own rule cannot be replayed")
    policy = policy_for(
        EnergySettings(policy=record.policy),
        model_of(record, profiles),
        correction=record.correction,
        serving=record.serving,
    )
    decision, _ = policy.decide(
        record.observation, record.state, record.settings, frozenset(record.free)
    )
    return decision_to_dict(decision)


def differences(record: Record, again: Mapping[str, Any]) -> list[str]:
    """The keys in which the decision made again differs from the recorded one; none = bit for bit
    the same."""
    keys = record.decision.keys() | again.keys()
    return sorted(key for key in keys if record.decision.get(key) != again.get(key))


def alternatives_of(
    record: Record, profiles: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The best points one knob away from the chosen one and what the model, as it was corrected
    then, says of each; empty where it cannot say anything."""
    found = record.decision
    if found.get("load_arrival_rate_per_s") is None:
        return []
    try:
        model = model_of(record, profiles)
    except (ConfigError, ModelError):
        return []
    if model is not None and record.correction is not None:
        model = record.correction.apply(model)
    if model is None:
        return []
    load = Load(**{name: found[f"load_{name}"] for name in Load.__dataclass_fields__})
    others = alternatives(
        point_of(found, "chosen"), load, record.settings, model, frozenset(record.free)
    )
    return [
        {"knob": one.knob.value, **_row(one.point), **_predicted(one.prediction)}
        for one in others[:_ALTERNATIVES]
    ]


def point_of(decision: Mapping[str, Any], which: str) -> OperatingPoint:
    """The point `present`, `proposed` or `chosen` of a flat decision."""
    names = OperatingPoint.__dataclass_fields__
    values: dict[str, Any] = {name: decision.get(f"{which}_{name}") for name in names}
    return OperatingPoint(**values)


def _row(point: OperatingPoint) -> dict[str, Any]:
    return {name: getattr(point, name) for name in _POINT}


def _predicted(prediction: Prediction) -> dict[str, Any]:
    return {
        "joules_per_request": _finite(prediction.joules_per_request),
        "ttft_s": _finite(prediction.ttft_s),
        "tpot_s": _finite(prediction.tpot_s),
        "binding": prediction.binding.value,
    }


def _finite(value: float) -> float | None:
    """None where the point cannot serve the load at all."""
    return value if math.isfinite(value) else None
