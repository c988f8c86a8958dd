"""How slow the machine was in each run and which runs it spoilt, by what does not depend on their
outcome. Pure.

See `serve_app.profiler.yardstick` for the neighbour that cannot be seen. A small fixed work that
reads memory, as a step does, is timed all through a run. Against the quick state of the session it
says by what factor the machine was slow; the simulator is told, as it is told when requests
arrived. From when a second replica starts until it is gone that work tells nothing, for it shares
memory with our own: what was before and after stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from serve_app.fidelity.observed import Observed
from serve_app.fidelity.pulse import WINDOW_S
from serve_app.profiler.yardstick import QUICK_PERCENTILE

MAX_FOREIGN_CORES = 0.1
MAX_LAG_S = 1.0  # of 99 of 100 sendings: beyond it, it is another load than planned
SMOOTHED = 5  # windows of which the median is taken: one of them repeats within 3 %
MAX_SLOWNESS = 1.3  # in the mean: beyond it, one factor does not say what happened
STOP_S = 5.0  # Serve lets a replica end for so long


def disturbances(runs: Sequence[Observed]) -> list[tuple[str, ...]]:
    """Per run why it does not count; empty where it does."""
    return [_of_one(run, slow) for run, slow in zip(runs, slowness_of(runs), strict=True)]


def slowness_of(runs: Sequence[Observed]) -> list[tuple[float, ...]]:
    """Per run and window of `WINDOW_S` by what factor the machine was slower than it can be, at
    least 1; nothing where nothing was timed."""
    quick_s = _quick([value for run in runs for value in single_windows_s(run)])
    return [_slowness(run, quick_s) for run in runs]


def mean_slowness(slowness: Sequence[float]) -> float:
    """Of a run, in the mean over its windows; 1 where nothing was timed."""
    return math.fsum(slowness) / len(slowness) if slowness else 1.0


def _slowness(run: Observed, quick_s: float | None) -> tuple[float, ...]:
    timed = np.array(run.conditions.read_s)
    single = np.array(_singles(run), dtype=np.int64)
    if quick_s is None or not len(single):
        return ()
    every = np.interp(np.arange(len(timed)), single, timed[single]) / quick_s
    wide = np.pad(every, SMOOTHED // 2, mode="edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(wide, SMOOTHED), axis=1)
    return tuple(np.maximum(medians, 1.0).tolist())


def single_windows_s(run: Observed) -> list[float]:
    """The small fixed work in the windows in which one replica was there, and none started."""
    return [run.conditions.read_s[at] for at in _singles(run)]


def _singles(run: Observed) -> list[int]:
    asked = [life.asked_s for life in run.lives if life.asked_s is not None]
    stopping = [life.stopping_s for life in run.lives if life.stopping_s is not None]
    begin_s = min(asked, default=math.inf)
    end_s = max(stopping, default=math.inf) + STOP_S
    return [
        at
        for at in range(len(run.conditions.read_s))
        if (at + 1) * WINDOW_S <= begin_s or at * WINDOW_S >= end_s
    ]


def _of_one(run: Observed, slowness: Sequence[float]) -> tuple[str, ...]:
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
    mean = mean_slowness(slowness)
    if mean > MAX_SLOWNESS:
        found.append(f"the machine took {mean:.2f} of its quick time in the mean")
    return tuple(found)


def _quick(values: list[float]) -> float | None:
    return float(np.percentile(values, QUICK_PERCENTILE)) if values else None
