"""A whole profile: start the engine, run the sweep within its time, leave a sample folder."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from policies.core.errors import ConfigError
from serve_app.actuators import limit_record
from serve_app.actuators.limited_gpus import LimitedGpus
from serve_app.meters import EstimateSettings
from serve_app.meters.process_tree import ProcessTree
from serve_app.profiler import host
from serve_app.profiler.engine_run import EngineSettings, ProfiledEngine
from serve_app.profiler.limit_sweep import LimitOutcome, LimitSweep, sweep_limits
from serve_app.profiler.limits import OPTION, PERMISSION, check_limits, limit_points
from serve_app.profiler.order import GOOD_ENOUGH_RATIO
from serve_app.profiler.plan import Timing
from serve_app.profiler.probe import Prober
from serve_app.profiler.store import SampleStore
from serve_app.profiler.sweep import SweepSettings
from serve_app.profiler.sweep_run import SweepEnding, SweepOutcome, sweep
from serve_app.profiler.torch_settings import TorchEngineSettings, open_torch_engine
from serve_app.repository import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from serve_app.meters import EnergyMeter
    from serve_app.profiler.engine import Engine
    from serve_app.profiler.sweep_run import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSettings:
    """What to profile, and how long. `model`: the name to write into the profile. The budget covers
    the sweep, not the start of the engine; a sweep over power limits has as much again. A disturbed
    run is repeated once, in what time is left, unless `allow_disturbed`. The sweep ends early when
    the step time is known to `target_error_ratio` everywhere.

    `power_limits_watts`: those of `limits.parse_limits`, which the user allowed; empty = none is
    set."""

    model: str
    engine: EngineSettings | TorchEngineSettings
    samples: Path
    command: str
    repeats: int = 6
    seed: int = 0
    duration_budget_s: float = 720.0
    target_error_ratio: float = GOOD_ENOUGH_RATIO
    allow_disturbed: bool = False
    estimate: EstimateSettings = field(default_factory=EstimateSettings)
    power_limits_watts: tuple[float, ...] = ()


def run_profile(
    settings: ProfileSettings, progress: Progress
) -> tuple[SweepOutcome, LimitOutcome | None]:
    """Measures every point that is not in the folder yet; then under power limits, if any are asked
    for. Raises ConfigError, EngineError, MeterError, ActuationError; the folder keeps what was
    measured until then, and the power limits are as they were found."""
    # Options, limits and folder are checked before the minute that an engine takes to start.
    sweep_settings(settings)
    with ExitStack() as stack:
        meter = stack.enter_context(host.open_meter(settings.engine, settings.estimate))
        device = host.device_name(meter, on_cpu=settings.engine.on_cpu)
        gpus = _limited(settings, meter, progress, stack)
        limits = _checked(settings.power_limits_watts, gpus) if gpus else ()
        store = SampleStore(settings.samples, _manifest(settings, meter, device))
        name = "torch" if isinstance(settings.engine, TorchEngineSettings) else "vLLM"
        progress.say(f"starting {name} on {device} with {settings.model}")
        engine = stack.enter_context(_open(settings.engine))
        store.describe("engine", engine.facts())
        prober = Prober(engine, meter, ProcessTree(os.getpid()), device)
        progress.say("warming up")
        timing = Timing(prefill_tokens_per_s=prober.warm_up(), budget_s=settings.duration_budget_s)
        points = replace(
            sweep_settings(settings),
            max_num_batched_tokens=engine.max_num_batched_tokens,
            kv_capacity_tokens=engine.kv_capacity_tokens,
        )
        ending = SweepEnding(
            target_error_ratio=settings.target_error_ratio,
            allow_disturbed=settings.allow_disturbed,
        )
        outcome = sweep(points, timing, ending, prober, store, progress)
        if gpus is None:
            return outcome, None
        store.describe("power_limits", {"reference_watts": gpus.reference_watts, "watts": limits})
        wanted = LimitSweep(
            limits_watts=limits, points=limit_points(points), timing=timing, seed=settings.seed
        )
        limited = sweep_limits(prober, store, gpus, wanted, progress)
        store.write_parquet()
        return outcome, limited


def _limited(
    settings: ProfileSettings, meter: EnergyMeter, progress: Progress, stack: ExitStack
) -> LimitedGpus | None:
    """The GPUs, ready to be limited until the profile ends; None where no limit was asked for.

    ConfigError where a killed run's limits still hold: they would be taken for the machine's own.
    """
    if settings.power_limits_watts:
        if settings.engine.on_cpu:
            raise ConfigError(f"{OPTION}: the engine computes on the CPU: no GPU to limit")
        gpus = LimitedGpus(
            host.gpus_of(meter), say=progress.say, state_file=limit_record.STATE_FILE
        )
        return stack.enter_context(gpus)
    left_over = not settings.engine.on_cpu and limit_record.read_record(limit_record.STATE_FILE)
    if left_over:
        raise ConfigError(
            f"{limit_record.STATE_FILE}: a run that set power limits has not put them back. Wait "
            f"for it, or put them back: the next run with {OPTION} and {PERMISSION} begins with it"
        )
    return None


def _checked(limits: tuple[float, ...], gpus: LimitedGpus) -> tuple[float, ...]:
    """The limits to measure; ConfigError or ActuationRefused for one that cannot be."""
    below = check_limits(limits, gpus.reference_watts)
    for watts in below:
        gpus.check(watts)
    return below


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
        "gpus": None if engine.on_cpu else host.gpu_facts(host.gpus_of(meter)),
        "versions": host.versions(),
        "source": host.commit(REPOSITORY),
        "command": settings.command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
