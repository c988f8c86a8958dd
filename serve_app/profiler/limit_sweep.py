"""Measures the points of a limit sweep under each power limit, after the sweep without one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.core.errors import ConfigError
from serve_app.profiler.limits import Block, blocks
from serve_app.profiler.plan import Timing, run_seconds
from serve_app.profiler.sweep import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_app.actuators.limited_gpus import LimitedGpus
    from serve_app.profiler.probe import Prober
    from serve_app.profiler.store import SampleStore
    from serve_app.profiler.sweep import Point
    from serve_app.profiler.sweep_run import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitSweep:
    """What to measure. `limits_watts`: those of `limits.check_limits`; `points`: those of
    `limits.limit_points`; the budget in `timing` is for this sweep alone."""

    limits_watts: tuple[float, ...]
    points: tuple[Point, ...]
    timing: Timing
    repeats: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitOutcome:
    """How it ended: runs measured now, those that were disturbed, and limits left out for time."""

    measured: int
    disturbed: tuple[str, ...]
    skipped: tuple[str, ...]


def sweep_limits(  # noqa: PLR0913, PLR0917  (the parts that are brought together)
    prober: Prober,
    store: SampleStore,
    gpus: LimitedGpus,
    sweep: LimitSweep,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> LimitOutcome:
    """Measure what is not in the folder yet. `gpus` is open; whoever opened it closes it.

    ActuationError: a limit cannot be set, or is not in force any more after a run, which is not
    kept then. ConfigError: the folder has another reference.
    """
    _check_reference(store, gpus.reference_watts)
    todo = blocks(
        sweep.points,
        sweep.limits_watts,
        repeats=sweep.repeats,
        seed=sweep.seed,
        measured=store.samples,
    )
    needed_s = [_seconds(block, prober, sweep.timing, gpus.settle_s) for block in todo]
    progress.begin(min(sum(needed_s), sweep.timing.budget_s))
    started_s = clock()
    measured = 0
    disturbed: list[str] = []
    for rank, block in enumerate(todo):
        # A limit without the reference after it is worth nothing; the one before it is there.
        least_s = sum(needed_s[rank : rank + 2])
        if block.limit_watts and clock() - started_s + least_s > sweep.timing.budget_s:
            skipped = tuple(_label(left) for left in todo[rank:] if left.limit_watts)
            return LimitOutcome(measured=measured, disturbed=tuple(disturbed), skipped=skipped)
        disturbed += _measure(block, prober, store, gpus)
        measured += len(block.points)
        progress.advance(needed_s[rank], _label(block))
    return LimitOutcome(measured=measured, disturbed=tuple(disturbed), skipped=())


def _measure(block: Block, prober: Prober, store: SampleStore, gpus: LimitedGpus) -> list[str]:
    """The runs of a block; returns which were disturbed. The limit settles under load, so the first
    run is made once more, and only then kept."""
    gpus.set(block.limit_watts)
    prober.power_limit_watts = block.limit_watts or gpus.reference_watts
    disturbed = []
    try:
        prober.measure(Run(point=block.points[0], repeat=block.repeat))
        for point in block.points:
            samples, steps = prober.measure(Run(point=point, repeat=block.repeat))
            gpus.confirm()
            store.append(samples, steps)
            if not all(sample.steady for sample in samples):
                disturbed.append(f"{point.name} at {_label(block)}")
    finally:
        prober.power_limit_watts = None
    return disturbed


def _label(block: Block) -> str:
    return f"{block.limit_watts:g} W #{block.repeat}" if block.limit_watts else "no power limit"


def _seconds(block: Block, prober: Prober, timing: Timing, settle_s: float) -> float:
    runs = [Run(point=point, repeat=block.repeat) for point in (block.points[0], *block.points)]
    return settle_s + sum(run_seconds(run, timing, prober.window_s) for run in runs)


def _check_reference(store: SampleStore, reference_watts: float) -> None:
    known = [s.power_limit_watts for s in store.samples if s.power_limit_watts is not None]
    if known and max(known) != reference_watts:
        raise ConfigError(
            f"{store.folder}: its power limits were measured against {max(known):g} W, and now "
            f"{reference_watts:g} W is set: set it as it was, or choose another --samples folder"
        )
