"""The joules below which no policy can serve a trace: a lower bound by energy accounting.

A step of composition x (1 step, sequences, context tokens, prompt tokens, pairs) that takes t.x
seconds and e.x joules without a limit costs, under a limit of ceiling C that makes it last T.x,

    J = min(e.x / t.x, C) T.x  >=  min(e.x, C T.x)  >=  sum over k of x_k min(e_k, C T_k),

for T >= t, and all numbers are >= 0. Under the best limit for each term on its own that is a sum
over requests: their prompts, their decoding steps, and their part of the steps themselves, of which
there are at least (answer tokens after the first) / (largest batch) and at least (all tokens) /
(token budget). Idle draw, starts, waiting, targets and jitter (which only lengthens the mean step)
cost nothing here: no policy reaches it. What lies beyond a knee is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policies.model.fitted import FittedModel
from policies.model.latency import LatencyModel

Floats = NDArray[np.float64]


def least_joules(
    model: FittedModel,
    limits: tuple[float | None, ...],
    prompt_tokens: Floats,
    output_tokens: Floats,
    engine: tuple[int, int],
) -> float:
    """Joules of all these requests at the least. `limits`: those that may be set, None = none;
    `engine`: the token budget of a step and the largest batch."""
    step, seq, kv, token, pair = _least_terms(model, limits)
    decoded = output_tokens - 1.0
    # Each decoding step of a request attends to its prompt and to what was made before it.
    contexts = decoded * (prompt_tokens + 0.5 * (decoded - 1.0))
    budget, batch = engine
    steps = max(float(decoded.sum()) / batch, float((prompt_tokens + decoded).sum()) / budget)
    return float(
        step * steps
        + (seq * decoded + kv * contexts).sum()
        + (token * prompt_tokens + pair * 0.5 * prompt_tokens * prompt_tokens).sum()
    )


def _least_terms(model: FittedModel, limits: tuple[float | None, ...]) -> Floats:
    """Per step, sequence, context token, prompt token and pair: the least joules of all limits."""
    power = model.power
    natural = np.array(
        [
            power.e0_joules_per_step,
            power.e1_joules_per_seq,
            power.e2_joules_per_kv_token,
            power.e3_joules_per_prefill_token,
            power.e4_joules_per_attended_pair,
        ]
    )
    found = [natural]
    for limit in limits:
        ceiling_watts = power.ceiling_watts(limit)
        if np.isfinite(ceiling_watts):
            found.append(np.minimum(natural, ceiling_watts * _times(model.latency_under(limit))))
    return np.asarray(np.min(found, axis=0))


def _times(latency: LatencyModel) -> Floats:
    return np.array(
        [
            latency.t0_s,
            latency.a_s_per_seq,
            latency.b_s_per_kv_token,
            latency.c_s_per_prefill_token,
            latency.q_s_per_attended_pair,
        ]
    )
