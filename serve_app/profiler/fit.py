"""Samples to a FittedModel with its statistics. Pure: no files, no clock.

    step time    t = t0 + a n + b kv + c prefill
    step energy  E = e0 + e1 n + e2 kv + e3 prefill

n: sequences in the step, kv: their context tokens summed, prefill: prompt tokens computed (the
forms of `policies.model`). A window's means obey the same equations, because they are linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from policies.core.errors import NotFitted
from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel
from serve_app.profiler import regression
from serve_app.profiler.checks import check_samples
from serve_app.profiler.samples import Kind, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from serve_app.profiler.regression import Floats, HeldOut

MAX_CONDITION_NUMBER = 1e4
LATENCY_TERMS = ("t0_s", "a_s_per_seq", "b_s_per_kv_token", "c_s_per_prefill_token")
POWER_TERMS = (
    "e0_joules_per_step",
    "e1_joules_per_seq",
    "e2_joules_per_kv_token",
    "e3_joules_per_prefill_token",
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose model this is. `provenance` is written into the profile as it stands."""

    name: str
    model: str
    provenance: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One coefficient with its bootstrap standard error and 95 % interval."""

    name: str
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class WorstPoint:
    """A sample that the model misses most when its point is held out."""

    point: str
    repeat: int
    measured: float
    predicted: float
    held_out_error_ratio: float


@dataclass(frozen=True, kw_only=True)
class Equation:
    """One fitted equation. `rows`: samples used; `trimmed`: those left out as outliers (they still
    count in the held-out errors); `r_squared` over the rows kept."""

    quantity: str
    terms: tuple[Term, ...]
    rows: int
    points: int
    trimmed: tuple[str, ...]
    r_squared: float
    condition_number: float
    held_out_median_ratio: float
    held_out_p95_ratio: float
    worst: tuple[WorstPoint, ...]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The model, both equations, and samples that were left out because they were not steady."""

    model: FittedModel
    latency: Equation
    power: Equation
    unsteady: tuple[str, ...]


def fit(
    samples: Sequence[Sample], identity: Identity, *, allow_disturbed: bool = False
) -> FitResult:
    """The model of these samples. ConfigError or NotFitted with the reason when there is none.

    Disturbed samples (`steady` false) are left out unless `allow_disturbed`.
    """
    check_samples(samples)
    rows = [s for s in samples if s.kind is not Kind.IDLE and (s.steady or allow_disturbed)]
    unsteady = tuple(f"{s.point} #{s.repeat}" for s in samples if not s.steady)
    if len(rows) < 2 * len(LATENCY_TERMS):
        raise NotFitted(
            f"{len(unsteady)} of {len(samples)} samples were disturbed (other processes took the "
            f"cores, or the step time drifted), {len(rows)} are left; needed: "
            f"{2 * len(LATENCY_TERMS)}. Run again on a quiet machine"
        )
    idle_watts = _idle_watts(samples)
    latency = _equation("step time, s", LATENCY_TERMS, rows, _times(rows))
    metered = [s for s in rows if s.joules_per_step is not None]
    power = _equation("step energy, J", POWER_TERMS, metered, _joules(metered, idle_watts))
    for term in (latency.terms[0], power.terms[0]):
        if term.value <= 0.0:
            raise NotFitted(f"{term.name} is 0: the samples do not show the cost of a step itself")
    model = FittedModel(
        name=identity.name,
        model=identity.model,
        device=rows[0].device,
        latency=LatencyModel(**{term.name: term.value for term in latency.terms}),
        power=_power_model(power, idle_watts, _natural_draw_watts(metered)),
        valid=_valid_range(rows),
        residuals=Residuals(
            step_time_median_ratio=latency.held_out_median_ratio,
            step_time_p95_ratio=latency.held_out_p95_ratio,
            energy_median_ratio=power.held_out_median_ratio,
            samples=len(rows),
        ),
        provenance=dict(identity.provenance),
    )
    return FitResult(model=model, latency=latency, power=power, unsteady=unsteady)


def _equation(
    quantity: str, names: Sequence[str], samples: Sequence[Sample], y: Floats
) -> Equation:
    if len(samples) < 2 * len(names):
        reasons = sorted({s.reason for s in samples if s.reason})
        raise NotFitted(
            f"{quantity}: {len(samples)} metered samples; needed: {2 * len(names)}"
            + (f" ({'; '.join(reasons)})" if reasons else "")
        )
    x = _matrix(samples)
    condition = regression.condition_number(x)
    if condition > MAX_CONDITION_NUMBER:
        raise NotFitted(
            f"{quantity}: the columns 1, num_seqs, kv_tokens, prefill_tokens cannot be told apart "
            f"(condition number {condition:.3g}; allowed: {MAX_CONDITION_NUMBER:g})"
        )
    groups = [sample.point for sample in samples]
    solved = regression.regress(x, y)
    error, low, high = regression.standard_errors(x, y, groups)
    held = regression.held_out(x, y, groups)
    predicted = solved.predict(x)
    return Equation(
        quantity=quantity,
        terms=tuple(
            Term(name=name, value=float(v), standard_error=float(e), low=float(lo), high=float(hi))
            for name, v, e, lo, hi in zip(names, solved.coefficients, error, low, high, strict=True)
        ),
        rows=len(samples),
        points=len(set(groups)),
        trimmed=tuple(
            f"{s.point} #{s.repeat}" for s, k in zip(samples, solved.kept, strict=True) if not k
        ),
        r_squared=regression.r_squared(y[solved.kept], predicted[solved.kept]),
        condition_number=condition,
        held_out_median_ratio=held.median,
        held_out_p95_ratio=held.p95,
        worst=_worst(samples, y, predicted, held),
    )


def _power_model(
    power: Equation, idle_watts: float, natural_draw_watts: float | None
) -> PowerModel:
    e0, e1, e2, e3 = (term.value for term in power.terms)
    return PowerModel(
        idle_watts=idle_watts,
        e0_joules_per_step=e0,
        e1_joules_per_seq=e1,
        e2_joules_per_kv_token=e2,
        e3_joules_per_prefill_token=e3,
        natural_draw_watts=natural_draw_watts,
    )


def _matrix(samples: Sequence[Sample]) -> Floats:
    rows = [(1.0, s.num_seqs, s.kv_tokens, s.prefill_tokens) for s in samples]
    return np.array(rows, dtype=np.float64)


def _times(samples: Sequence[Sample]) -> Floats:
    return np.array([s.step_time_s for s in samples], dtype=np.float64)


def _joules(samples: Sequence[Sample], idle_watts: float) -> Floats:
    """Joules of the steps alone: what is drawn between steps is idle energy, at the idle draw."""
    values = [
        max((s.joules_per_step or 0.0) - idle_watts * s.gap_s_per_step, 1e-12) for s in samples
    ]
    return np.array(values, dtype=np.float64)


def _idle_watts(samples: Sequence[Sample]) -> float:
    idle = [s for s in samples if s.kind is Kind.IDLE]
    idle = [s for s in idle if s.steady] or idle
    watts = [s.draw_watts for s in idle if s.draw_watts is not None]
    if not watts:
        reasons = sorted({s.reason for s in idle if s.reason}) or ["no idle sample"]
        raise NotFitted(f"idle draw was not measured: {'; '.join(reasons)}")
    return float(median(watts))


def _natural_draw_watts(samples: Sequence[Sample]) -> float | None:
    """The largest draw that a sensor saw; None for an estimate, which knows no hardware limit."""
    draws = [s.draw_watts for s in samples if s.draw_watts is not None]
    measured = all(s.source in {"counter", "integrated"} for s in samples)
    return max(draws) if measured and draws else None


def _valid_range(samples: Sequence[Sample]) -> ValidRange:
    decode = [s for s in samples if s.kind is Kind.DECODE]
    return ValidRange(
        max_num_seqs=round(max(s.num_seqs or 0.0 for s in decode)),
        max_context_tokens=max(s.max_context_tokens for s in samples),
        max_prompt_tokens=max(s.max_context_tokens for s in samples if s.prefill_tokens),
    )


def _worst(
    samples: Sequence[Sample], y: Floats, predicted: Floats, held: HeldOut
) -> tuple[WorstPoint, ...]:
    order = np.argsort(-held.by_row)[:5]
    return tuple(
        WorstPoint(
            point=f"{samples[k].point} {samples[k].phase}",
            repeat=samples[k].repeat,
            measured=float(y[k]),
            predicted=float(predicted[k]),
            held_out_error_ratio=float(held.by_row[k]),
        )
        for k in order
    )
