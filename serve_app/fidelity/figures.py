"""A run in figures, and how far the simulated ones are from the measured ones. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from policies.core.slo import percentile
from serve_app.fidelity.observed import Observed
from serve_app.fidelity.simulated import Played

TARGET_RATIO = 0.15  # asked of every figure
AIM_RATIO = 0.10


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One run. Percentiles by nearest rank, seconds; None where nothing is known.

    `tokens_per_s`: output tokens over the time from the beginning to the end of the last request.
    `joules_per_request`: of all replicas over that time, starts and idle ones in it.
    """

    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    tokens_per_s: float | None = None
    joules_per_request: float | None = None


NAMES = tuple(field.name for field in fields(Figures))


def measured_figures(run: Observed) -> Figures:
    """As the replicas recorded them and the meter counted."""
    requests = run.requests
    tokens = sum(request.output_tokens for request in requests)
    return Figures(
        **_latencies(
            [request.ttft_s for request in requests],
            [request.tpot_s for request in requests if request.tpot_s is not None],
        ),
        tokens_per_s=tokens / run.end_s,
        joules_per_request=run.joules(0.0, run.end_s) / len(requests),
    )


def client_figures(run: Observed) -> Figures:
    """As the client saw them, behind proxy and ingress, in batches of Ray's streaming interval."""
    return Figures(**_latencies(run.client_ttft_s, run.client_tpot_s))


def simulated_figures(run: Observed, played: Played) -> Figures:
    """Of the same run, as it was played."""
    tokens = sum(request.output_tokens for request in run.requests)
    tpot_s = [float(value) for value in played.tpot_s if not math.isnan(value)]
    return Figures(
        **_latencies([float(value) for value in played.ttft_s], tpot_s),
        tokens_per_s=tokens / float(played.end_s.max()),
        joules_per_request=played.joules / len(run.requests),
    )


def median_figures(all_of_them: Sequence[Figures]) -> Figures:
    """Figure by figure the median over runs; None where one of them is not known."""
    found: dict[str, float | None] = {}
    for name in NAMES:
        values = [getattr(one, name) for one in all_of_them]
        known = [value for value in values if value is not None]
        found[name] = statistics.median(known) if known and len(known) == len(values) else None
    return Figures(**found)


def errors(simulated: Figures, measured: Figures) -> dict[str, float | None]:
    """(simulated - measured) / measured by figure; None where one is not known."""
    found: dict[str, float | None] = {}
    for name, value in asdict(simulated).items():
        true = getattr(measured, name)
        found[name] = None if value is None or not true else (value - true) / true
    return found


def worst(found: dict[str, float | None]) -> float | None:
    """The largest error without its sign; None where one is not known."""
    values = list(found.values())
    known = [abs(value) for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _latencies(ttft_s: Iterable[float], tpot_s: Iterable[float]) -> dict[str, float | None]:
    ttft, tpot = list(ttft_s), list(tpot_s)
    return {
        "ttft_p50_s": percentile(ttft, 0.5),
        "ttft_p99_s": percentile(ttft, 0.99),
        "tpot_p50_s": percentile(tpot, 0.5),
        "tpot_p99_s": percentile(tpot, 0.99),
    }
