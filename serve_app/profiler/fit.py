"""Samples to a FittedModel with its statistics. Pure: no files, no clock.

    step time    t = t0 + a n + b kv + c prefill [+ q pairs] [+ d max(0, n + prefill - knee)]
    step energy  E = e0 + e1 n + e2 kv + e3 prefill [+ e4 pairs] [+ e5 max(0, n + prefill - knee)]

n: sequences in the step, kv: their context tokens summed, prefill: prompt tokens computed (the
forms of `policies.model`). A steady window's means obey the same equations, because its steps are
alike; a window in which a batch fills up is not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from policies.core.errors import NotFitted
from policies.model.fitted import Bands, FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel
from serve_app.profiler.checks import check_samples
from serve_app.profiler.equation import BASE_TERMS, Equation, equation
from serve_app.profiler.learning import Learned, learning_curve
from serve_app.profiler.samples import Kind, Phase, Sample, unlimited
from serve_app.profiler.yardstick import judged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from serve_app.profiler.regression import Floats

LATENCY_TERMS = (
    "t0_s",
    "a_s_per_seq",
    "b_s_per_kv_token",
    "c_s_per_prefill_token",
    "q_s_per_attended_pair",
    "d_s_per_token_beyond_knee",
)
POWER_TERMS = (
    "e0_joules_per_step",
    "e1_joules_per_seq",
    "e2_joules_per_kv_token",
    "e3_joules_per_prefill_token",
    "e4_joules_per_attended_pair",
    "e5_joules_per_token_beyond_knee",
)
NOTHING_RATIO = 1e-6  # of the shortest step: what is below is rounding
DOUBTFUL_RATIO = 0.15  # a region whose median held-out error is larger should not be trusted


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose model this is. `provenance` is written into the profile as it stands; `num_devices`:
    GPUs of the replica, whose power limit and natural draw are each one's own."""

    name: str
    model: str
    provenance: Mapping[str, str]
    num_devices: int = 1


@dataclass(frozen=True, kw_only=True)
class Region:
    """A part of the sweep with its held-out errors. `doubtful`: not to be trusted."""

    name: str
    points: int
    step_time_median_ratio: float
    step_time_worst_ratio: float

    @property
    def doubtful(self) -> bool:
        """Whether the median error is beyond what a decision may rest on."""
        return self.step_time_median_ratio > DOUBTFUL_RATIO


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The model, both equations, the errors by region, what a part of the points would have told,
    and samples that were left out because they were not steady."""

    model: FittedModel
    latency: Equation
    power: Equation
    regions: tuple[Region, ...]
    learned: tuple[Learned, ...]
    unsteady: tuple[str, ...]


def fit(
    samples: Sequence[Sample], identity: Identity, *, allow_disturbed: bool = False
) -> FitResult:
    """The model of these samples. ConfigError or NotFitted with the reason when there is none.

    Disturbed samples (`steady` false, or taken while the machine was slow: `yardstick`) are left
    out unless `allow_disturbed`.
    """
    samples = judged(unlimited(samples))
    check_samples(samples)
    windows = [s for s in samples if s.kind is not Kind.IDLE and s.phase is Phase.STEADY]
    rows = [s for s in windows if s.steady or allow_disturbed]
    unsteady = tuple(f"{s.point} #{s.repeat}" for s in windows if not s.steady)
    if len(rows) < 2 * BASE_TERMS:
        raise NotFitted(
            f"{len(unsteady)} of {len(windows)} samples were disturbed (other processes took the "
            f"cores, or the step time drifted), {len(rows)} are left; needed: "
            f"{2 * BASE_TERMS}. Run again on a quiet machine"
        )
    idle_watts = _idle_watts(samples)
    latency = equation("step time, s", LATENCY_TERMS, rows, step_times(rows))
    metered = [s for s in rows if s.joules_per_step is not None]
    power = equation("step energy, J", POWER_TERMS, metered, _joules(metered, idle_watts))
    smallest = (step_times(rows).min(), _joules(metered, idle_watts).min())
    for term, least in zip((latency.terms[0], power.terms[0]), smallest, strict=True):
        if term.value <= NOTHING_RATIO * least:
            raise NotFitted(f"{term.name} is 0: the samples do not show the cost of a step itself")
    regions = _regions(rows, latency)
    doubtful = ", ".join(region.name for region in regions if region.doubtful)
    model = FittedModel(
        name=identity.name,
        model=identity.model,
        device=rows[0].device,
        latency=_latency_model(latency),
        power=_power_model(power, idle_watts, metered, identity.num_devices),
        valid=_valid_range(rows),
        residuals=Residuals(
            step_time_median_ratio=latency.held_out_median_ratio,
            step_time_p95_ratio=latency.held_out_p95_ratio,
            energy_median_ratio=power.held_out_median_ratio,
            samples=len(rows),
        ),
        bands=_bands(rows, latency, power),
        provenance=dict(identity.provenance) | {"doubtful": doubtful or "none"},
    )
    return FitResult(
        model=model,
        latency=latency,
        power=power,
        regions=regions,
        learned=learning_curve(rows, step_times(rows)),
        unsteady=unsteady,
    )


def step_times(samples: Sequence[Sample]) -> Floats:
    """Step time of each sample, seconds."""
    return np.array([s.step_time_s for s in samples], dtype=np.float64)


def _latency_model(latency: Equation) -> LatencyModel:
    return LatencyModel(
        **{name: latency.value(name) for name in LATENCY_TERMS},
        knee_tokens=latency.knee_tokens or 0.0,
    )


def _power_model(
    power: Equation, idle_watts: float, rows: Sequence[Sample], num_devices: int
) -> PowerModel:
    terms: dict[str, Any] = {name: power.value(name) for name in POWER_TERMS}
    draws = [s.gpu_draw_watts for s in rows if s.gpu_draw_watts is not None]
    return PowerModel(
        idle_watts=idle_watts,
        knee_tokens=power.knee_tokens or 0.0,
        natural_draw_watts=max(draws) / num_devices if draws else None,
        num_devices=num_devices,
        **terms,
    )


def _regions(samples: Sequence[Sample], latency: Equation) -> tuple[Region, ...]:
    """Held-out errors of decode by batch size, of prefill by length, and of mixed steps."""
    names: dict[str, list[float]] = {}
    for sample in sorted({s.point: s for s in samples}.values(), key=_order):
        names.setdefault(_region(sample), []).append(latency.errors[sample.point])
    return tuple(
        Region(
            name=name,
            points=len(errors),
            step_time_median_ratio=float(median(errors)),
            step_time_worst_ratio=max(errors),
        )
        for name, errors in names.items()
    )


def _order(sample: Sample) -> tuple[str, float, float]:
    return sample.kind.value, sample.num_seqs or 0.0, sample.prefill_tokens or 0.0


def _region(sample: Sample) -> str:
    seqs, prompt = round(sample.num_seqs or 0.0), round(sample.prefill_tokens or 0.0)
    if sample.kind is Kind.DECODE:
        return next(
            f"decode, batch {low} to {high}"
            for low, high in ((1, 4), (5, 16), (17, 64), (65, 256), (257, 1 << 20))
            if seqs <= high
        )
    if sample.kind is Kind.MIXED:
        return "decode and a prompt in one step"
    return "prompts up to 256 tokens" if prompt <= 256 else "prompts above 256 tokens"


def _bands(samples: Sequence[Sample], latency: Equation, power: Equation) -> Bands:
    """The error that 95 % of the held-out points stay within, by what the step does."""
    kinds = {s.point: s.kind for s in samples}
    decode = [e for name, e in latency.errors.items() if kinds[name] is not Kind.PREFILL]
    prefill = [e for name, e in latency.errors.items() if kinds[name] is Kind.PREFILL]
    return Bands(
        step_time_ratio=_p95(decode),
        prefill_ratio=_p95(prefill),
        energy_ratio=_p95(power.errors.values()),
    )


def _p95(errors: Iterable[float]) -> float | None:
    values = list(errors)
    return float(np.percentile(values, 95)) if values else None


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


def _valid_range(samples: Sequence[Sample]) -> ValidRange:
    decode = [s for s in samples if s.kind is Kind.DECODE]
    return ValidRange(
        max_num_seqs=round(max(s.num_seqs or 0.0 for s in decode)),
        max_context_tokens=max(s.max_context_tokens for s in samples),
        max_prompt_tokens=max(s.max_context_tokens for s in samples if s.prefill_tokens),
    )
