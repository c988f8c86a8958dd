"""A batch that is held for long, simulated: what it costs per output token, and how fast it is.

One replica whose cap is the batch, under a line that never runs empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from policies.core.types import Bounds, ControlSettings, Load
from policies.model.fitted import FittedModel
from policies.static import Static
from serve_app.simulator.compiled import keep_compiled

if TYPE_CHECKING:
    from policies.sim.outcome import SimResult

BUDGET_TOKENS = 2048
GENERATIONS = 40  # of the batch, between the shorter and the longer run
SPREAD_GENERATIONS = 160  # where lengths are drawn
TAIL_GENERATIONS = 8  # after these, which both runs end with, nothing before them is there
LEAST_REQUESTS = 500
TICKS = 500  # of the shorter run: how finely its end is known
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A batch that is held: its sequences, their prompt, and their mean output length, which all
    have (`spread` False) or which is the mean of geometric ones."""

    batch: int
    prompt_tokens: int
    output_tokens: float
    spread: bool = False

    def outputs(self, count: int) -> Ints:
        """Output tokens of the first `batch` requests, which end in turn as in a long run, and of
        `count` more."""
        mean = self.output_tokens
        first = np.ceil(mean * (np.arange(self.batch) + 1.0) / self.batch)
        if self.spread:
            later = np.random.default_rng(0).geometric(1.0 / mean, count)
        else:  # the two whole numbers next to the mean
            later = np.diff(np.floor(np.arange(count + 1) * mean))
        found: Ints = np.concatenate([np.maximum(first, 1.0), later]).astype(np.int64)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """What a held batch comes to, simulated: of the whole replica, per output token and second."""

    joules_per_token: float
    tokens_per_s: float


def held_batch(model: FittedModel, held: Held) -> Steady:
    """One replica with `batch` sequences at all times, from two runs that end with the same
    requests and of which one is longer: their difference holds neither start nor end."""
    generations = SPREAD_GENERATIONS if held.spread else GENERATIONS
    more = max(generations * held.batch, LEAST_REQUESTS)
    outputs = held.outputs(2 * more + TAIL_GENERATIONS * held.batch)
    tail = outputs[-TAIL_GENERATIONS * held.batch :]
    short, long = (
        _play(model, held, np.concatenate([outputs[: held.batch + count], tail]), more)
        for count in (more, 2 * more)
    )
    tokens = long.output_tokens - short.output_tokens
    return Steady(
        joules_per_token=(long.joules - short.joules) / tokens,
        tokens_per_s=tokens / (long.duration_s - short.duration_s),
    )


def _play(model: FittedModel, held: Held, outputs: Ints, more: int) -> SimResult:
    keep_compiled()
    from policies.sim.fleet import simulate
    from policies.sim.outcome import SimSettings

    count = len(outputs)
    load = Load(
        arrival_rate_per_s=1.0,
        prompt_tokens=held.prompt_tokens,
        output_tokens=held.output_tokens,
    )
    step_s = model.latency.curve(load).mean(held.batch)
    settings = SimSettings(
        control=ControlSettings(bounds=Bounds(max_replicas=1, max_num_seqs=held.batch)),
        tick_s=more * held.output_tokens / held.batch * step_s / TICKS,
        replica_every=1 << 40,
        fleet_every=1 << 40,
        tails_every=1 << 40,
        max_num_batched_tokens=BUDGET_TOKENS,
        max_outstanding=count + 2,
        drain_s=math.inf,
    )
    prompts = np.full(count, held.prompt_tokens, dtype=np.int64)
    return simulate([(np.zeros(count), prompts, outputs)], model, Static(num_replicas=1), settings)
