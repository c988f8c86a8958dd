"""One replica in its steady state: its draw at each batch, and how long a first token takes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from policies.model.batch import Floats, log_above_one
from policies.model.curve import Number, StepCurve


@lru_cache(maxsize=256)
def draw_table(joules: StepCurve, seconds: StepCurve, idle_watts: float, cap: int) -> Floats:
    """Watts with 0..cap running requests, never falling: noise in a fit must not reward more load.

    The draw at a batch is its step energy over its step time.
    """
    batch = np.arange(1, cap + 1, dtype=np.float64)
    table = np.empty(cap + 1)
    table[0] = idle_watts
    np.divide(joules.mean(batch), seconds.mean(batch), out=table[1:])
    np.maximum.accumulate(table, out=table)
    table.setflags(write=False)
    return table


def first_token_s(
    curve: StepCurve, admitted_per_s: Number, batch: Number, slot_s: Number, percentile: float
) -> Number:
    """TTFT at the percentile, seconds: slot wait + running step + earlier prompts + own step.

    The arrival waits for a slot (`slot_s`), then for the rest of the running step (at most all of
    it, with `batch` requests), for prompts that came before it (M/M/1 with load r = arrivals c tin:
    ln(r / (1 - percentile)) c tin / (1 - r), at least 0), and for the step that computes its own.
    `admitted_per_s`: what one replica takes in.
    """
    step_s, prefill_s = curve.decode(batch), curve.per_prompt
    busy = admitted_per_s * prefill_s
    over = busy / max(1.0 - percentile, 1e-9)
    prompts_s = log_above_one(over) * prefill_s / (1.0 - busy)
    return slot_s + step_s + prompts_s + step_s + prefill_s
