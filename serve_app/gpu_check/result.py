"""The figures of one check, and what in them is a finding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from serve_app.gpu_check.analysis import (
    AveragingWindow,
    Distribution,
    PhaseEnergy,
    averaging_window,
    phase_energy,
    update_intervals,
)
from serve_app.gpu_check.gpus import Gpu
from serve_app.gpu_check.plan import STARTING
from serve_app.gpu_check.sampling import Series

COST_READINGS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuResult:
    """One GPU. `window`, `instant_window`: of the two power values; `cost_s`: seconds per call."""

    gpu: dict[str, Any]
    samples: int
    counter_update_s: Distribution | None
    power_update_s: Distribution | None
    window: AveragingWindow | None
    instant_window: AveragingWindow | None
    phases: tuple[PhaseEnergy, ...]
    cost_s: dict[str, Distribution | None] = field(default_factory=dict)
    fault: str | None = None

    def findings(self) -> list[str]:
        """What is not as it should be."""
        name = f"GPU {self.gpu['index']}"
        found = [f"{name}: {self.fault}"] if self.fault else []
        beyond = [one for one in self.phases if one.within is False]
        return [
            *found,
            *(
                f"{name}, {one.phase}: integrated power is {one.difference_ratio:+.1%} off the "
                f"counter, stated error {one.stated_ratio:.1%}"
                for one in beyond
            ),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """The whole check. `cycle_s`: seconds that the meter takes to read all GPUs once."""

    gpus: tuple[GpuResult, ...]
    cycle_s: Distribution | None
    load: str | None
    sampling: dict[str, float]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def findings(self) -> list[str]:
        """Everything that makes the exit status 1."""
        return [*self.problems, *(line for gpu in self.gpus for line in gpu.findings())]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        document = asdict(self)
        for gpu, plain in zip(self.gpus, document["gpus"], strict=True):
            for phase, row in zip(gpu.phases, plain["phases"], strict=True):
                row["within"] = phase.within
        return {**document, "findings": self.findings()}


def timed(action: Callable[[], object], count: int = COST_READINGS) -> Distribution | None:
    """Return how long `action` takes, seconds, over `count` calls after one to warm up."""
    action()
    costs = np.empty(count)
    for i in range(count):
        begin_s = time.perf_counter()
        action()
        costs[i] = time.perf_counter() - begin_s
    return Distribution.of(costs)


def analyse(
    gpu: Gpu, series: Series, cost_s: dict[str, Distribution | None], fault: str | None
) -> GpuResult:
    """Return the figures of one GPU."""
    usual = averaging_window(series.time_s, series.joules, series.watts)
    names = [str(n) for n in dict.fromkeys(series.phases.tolist()) if n not in {"", STARTING}]
    window_s = None if usual is None else usual.window_s
    phases = (phase_energy(series, name, window_s) for name in names)
    return GpuResult(
        gpu=gpu.facts(),
        samples=len(series.time_s),
        counter_update_s=update_intervals(series.time_s, series.joules),
        power_update_s=update_intervals(series.time_s, series.watts),
        window=usual,
        instant_window=averaging_window(series.time_s, series.joules, series.instant_watts),
        phases=tuple(phase for phase in phases if phase is not None),
        cost_s=cost_s,
        fault=fault,
    )
