"""Measures the points of a sweep, the most informative first, until time or doubt runs out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve_app.profiler.order import RunOrder
from serve_app.profiler.plan import Timing, run_seconds, window_seconds
from serve_app.profiler.samples import unlimited
from serve_app.profiler.sweep import Run, SweepSettings, schedule
from serve_app.profiler.yardstick import slow_limit_s

if TYPE_CHECKING:
    from typing import Protocol

    from serve_app.profiler.probe import Prober
    from serve_app.profiler.samples import Sample
    from serve_app.profiler.steps import Step
    from serve_app.profiler.store import SampleStore

    class Progress(Protocol):
        """Who is told how far the sweep is."""

        def say(self, text: str) -> None:
            """One line about what begins now."""

        def begin(self, total_s: float) -> None:
            """The sweep begins and is expected to take this long."""

        def advance(self, done_s: float, text: str) -> None:
            """A run has ended that was expected to take `done_s`; `text` says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepEnding:
    """When a sweep ends: after its budget, or when the step time is known to `target_error_ratio`
    everywhere. A disturbed run is repeated once, in what time is left, unless `allow_disturbed`."""

    target_error_ratio: float
    allow_disturbed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """How a sweep ended: runs measured now, found measured already, disturbed, points left out for
    time, repeats left out for time, and spared because the model was known well enough
    (`half_width_ratio`: of the step time, 95 %, where it is known least; None = too few points to
    tell)."""

    measured: int
    resumed: int
    disturbed: tuple[str, ...]
    skipped: tuple[str, ...]
    skipped_repeats: int
    spared: int
    half_width_ratio: float | None
    sweep_s: float


def sweep(  # noqa: PLR0913, PLR0917  (the parts that are brought together)
    points: SweepSettings,
    timing: Timing,
    ending: SweepEnding,
    prober: Prober,
    store: SampleStore,
    progress: Progress,
) -> SweepOutcome:
    """Measure what is not in the folder yet; it keeps what was measured when an error ends this."""
    runs = schedule(points)
    done = store.done
    todo = [run for run in runs if (run.point.name, run.repeat) not in done]
    prober.window_s = window_seconds(todo, timing)
    expected = {run: run_seconds(run, timing, prober.window_s) for run in todo}
    progress.begin(min(sum(expected.values()), timing.budget_s))
    order = RunOrder(expected, points.seed)
    started_s = time.monotonic()
    measured, skipped_repeats = 0, 0
    disturbed, skipped = [], []
    half_width = order.half_width_ratio(store.samples)
    while (run := order.take(store.samples)) is not None:
        label = f"{run.point.name} #{run.repeat}"
        elapsed_s = time.monotonic() - started_s
        if elapsed_s + expected[run] > timing.budget_s:
            if run.repeat == 1:
                skipped.append(run.point.name)
            else:
                skipped_repeats += 1
            continue
        spare_s = timing.budget_s - elapsed_s - 2 * expected[run]
        again = spare_s > 0.0 and not ending.allow_disturbed
        slow_s = slow_limit_s(unlimited(store.samples)) or math.inf
        if again:
            prober.wait_for_calm(slow_s)
        samples, steps = _steadiest(prober, run, slow_s, attempts=2 if again else 1)
        store.append(samples, steps)
        measured += 1
        if _disturbance(samples, slow_s):
            disturbed.append(label)
        half_width = order.half_width_ratio(store.samples)
        progress.advance(expected[run], _known(label, half_width))
        known = half_width is not None and half_width <= ending.target_error_ratio
        if known and order.meets_unseen_points(store.samples):
            break
    store.write_parquet()
    return SweepOutcome(
        measured=measured,
        resumed=len(runs) - len(todo),
        disturbed=tuple(disturbed),
        skipped=tuple(skipped),
        skipped_repeats=skipped_repeats,
        spared=len(todo) - measured - len(skipped) - skipped_repeats,
        half_width_ratio=half_width,
        sweep_s=time.monotonic() - started_s,
    )


def _known(label: str, half_width: float | None) -> str:
    return label if half_width is None else f"{label} (known to {half_width:.1%})"


def _steadiest(
    prober: Prober, run: Run, slow_s: float, *, attempts: int
) -> tuple[list[Sample], list[Step]]:
    """The run; repeated while it is disturbed, and the steadiest kept."""
    best: tuple[list[Sample], list[Step]] = ([], [])
    for attempt in range(attempts):
        samples, steps = prober.measure(run)
        if attempt == 0 or _disturbance(samples, slow_s) < _disturbance(best[0], slow_s):
            best = (samples, steps)
        if not _disturbance(samples, slow_s):
            break
    return best


def _disturbance(samples: list[Sample], slow_s: float) -> float:
    """How disturbed a run was; 0 = not at all."""
    steady = samples[0]
    slowness = max(1.0, (steady.yardstick_s or 0.0) / slow_s)
    if all(sample.steady for sample in samples) and slowness <= 1.0:
        return 0.0
    foreign_s = steady.foreign_cpu_s or 0.0
    return (
        slowness
        + abs(steady.drift_ratio or 0.0)
        + steady.outlier_steps / max(steady.steps, 1.0)
        + foreign_s / steady.window_s
    )
