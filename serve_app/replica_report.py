"""A replica's report to the fleet tick and back: one number, as Ray carries nothing else.

Ray takes a dict of numbers from a replica, keeps each name as a series of objects of its own, and
sends, stores and sorts them one by one inside the controller. A thousand replicas with some fifty
values each would keep it busy (ADR 0011). Python's integers are as long as one likes, so all values
of a report are the bytes of one.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.core.lengths import WEIGHTS
from policies.core.types import ControlSettings, Mode, ReplicaObservation
from policies.model.online import Correction

KEY = "jouleserve_report"
MODES = (Mode.OFF, Mode.ADVISORY, Mode.APPROVE, Mode.ACTIVE)  # the most careful first
BINS = ("prompt_bins", "output_bins")
WHOLE = ("max_num_active_seqs", "pack_seqs", "pack_tokens")
SEEN = tuple(
    item.name
    for item in fields(ReplicaObservation)
    if item.name not in {"replica", "time_s", *BINS}
)
IN_FORCE = (
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
    "least_limit_watts",
    "most_limit_watts",
    "max_limit_watts",
    "fleet_budget_watts",
    "approved_replicas",
)
VALUES = (*SEEN, *IN_FORCE, *(f"{name}_{place}" for name in BINS for place in range(len(WEIGHTS))))
ALWAYS = ("num_running", "num_waiting", "arrival_rate_per_s", *IN_FORCE[:6], "at_bound")
_LAYOUT = struct.Struct(f"<{len(VALUES)}d")
# The first four bytes, never 0: replicas of a release with other values may stand beside these.
_MARK = zlib.crc32(" ".join(VALUES).encode()) | 1 << 31
_ROW = np.dtype([("mark", ">u4"), ("values", "<f8", (len(VALUES),))])


def report(
    observation: ReplicaObservation,
    settings: ControlSettings,
    correction: Correction | None = None,
    max_num_batched_tokens: int | None = None,
    approved_replicas: int | None = None,
) -> dict[str, int]:
    """A replica's autoscaling stats; its caps and limits stand in `settings.bounds`. What is None
    is not known to the reader either. `approved_replicas`: of the fleet, by an operator."""
    learned = correction or Correction()
    values: list[float | None] = [getattr(observation, name) for name in SEEN]
    values += [
        settings.bounds.min_active_seqs,
        settings.bounds.max_num_seqs,
        settings.slo.ttft_s,
        settings.slo.tpot_s,
        settings.slo.percentile,
        MODES.index(settings.mode),
        learned.step_time_ratio,
        learned.energy_ratio,
        learned.at_bound,
        max_num_batched_tokens,
        min(settings.bounds.power_limits_watts, default=None),
        max(settings.bounds.power_limits_watts, default=None),
        settings.bounds.max_limit_watts,
        settings.bounds.fleet_budget_watts,
        approved_replicas,
    ]
    for name in BINS:
        bins: Sequence[float] | None = getattr(observation, name)
        known = bins is not None and len(bins) == len(WEIGHTS)
        values += bins if bins is not None and known else [None] * len(WEIGHTS)
    return written(math.nan if value is None else value for value in values)


def written(values: Iterable[float]) -> dict[str, int]:
    """The values, in the order of `VALUES`, as the one number; NaN is "not known"."""
    return {KEY: int.from_bytes(_MARK.to_bytes(4, "big") + _LAYOUT.pack(*values), "big")}


def is_report(value: Any) -> bool:
    """Whether a number is a report with these values."""
    return isinstance(value, int) and value >> (8 * _LAYOUT.size) == _MARK


def read(reports: Sequence[int]) -> NDArray[np.float64]:
    """The values of reports, (replicas, values): NaN where one is not known."""
    rows = b"".join(one.to_bytes(_ROW.itemsize, "big") for one in reports)
    packed = np.frombuffer(rows, dtype=_ROW)["values"]  # behind four bytes: no value is aligned
    return packed.astype(np.float64)
