"""What a trace is like, in the figures of `jouleserve workload` and a few of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from policies.core.errors import ConfigError
from policies.model.batch import Floats
from policies.model.binned import Ints, Requests, bin_requests
from policies.sim.blocks import joined
from serve_app.traces.load import Trace
from serve_app.workload.arrivals import arrivals_of, day_shape, percentiles, rates_over_time
from serve_app.workload.describe import Description, LengthFigures
from serve_app.workload.describe import document as workload_document
from serve_app.workload.source import Workload

SPARKS = "▁▂▃▄▅▆▇█"
MOST_SPARKS = 72
SPREAD_WINDOW_S = 600.0
MIN_SPREAD_WINDOWS = 12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TraceFigures:
    """`peak_to_trough_ratio`: of the mean rates over `spread_window_s`; None where a window is
    empty. `rates_per_s`: over up to MOST_SPARKS equal spans of the trace."""

    name: str
    duration_s: float
    expected_requests: float
    peak_to_trough_ratio: float | None
    spread_window_s: float
    rates_per_s: tuple[float, ...]
    described: Description


def figures_of(trace: Trace) -> TraceFigures:
    """Generate or read all of a trace and count. Raises ConfigError for one without requests."""
    workload = _workload(trace)
    requests = workload.requests
    assert requests is not None
    window_s = SPREAD_WINDOW_S
    if trace.duration_s < MIN_SPREAD_WINDOWS * SPREAD_WINDOW_S:
        window_s = trace.duration_s / MIN_SPREAD_WINDOWS
    spread = rates_over_time(workload, min(window_s, workload.end_s or window_s)).rates_per_s
    return TraceFigures(
        name=trace.name,
        duration_s=trace.duration_s,
        expected_requests=trace.expected_requests,
        peak_to_trough_ratio=float(spread.max() / spread.min()) if spread.min() > 0 else None,
        spread_window_s=window_s,
        rates_per_s=_spans(workload.arrivals_s, trace.duration_s),
        described=Description(
            workload=workload,
            arrivals=arrivals_of(workload),
            day=day_shape(workload),
            prompt=_lengths(requests.prompt_tokens),
            output=_lengths(requests.output_tokens),
            bins=bin_requests(requests),
            energy=None,
            notes=("hours count from the start of the trace",),
        ),
    )


def document(found: TraceFigures) -> dict[str, Any]:
    """One JSON object; null is "not known"."""
    own = {one.name: getattr(found, one.name) for one in fields(found) if one.name != "described"}
    described = workload_document(found.described)
    for key in ("energy", "start", "model", "replicas", "left_out"):
        del described[key]
    return own | described


def sparkline(rates: tuple[float, ...]) -> str:
    """The rates as blocks, the highest one whole; a rate of 0 is a space."""
    highest = max(rates, default=0.0)
    if highest <= 0:
        return " " * len(rates)
    steps = (min(len(SPARKS) - 1, int(rate / highest * len(SPARKS))) for rate in rates)
    return "".join(
        SPARKS[step] if rate > 0 else " " for step, rate in zip(steps, rates, strict=True)
    )


def _workload(trace: Trace) -> Workload:
    block = joined(trace.blocks())
    if not block.rows:
        raise ConfigError(f"{trace.name}: no request; raise the rate or the duration")
    requests = Requests(
        arrival_s=block.arrival_s,
        prompt_tokens=block.prompt_tokens,
        output_tokens=block.output_tokens,
        replica=np.zeros(block.rows, dtype=np.int64),
        joules=np.full(block.rows, np.nan),
    )
    return Workload(
        source=trace.name,
        format=trace.description,
        start=None,
        arrivals_s=requests.arrival_s,
        requests=requests,
    )


def _spans(arrivals_s: Floats, duration_s: float) -> tuple[float, ...]:
    spans = max(1, min(MOST_SPARKS, len(arrivals_s) // 4))
    end_s = max(duration_s, float(arrivals_s[-1])) or 1.0
    counts, _ = np.histogram(arrivals_s, bins=spans, range=(0.0, end_s))
    return tuple((counts * spans / end_s).tolist())


def _lengths(tokens: Ints) -> LengthFigures:
    values: Floats = tokens.astype(np.float64)
    p50, p90, p99 = percentiles(values)
    return LengthFigures(
        mean=float(values.mean()), p50=p50, p90=p90, p99=p99, max=float(values.max())
    )
