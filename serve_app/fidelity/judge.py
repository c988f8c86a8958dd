"""Which runs the machine itself disturbed, by what does not depend on their outcome. Pure.

See `serve_app.profiler.yardstick` for the neighbour that cannot be seen. A run is judged against
the quick state of the same session: one request alone before and after it, and the small fixed work
that was timed all through it. From when a second replica starts until it is gone that work tells
nothing: it shares memory with our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from serve_app.fidelity.observed import Observed
from serve_app.fidelity.pulse import WINDOW_S
from serve_app.profiler.yardstick import QUICK_PERCENTILE, SLOW_RATIO

MAX_FOREIGN_CORES = 0.1
MAX_LAG_S = 0.25  # of 99 of 100 sendings: beyond it, it is another load than planned
SLOW_PULSE_RATIO = 1.08  # against the quick state; the pulse itself repeats within 3 %
MAX_SLOW_SHARE = 0.25  # of a run's windows
STOP_S = 5.0  # Serve lets a replica end for so long


def disturbances(runs: Sequence[Observed]) -> list[tuple[str, ...]]:
    """Per run why it does not count; empty where it does."""
    yardstick_s = _quick([y for run in runs for y in _yardsticks(run)])
    read_s = _quick([value for run in runs for value in single_windows_s(run)])
    return [_of_one(run, yardstick_s, read_s) for run in runs]


def single_windows_s(run: Observed) -> list[float]:
    """The small fixed work in the windows in which one replica was there, and none started."""
    asked = [life.asked_s for life in run.lives if life.asked_s is not None]
    stopping = [life.stopping_s for life in run.lives if life.stopping_s is not None]
    begin_s = min(asked, default=math.inf)
    end_s = max(stopping, default=math.inf) + STOP_S
    return [
        value
        for at, value in enumerate(run.conditions.read_s)
        if (at + 1) * WINDOW_S <= begin_s or at * WINDOW_S >= end_s
    ]


def slow_share(run: Observed, quick_s: float | None) -> float:
    """Share of those windows in which the small fixed work took longer than it can."""
    windows = single_windows_s(run)
    if quick_s is None or not windows:
        return 0.0
    return sum(value > SLOW_PULSE_RATIO * quick_s for value in windows) / len(windows)


def _of_one(run: Observed, yardstick_s: float | None, read_s: float | None) -> tuple[str, ...]:
    found = []
    if run.completed < run.arrived:
        found.append(f"{run.arrived - run.completed} requests failed")
    cached = sum(request.cached_tokens > 0 for request in run.requests)
    if cached:
        found.append(f"{cached} prompts were in the prefix cache, which the simulator has not")
    if run.conditions.foreign_cores > MAX_FOREIGN_CORES:
        found.append(f"other processes used {run.conditions.foreign_cores:.2f} cores")
    if run.schedule_lag_p99_s > MAX_LAG_S:
        found.append(f"requests were sent up to {run.schedule_lag_p99_s:.2f} s late")
    slowest_s = max(_yardsticks(run), default=0.0)
    if yardstick_s is not None and slowest_s > SLOW_RATIO * yardstick_s:
        found.append(f"one request alone took {slowest_s / yardstick_s:.2f} of its quick time")
    share = slow_share(run, read_s)
    if share > MAX_SLOW_SHARE:
        found.append(f"the machine was slow in {share:.0%} of the run")
    return tuple(found)


def _yardsticks(run: Observed) -> list[float]:
    both = (run.conditions.yardstick_before_s, run.conditions.yardstick_after_s)
    return [one for one in both if one is not None]


def _quick(values: list[float]) -> float | None:
    return float(np.percentile(values, QUICK_PERCENTILE)) if values else None
