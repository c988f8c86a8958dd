"""How long the runs of a sweep take, and the window that fits its budget. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve_app.profiler.probe import IDLE_WINDOW_S, MIN_STEPS, SETTLE_STEPS, STRETCH
from serve_app.profiler.samples import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.sweep import Run

MIN_WINDOW_S = 0.6  # CPU time is counted in 10 ms: 2 % of it
MAX_WINDOW_S = 3.0
BUDGET_SHARE = 0.95  # what is planned; the rest is for runs that are repeated
_FIXED_S = 0.4  # quiescing, queueing, settling
_STEP_FLOOR_TOKENS = 32  # a step costs about as much as this many prompt tokens, however small


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What the warm-up found, and the time there is."""

    prefill_tokens_per_s: float
    budget_s: float


def run_seconds(run: Run, timing: Timing, window_s: float) -> float:
    """Expected duration of a run, seconds."""
    point = run.point
    if point.kind is Kind.IDLE:
        return IDLE_WINDOW_S + 2 * _FIXED_S
    fill_s = point.fill_tokens / timing.prefill_tokens_per_s
    step_tokens = point.num_seqs + point.prompt_tokens + _STEP_FLOOR_TOKENS
    step_s = step_tokens / timing.prefill_tokens_per_s
    steady_s = max(window_s, min(MIN_STEPS * step_s, STRETCH * window_s))
    return fill_s + steady_s + SETTLE_STEPS * step_s + _FIXED_S


def window_seconds(runs: Sequence[Run], timing: Timing) -> float:
    """The longest window (0.6 to 3 s) with which all runs fit into the budget; the shortest if
    none does."""
    low_s, high_s = MIN_WINDOW_S, MAX_WINDOW_S
    for _ in range(20):
        middle_s = 0.5 * (low_s + high_s)
        if sum(run_seconds(run, timing, middle_s) for run in runs) > (
            BUDGET_SHARE * timing.budget_s
        ):
            high_s = middle_s
        else:
            low_s = middle_s
    return low_s
