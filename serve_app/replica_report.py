"""A replica's report to the fleet tick and back: floats under fixed names, as Ray carries them.

Ray drops a replica's stats for good when one return is malformed, so a report always has the same
keys. "Not known" is -1, or -1e9 for what may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from policies.core.lengths import WEIGHTS
from policies.core.types import ControlSettings, Mode, ReplicaObservation
from policies.model.online import Correction

UNKNOWN, UNKNOWN_SIGNED = -1.0, -1e9
MODES = (Mode.OFF, Mode.ADVISORY, Mode.ACTIVE)
_SIGNED = frozenset({"margin", "pace_margin"})
_BINS = {
    name: tuple(f"{name}_{place}" for place in range(len(WEIGHTS)))
    for name in ("prompt_bins", "output_bins")
}
_WHOLE = ("max_num_active_seqs", "pack_seqs", "pack_tokens")
_ALWAYS = ("num_running", "num_waiting", "arrival_rate_per_s")
_OF_REPLICA = tuple(
    item.name for item in fields(ReplicaObservation) if item.name not in {"replica", "time_s"}
)
_SEEN = tuple(name for name in _OF_REPLICA if name not in _BINS)
_IN_FORCE = (
    "min_active_seqs",
    "max_num_seqs",
    "slo_ttft_s",
    "slo_tpot_s",
    "slo_percentile",
    "mode",
    "step_time_ratio",
    "energy_ratio",
    "at_bound",
    "max_num_batched_tokens",
)
REPORT = (*_SEEN, *_BINS["prompt_bins"], *_BINS["output_bins"], *_IN_FORCE)


def report(
    observation: ReplicaObservation,
    settings: ControlSettings,
    correction: Correction | None = None,
    max_num_batched_tokens: int | None = None,
) -> dict[str, float]:
    """A replica's autoscaling stats; its caps stand in `settings.bounds`."""
    learned = correction or Correction()
    values: dict[str, float | int | None] = {name: getattr(observation, name) for name in _SEEN}
    for name, keys in _BINS.items():
        bins = getattr(observation, name)
        known = bins is not None and len(bins) == len(keys)
        values |= dict(zip(keys, bins, strict=True)) if known else dict.fromkeys(keys)
    values |= {
        "min_active_seqs": settings.bounds.min_active_seqs,
        "max_num_seqs": settings.bounds.max_num_seqs,
        "slo_ttft_s": settings.slo.ttft_s,
        "slo_tpot_s": settings.slo.tpot_s,
        "slo_percentile": settings.slo.percentile,
        "mode": MODES.index(settings.mode),
        "step_time_ratio": learned.step_time_ratio,
        "energy_ratio": learned.energy_ratio,
        "at_bound": learned.at_bound,
        "max_num_batched_tokens": max_num_batched_tokens,
    }
    return {
        name: _unknown(name) if value is None else float(value) for name, value in values.items()
    }


def observation_of(replica: str, time_s: float, values: Mapping[str, float]) -> ReplicaObservation:
    """What the replica had seen."""
    found: dict[str, float | int | tuple[float, ...] | None] = {
        name: values[name] if name in _ALWAYS else known(values, name) for name in _SEEN
    }
    for name in _WHOLE:
        number = known(values, name)
        found[name] = None if number is None else int(number)
    for name, keys in _BINS.items():
        bins = [known(values, key) for key in keys]
        found[name] = tuple(one for one in bins if one is not None) if None not in bins else None
    return ReplicaObservation(replica=replica, time_s=time_s, **found)  # type: ignore[arg-type]


def correction_in(values: Mapping[str, float]) -> Correction:
    """What the replica's steps say about the model."""
    return Correction(
        step_time_ratio=known(values, "step_time_ratio"),
        energy_ratio=known(values, "energy_ratio"),
        at_bound=values["at_bound"] > 0.0,
    )


def known(values: Mapping[str, float], key: str) -> float | None:
    """The value, or None where the replica does not know it."""
    return None if values[key] == _unknown(key) else values[key]


def _unknown(key: str) -> float:
    return UNKNOWN_SIGNED if key in _SIGNED else UNKNOWN
