"""A fitted model as the rows of numbers that the compiled simulator computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from policies.sim.fleet_state import Floats

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel
    from policies.model.latency import LatencyModel


def coefficients(model: FittedModel, limits: Sequence[float | None]) -> Floats:
    """(limits, NUM_COEFFICIENTS), in the order of `fleet_state`: per power limit (watts per GPU;
    None = none) the step time under it, the step time and energy without one, the idle draw and
    the most that one replica may draw. OutOfRange where the effect of a limit is not known."""
    power = model.power
    energy = (
        power.e0_joules_per_step,
        power.e1_joules_per_seq,
        power.e2_joules_per_kv_token,
        power.e3_joules_per_prefill_token,
        power.e4_joules_per_attended_pair,
        power.e5_joules_per_token_beyond_knee,
        power.knee_tokens,
    )
    rows = [
        (
            *_times(model.latency_under(limit)),
            *_times(model.latency),
            *energy,
            power.idle_watts,
            power.ceiling_watts(limit),
        )
        for limit in limits
    ]
    return np.array(rows, dtype=np.float64)


def _times(latency: LatencyModel) -> tuple[float, ...]:
    return (
        latency.t0_s,
        latency.a_s_per_seq,
        latency.b_s_per_kv_token,
        latency.c_s_per_prefill_token,
        latency.q_s_per_attended_pair,
        latency.d_s_per_token_beyond_knee,
        latency.knee_tokens,
    )
