"""A whole profile: start the engine, run the sweep within its time, leave a sample folder."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from serve_app.meters import EnergyMeter, EstimateSettings, MeterOptions
from serve_app.meters.process_tree import ProcessTree
from serve_app.profiler import host
from serve_app.profiler.engine_run import EngineSettings, ProfiledEngine
from serve_app.profiler.order import GOOD_ENOUGH_RATIO, RunOrder
from serve_app.profiler.plan import Timing, run_seconds, window_seconds
from serve_app.profiler.probe import Prober
from serve_app.profiler.store import SampleStore
from serve_app.profiler.sweep import Run, SweepSettings, schedule
from serve_app.profiler.torch_settings import TorchEngineSettings, open_torch_engine
from serve_app.settings import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    from serve_app.profiler.engine import Engine
    from serve_app.profiler.samples import Sample
    from serve_app.profiler.steps import Step

    class Progress(Protocol):
        """Who is told how far the sweep is."""

        def say(self, text: str) -> None:
            """One line about what begins now."""

        def begin(self, total_s: float) -> None:
            """The sweep begins and is expected to take this long."""

        def advance(self, done_s: float, text: str) -> None:
            """A run has ended that was expected to take `done_s`; `text` says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSettings:
    """What to profile, and how long. `model`: the name to write into the profile. The budget covers
    the sweep, not the start of the engine. A disturbed run is repeated once, in what time is left,
    unless `allow_disturbed`. The sweep ends early when the step time is known to
    `target_error_ratio` everywhere."""

    model: str
    engine: EngineSettings | TorchEngineSettings
    samples: Path
    command: str
    repeats: int = 3
    seed: int = 0
    duration_budget_s: float = 720.0
    target_error_ratio: float = GOOD_ENOUGH_RATIO
    allow_disturbed: bool = False
    estimate: EstimateSettings = field(default_factory=EstimateSettings)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome:
    """How a sweep ended: runs measured now, found measured already, disturbed, left out for time,
    and spared because the model was known well enough (`half_width_ratio`: of the step time, 95 %,
    where it is known least; None = too few points to tell)."""

    measured: int
    resumed: int
    disturbed: tuple[str, ...]
    skipped: tuple[str, ...]
    spared: int
    half_width_ratio: float | None
    sweep_s: float


def run_profile(settings: ProfileSettings, progress: Progress) -> SweepOutcome:
    """Measures every point that is not in the folder yet. Raises ConfigError, EngineError or
    MeterError; the folder keeps what was measured until then."""
    # Options and folder are checked before the minute that an engine takes to start.
    sweep_settings(settings)
    with EnergyMeter(options=MeterOptions(estimate=settings.estimate)) as meter:
        device = host.device_name(meter, on_cpu=settings.engine.on_cpu)
        store = SampleStore(settings.samples, _manifest(settings, meter, device))
        name = "torch" if isinstance(settings.engine, TorchEngineSettings) else "vLLM"
        progress.say(f"starting {name} on {device} with {settings.model}")
        with _open(settings.engine) as engine:
            store.describe("engine", engine.facts())
            return _sweep(
                settings, Prober(engine, meter, ProcessTree(os.getpid()), device), store, progress
            )


def _open(settings: EngineSettings | TorchEngineSettings) -> Engine:
    if isinstance(settings, TorchEngineSettings):
        return open_torch_engine(settings)
    return ProfiledEngine(settings)


def sweep_settings(settings: ProfileSettings) -> SweepSettings:
    """The sweep as far as it is known before the engine runs; ConfigError for a bad option."""
    return SweepSettings(
        max_num_seqs=settings.engine.max_num_seqs,
        max_model_len=settings.engine.max_model_len,
        repeats=settings.repeats,
        seed=settings.seed,
    )


def _sweep(
    settings: ProfileSettings, prober: Prober, store: SampleStore, progress: Progress
) -> SweepOutcome:
    progress.say("warming up")
    timing = Timing(prefill_tokens_per_s=prober.warm_up(), budget_s=settings.duration_budget_s)
    engine = prober.engine
    runs = schedule(
        replace(
            sweep_settings(settings),
            max_num_batched_tokens=engine.max_num_batched_tokens,
            kv_capacity_tokens=engine.kv_capacity_tokens,
        )
    )
    todo = [run for run in runs if (run.point.name, run.repeat) not in store.done]
    prober.window_s = window_seconds(todo, timing)
    expected = {run: run_seconds(run, timing, prober.window_s) for run in todo}
    progress.begin(min(sum(expected.values()), settings.duration_budget_s))
    order = RunOrder(todo, settings.seed)
    started_s = time.monotonic()
    measured, disturbed, skipped = 0, [], []
    half_width = order.half_width_ratio(store.samples)
    while (run := order.take(store.samples)) is not None:
        label = f"{run.point.name} #{run.repeat}"
        elapsed_s = time.monotonic() - started_s
        if elapsed_s + expected[run] > settings.duration_budget_s:
            skipped.append(label)
            continue
        spare_s = settings.duration_budget_s - elapsed_s - 2 * expected[run]
        again = spare_s > 0.0 and not settings.allow_disturbed
        samples, steps = _steadiest(prober, run, attempts=2 if again else 1)
        store.append(samples, steps)
        measured += 1
        if not all(sample.steady for sample in samples):
            disturbed.append(label)
        half_width = order.half_width_ratio(store.samples)
        progress.advance(expected[run], _known(label, half_width))
        if half_width is not None and half_width <= settings.target_error_ratio:
            break
    store.write_parquet()
    return SweepOutcome(
        measured=measured,
        resumed=len(runs) - len(todo),
        disturbed=tuple(disturbed),
        skipped=tuple(skipped),
        spared=len(todo) - measured - len(skipped),
        half_width_ratio=half_width,
        sweep_s=time.monotonic() - started_s,
    )


def _known(label: str, half_width: float | None) -> str:
    return label if half_width is None else f"{label} (known to {half_width:.1%})"


def _steadiest(prober: Prober, run: Run, *, attempts: int) -> tuple[list[Sample], list[Step]]:
    """The run; repeated while it is disturbed, and the steadiest kept."""
    best: tuple[list[Sample], list[Step]] = ([], [])
    for attempt in range(attempts):
        samples, steps = prober.measure(run)
        if attempt == 0 or _disturbance(samples) < _disturbance(best[0]):
            best = (samples, steps)
        if all(sample.steady for sample in samples):
            break
    return best


def _disturbance(samples: list[Sample]) -> float:
    steady = samples[0]
    foreign_s = steady.foreign_cpu_s or 0.0
    return (
        abs(steady.drift_ratio or 0.0)
        + steady.outlier_steps / max(steady.steps, 1.0)
        + foreign_s / steady.window_s
    )


def _manifest(settings: ProfileSettings, meter: EnergyMeter, device: str) -> dict[str, Any]:
    """What the samples are and where they come from; `config` and `device` must match to resume."""
    engine = settings.engine
    return {
        "schema_version": 1,
        "model": settings.model,
        "device": device,
        "config": {
            "model": settings.model,
            "engine_args": engine.engine_args(),
            "environment": {
                name: value
                for name, value in engine.environment().items()
                if name.startswith(("OMP_", "VLLM_CPU_"))
            },
            "seed": settings.seed,
            "estimate": asdict(settings.estimate),
        },
        "meter": {
            "backends": {str(kind): name for kind, name in meter.backends().items()},
            "unavailable": meter.unavailable,
        },
        "host": host.host_facts(),
        "versions": host.versions(),
        "source": host.commit(REPOSITORY),
        "command": settings.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
