"""A replica's report to the fleet tick and back: floats under fixed names, as Ray carries them.

Ray drops a replica's stats for good when one return is malformed, so a report always has the same
keys. "Not known" is -1, or -1e9 for what may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from policies.core.lengths import WEIGHTS
from policies.core.types import ControlSettings, Mode, ReplicaObservation
from policies.model.online import Correction

UNKNOWN, UNKNOWN_SIGNED = -1.0, -1e9
MODES = (Mode.OFF, Mode.ADVISORY, Mode.ACTIVE)
_SIGNED = frozenset({"margin", "pace_margin"})
# Two lengths to a value, in 64ths of a token: 1,000 replicas report all of this once a second.
LENGTH_STEPS, LENGTH_SPAN = 64.0, float(1 << 26)
BINS = {
    name: tuple(f"{name}_{place}_{place + 1}" for place in range(0, len(WEIGHTS), 2))
    for name in ("prompt_bins", "output_bins")
}
WHOLE = ("max_num_active_seqs", "pack_seqs", "pack_tokens")
_OF_REPLICA = tuple(
    item.name for item in fields(ReplicaObservation) if item.name not in {"replica", "time_s"}
)
SEEN = tuple(name for name in _OF_REPLICA if name not in BINS)
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
REPORT = (*SEEN, *BINS["prompt_bins"], *BINS["output_bins"], *_IN_FORCE)


def report(
    observation: ReplicaObservation,
    settings: ControlSettings,
    correction: Correction | None = None,
    max_num_batched_tokens: int | None = None,
) -> dict[str, float]:
    """A replica's autoscaling stats; its caps stand in `settings.bounds`."""
    learned = correction or Correction()
    values: dict[str, float | int | None] = {name: getattr(observation, name) for name in SEEN}
    for name, keys in BINS.items():
        bins = getattr(observation, name)
        known = bins is not None and len(bins) == len(WEIGHTS)
        values |= dict(zip(keys, _in_pairs(bins), strict=True)) if known else dict.fromkeys(keys)
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
        name: unknown(name) if value is None else float(value) for name, value in values.items()
    }


def _in_pairs(bins: Sequence[float]) -> list[float]:
    """Each two as one whole number below 2^52, which a float holds exactly."""
    whole = [min(round(max(one, 0.0) * LENGTH_STEPS), LENGTH_SPAN - 1.0) for one in bins]
    whole += [0.0] * (len(whole) % 2)
    return [
        first * LENGTH_SPAN + second for first, second in zip(whole[::2], whole[1::2], strict=True)
    ]


def unknown(key: str) -> float:
    """What stands for "not known"."""
    return UNKNOWN_SIGNED if key in _SIGNED else UNKNOWN
