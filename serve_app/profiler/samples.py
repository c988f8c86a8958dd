"""Samples: what was measured in one window, one row each, from the steps and the meter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from serve_app.profiler.steps import drift_ratio, outliers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.steps import Step

STEADY_DRIFT_RATIO = 0.15
STEADY_OUTLIER_RATIO = 0.2


class Kind(StrEnum):
    """What a point exercises."""

    IDLE = "idle"  # engine loaded, no step runs
    DECODE = "decode"  # a fixed batch, one token each per step
    PREFILL = "prefill"  # one prompt per step
    MIXED = "mixed"  # a decoding batch and one prompt per step


class Phase(StrEnum):
    """Which part of a point a sample covers."""

    STEADY = "steady"
    FILL = "fill"  # the prompts of a decode point being computed


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The time from `start_s` to `end_s` (monotonic) and what the meter saw in it.

    `joules` None = no meter could read it, `reason` says why; `gpu_joules`: the GPUs' part of them,
    None where no GPU is metered. `cpu_s`: CPU seconds of the profiler and the engine;
    `frontend_cpu_s`: those of the profiler's own process, outside the engine; `foreign_cpu_s`:
    those of everything else on the host. `crowded`: the two left no core free.
    """

    start_s: float
    end_s: float
    joules: float | None = None
    source: str = "unavailable"
    coverage_ratio: float | None = None
    reason: str = ""
    cpu_s: float | None = None
    frontend_cpu_s: float | None = None
    foreign_cpu_s: float | None = None
    crowded: bool = False
    gpu_joules: float | None = None

    @property
    def duration_s(self) -> float:
        """Length of the window."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One measured window: means over its steps. Step fields are None where no step runs (idle).

    `step_time_s` is the mean without disturbed steps (`outlier_steps`). `steps` may be fractional:
    a step that straddles a border counts by the part inside. `joules_per_step` holds all energy of
    the window; `gap_s_per_step` is the time between steps that goes with it. `power_limit_watts`:
    the limit that a limit sweep had in force on each GPU; None = no limit sweep, the limits are as
    they were found. `gpu_draw_watts`: the GPUs' part of `draw_watts`. `yardstick_s`: what a
    decode step of one sequence took before or after the window, the slower of the two.
    """

    point: str
    kind: Kind
    phase: Phase
    repeat: int
    device: str
    window_s: float
    num_seqs: float | None = None
    kv_tokens: float | None = None
    prefill_tokens: float | None = None
    attended_pairs: float | None = None
    max_context_tokens: int = 0
    steps: float = 0.0
    step_time_s: float | None = None
    step_time_p95_s: float | None = None
    gap_s_per_step: float = 0.0
    outlier_steps: int = 0
    drift_ratio: float | None = None
    steady: bool = True
    joules_per_step: float | None = None
    draw_watts: float | None = None
    source: str = "unavailable"
    coverage_ratio: float | None = None
    reason: str = ""
    cpu_s: float | None = None
    frontend_cpu_s: float | None = None
    foreign_cpu_s: float | None = None
    power_limit_watts: float | None = None
    gpu_draw_watts: float | None = None
    yardstick_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a sample comes from."""

    point: str
    kind: Kind
    phase: Phase
    repeat: int
    device: str
    power_limit_watts: float | None = None
    yardstick_s: float | None = None


def unlimited(samples: Sequence[Sample]) -> list[Sample]:
    """Those of no limit sweep: what the model without a power limit is fitted to."""
    return [sample for sample in samples if sample.power_limit_watts is None]


def idle_sample(origin: Origin, window: Window) -> Sample:
    """The sample of a window without steps."""
    return Sample(
        point=origin.point,
        kind=origin.kind,
        phase=origin.phase,
        repeat=origin.repeat,
        device=origin.device,
        window_s=window.duration_s,
        steady=not window.crowded,
        draw_watts=_ratio(window.joules, window.duration_s),
        source=window.source,
        coverage_ratio=window.coverage_ratio,
        reason=window.reason,
        cpu_s=window.cpu_s,
        frontend_cpu_s=window.frontend_cpu_s,
        foreign_cpu_s=window.foreign_cpu_s,
        power_limit_watts=origin.power_limit_watts,
        gpu_draw_watts=_ratio(window.gpu_joules, window.duration_s),
        yardstick_s=origin.yardstick_s,
    )


def summarize(origin: Origin, steps: Sequence[Step], window: Window) -> Sample | None:
    """The sample of the steps within a window; None when no step lies inside.

    Energy and composition belong to the same window: each step is weighted by the part of its time
    that lies inside. Disturbed steps are left out of the means of time and composition alike.
    """
    inside = [(s, _overlap(s, window)) for s in steps]
    inside = [(s, part) for s, part in inside if part > 0.0]
    if not inside:
        return None
    touched = [s for s, _ in inside]
    weights = np.array([part for _, part in inside])
    count = float(weights.sum())
    busy_s = float(sum(s.time_s * part for s, part in inside))
    disturbed = outliers(touched)
    kept = [(s, p) for (s, p), bad in zip(inside, disturbed, strict=True) if not bad]
    drift = drift_ratio(touched)
    outlier_steps = sum(disturbed)
    return Sample(
        point=origin.point,
        kind=origin.kind,
        phase=origin.phase,
        repeat=origin.repeat,
        device=origin.device,
        window_s=window.duration_s,
        num_seqs=_mean([s.num_seqs for s, _ in kept], [p for _, p in kept]),
        kv_tokens=_mean([s.kv_tokens for s, _ in kept], [p for _, p in kept]),
        prefill_tokens=_mean([s.prefill_tokens for s, _ in kept], [p for _, p in kept]),
        attended_pairs=_mean([s.attended_pairs for s, _ in kept], [p for _, p in kept]),
        max_context_tokens=max(s.max_context_tokens for s in touched),
        steps=count,
        step_time_s=_mean([s.time_s for s, _ in kept], [p for _, p in kept]),
        step_time_p95_s=float(np.percentile([s.time_s for s in touched], 95)),
        gap_s_per_step=max(0.0, window.duration_s - busy_s) / count,
        outlier_steps=outlier_steps,
        drift_ratio=drift,
        steady=not window.crowded and _is_steady(drift, outlier_steps / len(touched)),
        joules_per_step=_ratio(window.joules, count),
        draw_watts=_ratio(window.joules, window.duration_s),
        source=window.source,
        coverage_ratio=window.coverage_ratio,
        reason=window.reason,
        cpu_s=window.cpu_s,
        frontend_cpu_s=window.frontend_cpu_s,
        foreign_cpu_s=window.foreign_cpu_s,
        power_limit_watts=origin.power_limit_watts,
        gpu_draw_watts=_ratio(window.gpu_joules, window.duration_s),
        yardstick_s=origin.yardstick_s,
    )


def _is_steady(drift: float | None, outlier_ratio: float) -> bool:
    return abs(drift or 0.0) <= STEADY_DRIFT_RATIO and outlier_ratio <= STEADY_OUTLIER_RATIO


def _overlap(step: Step, window: Window) -> float:
    """The part of the step's time that lies in the window, 0..1."""
    inside_s = min(step.end_s, window.end_s) - max(step.start_s, window.start_s)
    return min(1.0, max(0.0, inside_s / step.time_s)) if step.time_s > 0.0 else 0.0


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return float(np.average(values, weights=weights)) if weights else fmean(values)


def _ratio(joules: float | None, by: float) -> float | None:
    return None if joules is None or by <= 0.0 else joules / by
