"""What a trace asks of a fleet: its mean and its peak, and how many replicas those need."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from policies.core.errors import ConfigError
from policies.core.lengths import bins_of, mean_of
from policies.core.types import SLO, Load
from policies.model.fitted import FittedModel
from policies.model.service import Workload, service_table
from policies.sim.blocks import Block
from policies.static_peak import PEAK_WINDOW_S

ROUNDS = 8
BUSIEST = 0.7  # of its capacity: what a replica is given where no load holds the targets


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceLoad:
    """Requests/s in the mean and over the busiest minute, and the lengths of all requests as the
    bins of `policies.core.lengths`."""

    mean_per_s: float
    peak_per_s: float
    prompt_bins: tuple[float, ...]
    output_bins: tuple[float, ...]

    def at(self, rate_per_s: float) -> Load:
        """These lengths at that rate."""
        return Load(
            arrival_rate_per_s=rate_per_s,
            prompt_tokens=mean_of(self.prompt_bins),
            output_tokens=max(mean_of(self.output_bins), 1.0),
        )


def load_of(block: Block) -> TraceLoad:
    """The load of a whole trace. Raises ConfigError where it is empty."""
    times = block.arrival_s
    prompts = bins_of(block.prompt_tokens.astype(np.float64))
    outputs = bins_of(block.output_tokens.astype(np.float64))
    if prompts is None or outputs is None:
        raise ConfigError("the trace is empty: no load to be sized for")
    inside = np.arange(len(times)) - np.searchsorted(times, times - PEAK_WINDOW_S, side="right") + 1
    return TraceLoad(
        mean_per_s=len(times) / max(float(times[-1]), 1.0),
        peak_per_s=float(inside.max()) / PEAK_WINDOW_S,
        prompt_bins=prompts,
        output_bins=outputs,
    )


def replicas_for(
    model: FittedModel, load: TraceLoad, rate_per_s: float, slo: SLO, engine: tuple[int, int]
) -> int:
    """The fewest replicas at full power of which the service table says that they hold the SLO for
    those requests that can be in time. `engine`: its token budget and its largest batch."""
    count = 1
    for _ in range(ROUNDS):  # more replicas wait less for each other: to a fixed point
        table = service_table(
            model,
            (None,),
            Workload(
                prompt_bins=load.prompt_bins,
                output_bins=load.output_bins,
                ttft_s=slo.ttft_s,
                tpot_s=slo.tpot_s,
                budget_tokens=engine[0],
                max_num_seqs=engine[1],
                pool=count,
            ),
        )
        floor = float(table.missed_ratio[:, 0].min())
        most_per_s = float(table.most_per_s(1.0 - slo.percentile + floor)[0])
        if most_per_s <= 0.0:
            most_per_s = BUSIEST * model.latency.capacity_per_s(load.at(rate_per_s), engine[1])
        found = max(math.ceil(rate_per_s / most_per_s - 1e-9), 1)
        if found == count:
            break
        count = found
    return count
