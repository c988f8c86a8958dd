"""What arrives over a day: a constant rate, or a trace by the hour with its busiest minutes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from policies.core.errors import ConfigError
from policies.core.types import Load
from policies.model.batch import Floats
from serve_app.workload.arrivals import HOUR_S, MINUTE_S, rates_over_time
from serve_app.workload.source import Workload, read_workload

Lengths = tuple[float, float]  # mean prompt and output tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """An hour, or all of a shorter trace: its mean load and that of its busy minutes. None: nothing
    arrives."""

    mean: Load | None
    busy: Load | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """A load over time. `peak`: what to plan for; `mean`: over all of it. The `slots` are of equal
    width and repeat to fill a day; `start`: the calendar time of the first, None = not known."""

    source: str | None
    peak: Load
    mean: Load
    slots: tuple[Slot, ...]
    slot_s: float = HOUR_S
    start: datetime | None = None


def constant(load: Load) -> Demand:
    """The same load all day."""
    return Demand(source=None, peak=load, mean=load, slots=(Slot(mean=load, busy=load),) * 24)


def read_demand(
    path: Path, percentile_rate: float, lengths: Lengths | None, model: str | None = None
) -> Demand:
    """The demand of a trace file or a folder of request logs. Raises ConfigError.

    `percentile_rate`: the share of its minutes that the planned rate covers. `lengths`: for a rate
    curve, which has none; None for a trace, which has its own. `model`: one of a log's models.
    """
    if not 0.0 < percentile_rate <= 1.0:
        raise ConfigError(
            f"--trace-percentile-rate {percentile_rate:g}: allowed: a number above 0 and at most 1"
        )
    workload = read_workload(path, model)
    _check(workload, lengths)
    every = lengths or _mean_lengths(workload)
    slot_s = workload.end_s / max(1, round(workload.end_s / HOUR_S))
    rates = rates_over_time(workload, slot_s).rates_per_s
    minutes = rates_over_time(workload, min(MINUTE_S, workload.end_s))
    slot_of_minute = minutes.edges_s[:-1] // slot_s
    by_slot = _lengths_by_slot(workload, every, slot_s, len(rates))
    peak_per_s = _percentile(minutes.rates_per_s, percentile_rate)
    if not peak_per_s > 0.0:
        raise ConfigError(
            f"--trace-percentile-rate {percentile_rate:g}: nothing arrives in that share of minutes"
        )
    slots = []
    for index, rate in enumerate(rates.tolist()):
        inside = minutes.rates_per_s[slot_of_minute == index]
        busy = max(rate, _percentile(inside, percentile_rate)) if len(inside) else rate
        loads = (_load(each, by_slot[index]) if rate > 0.0 else None for each in (rate, busy))
        slots.append(Slot(mean=next(loads), busy=next(loads)))
    return Demand(
        source=workload.source,
        peak=_load(peak_per_s, every),
        mean=_load(float(rates.mean()), every),
        slots=tuple(slots),
        slot_s=slot_s,
        start=workload.start,
    )


def _check(workload: Workload, lengths: Lengths | None) -> None:
    where = f"--trace {workload.source}"
    if workload.end_s <= 0.0:
        raise ConfigError(f"{where}: one moment has no rate; expected requests over time")
    if workload.curve is not None:
        if lengths is None:
            raise ConfigError(
                f"{where}: a rate curve has no lengths; give --prompt-tokens and --output-tokens"
            )
        if not max(workload.curve.rates_per_s) > 0.0:
            raise ConfigError(f"{where}: every rate is 0; expected requests")
    elif lengths is not None:
        raise ConfigError(f"{where}: has lengths of its own; leave out --prompt-tokens and so on")
    elif workload.requests is None:
        raise ConfigError(f"{where}: no request of known lengths")


def _mean_lengths(workload: Workload) -> Lengths:
    requests = workload.requests
    assert requests is not None, "checked: no lengths were given"
    return float(requests.prompt_tokens.mean()), float(requests.output_tokens.mean())


def _lengths_by_slot(
    workload: Workload, every: Lengths, slot_s: float, count: int
) -> list[Lengths]:
    """The mean lengths of each slot's own requests; those of all where it has none."""
    requests = workload.requests
    if requests is None:
        return [every] * count
    place = np.minimum(requests.arrival_s // slot_s, count - 1)
    found = []
    for index in range(count):
        inside = requests.where(place == index)
        means = inside.prompt_tokens, inside.output_tokens
        found.append((float(means[0].mean()), float(means[1].mean())) if len(inside) else every)
    return found


def _percentile(rates_per_s: Floats, share: float) -> float:
    """By nearest rank: always one of the rates."""
    return float(np.quantile(rates_per_s, share, method="inverted_cdf"))


def _load(rate_per_s: float, lengths: Lengths) -> Load:
    return Load(arrival_rate_per_s=rate_per_s, prompt_tokens=lengths[0], output_tokens=lengths[1])
