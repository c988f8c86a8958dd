"""One replica in its steady state: its draw at each batch, and how long a first token takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from policies.core.types import Load
from policies.model.batch import BatchProcess, Floats
from policies.model.latency import LatencyModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawLine:
    """A replica's step energy and step time as lines over the batch."""

    idle_watts: float
    e0_joules: float
    joules_per_seq: float
    t0_s: float
    s_per_seq: float


@lru_cache(maxsize=256)
def draw_table(line: DrawLine, cap: int) -> Floats:
    """Watts with 0..cap running requests, never falling: noise in a fit must not reward more load.

    E(n) / t(n) is monotone in n, so its running maximum is max(value at 1, value at n).
    """
    batch = np.arange(cap + 1, dtype=np.float64)
    table = (line.e0_joules + batch * line.joules_per_seq) / (line.t0_s + batch * line.s_per_seq)
    np.maximum(table, max(line.idle_watts, float(table[1])), out=table)
    table[0] = line.idle_watts
    table.setflags(write=False)
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """What the time to the first token depends on; `load` is what one replica admits."""

    latency: LatencyModel
    load: Load
    process: BatchProcess
    probabilities: Floats
    batch: int
    percentile: float


def queue_ttft_s(queue: Queue) -> float:
    """TTFT at the percentile, seconds: slot wait + running step + earlier prompts + own step.

    The arrival waits for a slot (Erlang C form), then for the rest of the running step (at most all
    of it), for prompts that came before it (M/M/1 with load r = arrivals c tin:
    ln(r / (1 - percentile)) c tin / (1 - r), at least 0), and for the step that computes its own.
    """
    step_s = queue.latency.t0_s + queue.batch * queue.latency.decode_s_per_seq(queue.load)
    prefill_s = queue.latency.prefill_s(queue.load)
    busy = queue.load.arrival_rate_per_s * prefill_s
    over = busy / max(1.0 - queue.percentile, 1e-9)
    prompts_s = math.log(over) * prefill_s / (1.0 - busy) if over > 1.0 else 0.0
    slot_s = queue.process.wait_s(queue.probabilities, queue.percentile)
    return slot_s + step_s + prompts_s + step_s + prefill_s
